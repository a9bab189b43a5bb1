"""CLIP embeddings and token states of a whole set of pictures, computed once and kept in one safetensors file.

Texts are stored once however many samples share them; token states are ragged (a caption of 6 tokens takes 6 rows).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unclip.data.progress import track
from unclip.errors import UserError
from unclip.files import atomic_path, check_writable

FILENAME = "embeddings.safetensors"
_TENSORS = (
    "image_embeds", "text_embeds", "token_states", "token_offsets", "caption_ids", "caption_offsets", "texts",
)  # fmt: skip


class EncodedText(Protocol):
    """What the text tower gives for B texts."""

    @property
    def embeds(self) -> Tensor: ...  # [B, D], normalised

    @property
    def tokens(self) -> Tensor: ...  # [B, L, C], states

    @property
    def mask(self) -> Tensor: ...  # [B, L] bool, True at real tokens


class Encoder(Protocol):
    """The part of `unclip.clip.FrozenCLIP` that is used here."""

    @property
    def image_size(self) -> int: ...

    def encode_image(self, pixels: Tensor) -> Tensor: ...

    def encode_text(self, texts: list[str]) -> EncodedText: ...

    def fingerprint(self) -> str: ...


class Captioned(Protocol):
    """A set of pictures with captions: `CaptionedImages`, `ComposedScenes`."""

    def __len__(self) -> int: ...

    def rgb(self, i: int, size: int) -> np.ndarray: ...  # uint8 [size, size, 3]

    def captions(self, i: int) -> list[str]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class EmbeddingCache:
    """N pictures, M texts (each but once, unless caches were joined), their T tokens.

    Attributes:
        image_embeds: float32 [N, D], normalised, pictures on white (scenes as they are).
        text_embeds: float16 [M, D], normalised.
        caption_of: for each picture the indices of its texts.
        texts: the M texts.
        fingerprint: of the CLIP weights and the pictures.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    caption_of: list[list[int]]
    texts: list[str]
    fingerprint: str
    token_states: Tensor  # float16 [T, C]
    token_offsets: Tensor  # int64 [M + 1]: text m has rows offsets[m] : offsets[m + 1]

    @property
    def lengths(self) -> Tensor:
        """How many tokens each text has, int64 [M]."""
        return self.token_offsets.diff()

    def tokens(self, caption_indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(states float32 [B, L, C], mask bool [B, L]) of some texts; L is the longest of them."""
        starts = self.token_offsets[torch.as_tensor(caption_indices)]
        lengths = self.token_offsets[torch.as_tensor(caption_indices) + 1] - starts
        longest = int(lengths.max())
        mask = torch.arange(longest)[None] < lengths[:, None]
        rows = (starts[:, None] + torch.arange(longest)[None])[mask]
        states = torch.zeros(len(lengths), longest, self.token_states.shape[1])
        states[mask] = self.token_states[rows].float()
        return states, mask

    @classmethod
    def build(
        cls,
        clip: Encoder,
        ds: Captioned,
        path: str | Path,
        batch_size: int = 64,
        progress: bool = True,
    ) -> EmbeddingCache:
        """Encode everything and write it to `path` (a folder or a .safetensors file).

        A cache of the same weights and data that is there already is read instead.
        """
        target = embeddings_file(path)
        fingerprint = _fingerprint(clip, ds)
        if target.is_file() and _read_fingerprint(target) == fingerprint:
            return cls.load(target)
        check_writable(target.parent)
        captions = [ds.captions(i) for i in range(len(ds))]
        images = _encode_images(clip, ds, batch_size, progress)
        texts = list(dict.fromkeys(text for found in captions for text in found))
        index = {text: m for m, text in enumerate(texts)}
        embeds, states, offsets = _encode_texts(clip, texts, batch_size, progress)
        caption_offsets = np.cumsum([0] + [len(found) for found in captions])
        tensors = {
            "image_embeds": images,
            "text_embeds": embeds,
            "token_states": states,
            "token_offsets": offsets,
            "caption_ids": torch.tensor([index[text] for found in captions for text in found]),
            "caption_offsets": torch.from_numpy(caption_offsets),
            "texts": torch.frombuffer(
                bytearray(json.dumps(texts, ensure_ascii=False).encode()), dtype=torch.uint8
            ),
        }
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata={"fingerprint": fingerprint})
        return cls._of_tensors(tensors, fingerprint)

    @classmethod
    def load(
        cls,
        path: str | Path,
        clip: Encoder | None = None,
        ds: Captioned | None = None,
    ) -> EmbeddingCache:
        """Read a cache; with `clip` and `ds`, check that it belongs to them.

        Raises:
            UserError: the file is missing, damaged, or of other weights or other data.
        """
        target = embeddings_file(path)
        fingerprint = _read_fingerprint(target)
        if clip is not None and ds is not None and fingerprint != _fingerprint(clip, ds):
            raise UserError(
                f"{target} was made with other CLIP weights or other data; delete it, and it is made again"
            )
        with safe_open(target, "pt") as stream:
            return cls._of_tensors({name: stream.get_tensor(name) for name in _TENSORS}, fingerprint)

    def joined(self, other: EmbeddingCache) -> EmbeddingCache:
        """The pictures and texts of both, those of `other` behind; a text of both is there twice."""
        first = len(self.texts)
        return EmbeddingCache(
            image_embeds=torch.cat([self.image_embeds, other.image_embeds]),
            text_embeds=torch.cat([self.text_embeds, other.text_embeds]),
            caption_of=self.caption_of + [[first + m for m in found] for found in other.caption_of],
            texts=self.texts + other.texts,
            fingerprint=f"{self.fingerprint} {other.fingerprint}",
            token_states=torch.cat([self.token_states, other.token_states]),
            token_offsets=torch.cat([self.token_offsets, other.token_offsets[1:] + self.token_offsets[-1]]),
        )

    @classmethod
    def _of_tensors(cls, tensors: dict[str, Tensor], fingerprint: str) -> EmbeddingCache:
        ids, offsets = tensors["caption_ids"].tolist(), tensors["caption_offsets"].tolist()
        return cls(
            image_embeds=tensors["image_embeds"],
            text_embeds=tensors["text_embeds"],
            caption_of=[ids[start:end] for start, end in pairwise(offsets)],
            texts=json.loads(tensors["texts"].numpy().tobytes()),
            fingerprint=fingerprint,
            token_states=tensors["token_states"],
            token_offsets=tensors["token_offsets"],
        )


def _encode_images(clip: Encoder, ds: Captioned, batch_size: int, progress: bool) -> Tensor:
    """float32 [N, D]."""
    found: list[Tensor] = []
    starts = range(0, len(ds), batch_size)
    for start in track(starts, "embed pictures", total=len(starts), show=progress):
        pictures = [ds.rgb(i, clip.image_size) for i in range(start, min(start + batch_size, len(ds)))]
        found.append(clip.encode_image(_to_pixels(pictures)).float().cpu())
    return torch.cat(found)


def _to_pixels(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _encode_texts(
    clip: Encoder, texts: list[str], batch_size: int, progress: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(embeds fp16 [M, D], states fp16 [T, C], offsets [M + 1]); like lengths go together, so little is padding."""
    order = sorted(range(len(texts)), key=lambda m: (len(texts[m].split()), len(texts[m]), m))
    embeds: list[Tensor] = [torch.empty(0)] * len(texts)
    states: list[Tensor] = [torch.empty(0)] * len(texts)
    starts = range(0, len(order), batch_size)
    for start in track(starts, "embed captions", total=len(starts), show=progress):
        batch = order[start : start + batch_size]
        encoded = clip.encode_text([texts[m] for m in batch])
        for row, m in enumerate(batch):
            embeds[m] = encoded.embeds[row].cpu().half()
            states[m] = encoded.tokens[row][encoded.mask[row]].cpu().half()
    lengths = torch.tensor([0] + [len(found) for found in states])
    return torch.stack(embeds), torch.cat(states), lengths.cumsum(0)


def _fingerprint(clip: Encoder, ds: Captioned) -> str:
    return hashlib.sha256("\n".join([clip.fingerprint(), ds.fingerprint()]).encode()).hexdigest()


def _read_fingerprint(target: Path) -> str:
    if not target.is_file():
        raise UserError(f"expected embeddings at {target}, found none; make them with EmbeddingCache.build")
    try:
        with safe_open(target, "pt") as stream:
            return (stream.metadata() or {}).get("fingerprint", "")
    except Exception as error:  # safetensors has its own exception for a cut-off file
        raise UserError(f"{target} is damaged ({error}); delete it, and it is made again") from error


def embeddings_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILENAME
