"""Captioned pictures with their precomputed CLIP embeddings: what the prior and the decoder train on.

A share of the samples may be composed scenes, so that they learn of two things in one picture and of where each is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.clip import FrozenCLIP
from unclip.data import CaptionedImages, ComposedScenes, EmbeddingCache
from unclip.data.embeddings import Captioned, embeddings_file
from unclip.errors import UserError

from ..config import TrainConfig
from .base import Task

# A CLIP of random weights, so that the tiny presets need nothing but pictures. `clip=random` asks for it.
RANDOM_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


# A batch is one of so many that are drawn and sorted by the captions' lengths: more would save little padding more,
# and make the batches less alike.
LENGTH_GROUPS = 4

# Not the run's: runs of any seed share the embeddings of the same scenes.
SCENE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Composed scenes among the samples."""

    scenes: int = 0  # how many there are, embedded once like the pictures
    scene_share: float = 0.2  # of the samples, where there are scenes

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        if self.scenes < 0:
            raise UserError(f"task.scenes: expected 0 (none) or a number of scenes, got {self.scenes}")
        if not 0 < self.scene_share < 1:
            raise UserError(f"task.scene_share: expected more than 0 and less than 1, got {self.scene_share}")


class Sampling:
    """Draws sample indices by weight from those that are not held out; samples of weight 0 do not exist for it.

    `held_out` samples are set aside at random (the same ones for the same seed) to validate with.
    """

    def __init__(self, weights: np.ndarray, config: TrainConfig, held_out: int) -> None:
        candidates = np.flatnonzero(weights[: config.limit] > 0)
        if len(candidates) <= held_out:
            raise UserError(
                f"held_out={held_out} of {len(candidates)} samples leaves none to train on: lower task.held_out"
            )
        order = np.random.default_rng(config.seed).permutation(candidates)
        self.held_out, self.trained = np.sort(order[:held_out]), np.sort(order[held_out:])
        chances = weights[self.trained]
        self._cumulative = np.cumsum(chances) / chances.sum()

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n indices, with replacement."""
        places = np.searchsorted(self._cumulative, rng.random(n), side="right")
        return self.trained[np.minimum(places, len(self.trained) - 1)]


class EmbeddedPictures:
    """The training split and scenes of it, their embeddings and caption states, and who is drawn how often.

    Sample i is a picture of the split or, from their number on, a scene.
    """

    def __init__(
        self,
        config: TrainConfig,
        held_out: int,
        max_tokens: int,
        options: SceneOptions,
        clip: FrozenCLIP | None = None,
    ) -> None:
        """With `clip`, that of `config.clip` if it is loaded already."""
        self.pictures = load_pictures(config)
        if clip is None and config.clip is not None:
            clip = load_clip(config.clip)
        self.cache = load_cache(config, self.pictures, clip)
        self.sampling = Sampling(self.pictures.weights, config, held_out)
        self.scenes: ComposedScenes | None = None
        self._scene_share = options.scene_share
        if options.scenes:
            self.scenes = ComposedScenes(self.pictures, SCENE_SEED, options.scenes)
            self.cache = self.cache.joined(load_cache(config, self.scenes, clip, f"-{options.scenes}-scenes"))
        self.max_tokens = max_tokens
        self.image_embeds = torch.as_tensor(self.cache.image_embeds)
        # Ragged lists of captions as one array and its offsets, so that drawing needs no loop.
        captions = [np.asarray(each, dtype=np.int64) for each in self.cache.caption_of]
        self._caption_count = np.array([len(each) for each in captions])
        self._caption_start = np.cumsum(self._caption_count) - self._caption_count
        self._captions = np.concatenate(captions)
        self._text_lengths = np.asarray(self.cache.lengths)

    @property
    def scene_indices(self) -> np.ndarray:
        """The samples that are scenes."""
        return np.arange(len(self.pictures), len(self.image_embeds))

    @property
    def embed_dim(self) -> int:
        """Size D of the image embeddings."""
        return self.image_embeds.shape[1]

    @property
    def token_dim(self) -> int:
        """Size C of the caption states."""
        return self.cache.tokens([0])[0].shape[-1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [D] of the image embeddings of pictures."""
        alone = self.image_embeds[: len(self.pictures)]
        return alone.mean(0), alone.std(0).clamp(min=1e-6)

    def subjects(self) -> Tensor:
        """Which subject each sample shows, int64 [N]: its record's concept; without one it has a subject of its own."""
        names = [record.get("concept") or i for i, record in enumerate(self.pictures.records)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        of_pictures = torch.tensor([numbers[name] for name in names])
        scenes = len(self.image_embeds) - len(names)
        return torch.cat([of_pictures, len(numbers) + torch.arange(scenes)])

    def caption_means(self, text_embeds: Tensor) -> Tensor:
        """The mean [N, D] of the embeddings of each sample's captions; text_embeds [M, D] of all captions."""
        sample = torch.arange(len(self._caption_count)).repeat_interleave(indices_of(self._caption_count))
        embeds = text_embeds[indices_of(self._captions)]
        sums = torch.zeros(len(self._caption_count), embeds.shape[1]).index_add(0, sample, embeds)
        return sums / indices_of(self._caption_count)[:, None]

    def describe(self) -> dict[str, Any]:
        """How many pictures and captions there are."""
        return {
            "pictures": len(self.sampling.trained),
            "held_out": len(self.sampling.held_out),
            "captions": len(self.cache.text_embeds),
            **({} if self.scenes is None else {"scenes": len(self.scenes)}),
        }

    def composed(self, indices: np.ndarray, size: int) -> dict[int, np.ndarray]:
        """The scenes among samples [n], painted: {place in `indices`: uint8 [size, size, 3]}."""
        if self.scenes is None:
            return {}
        first = len(self.pictures)
        return {k: self.scenes.rgb(int(i) - first, size) for k, i in enumerate(indices) if i >= first}

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Indices [n] of samples and of a caption of each; the captions are of like lengths: little is padding.

        Over many batches each sample and each caption is as frequent as if they were drawn one by one.
        """
        indices = self.sampling.draw(n * LENGTH_GROUPS, rng)
        if self.scenes is not None:
            composed = rng.random(len(indices)) < self._scene_share
            indices[composed] = len(self.pictures) + rng.integers(len(self.scenes), size=int(composed.sum()))
        captions = self.draw_captions(indices, rng)
        groups = np.argsort(self._text_lengths[captions], kind="stable").reshape(LENGTH_GROUPS, n)
        chosen = groups[rng.integers(LENGTH_GROUPS)]
        return indices[chosen], captions[chosen]

    def draw_captions(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One caption index for each sample, any of its forms."""
        which = (rng.random(len(indices)) * self._caption_count[indices]).astype(np.int64)
        return self._captions[self._caption_start[indices] + which]

    def text(self, captions: np.ndarray) -> dict[str, Tensor]:
        """States [B, L, C] and mask [B, L] of captions, as the networks take them."""
        states, mask = self.cache.tokens(captions.tolist())
        return {
            "text_tokens": torch.as_tensor(states)[:, : self.max_tokens].float(),
            "text_mask": torch.as_tensor(mask)[:, : self.max_tokens],
        }


class EmbeddedTask(Task):
    """A task on `EmbeddedPictures`; subclasses set `data`."""

    data: EmbeddedPictures

    @classmethod
    def to_measure(cls, config: TrainConfig) -> TrainConfig:
        """Without scenes, which would have to be embedded first, without writing a cache, and with none held out."""
        small = super().to_measure(config)
        there = small.cache is not None and embeddings_file(small.cache).is_file()
        return replace(
            small, cache=small.cache if there else None, task={**small.task, "scenes": 0, "held_out": 0}
        )

    def describe(self) -> dict[str, Any]:
        """How many pictures and captions there are."""
        return self.data.describe()


def load_pictures(config: TrainConfig) -> CaptionedImages:
    """The training split of `config.data`.

    Raises:
        UserError: no data is named, or none is there.
    """
    if config.data is None:
        raise UserError("no data: give --data DIR, a folder made by `unclip data build` or a .tar shard")
    return CaptionedImages(config.data, split="train")


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP in folder `name`, or one of random weights for "random"."""
    if name != "random":
        return FrozenCLIP.from_pretrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FrozenCLIP.from_open_clip(RANDOM_CLIP)


def load_cache(
    config: TrainConfig, pictures: Captioned, clip: FrozenCLIP | None, suffix: str = ""
) -> EmbeddingCache:
    """The embeddings in `config.cache`, whose file's name ends in `suffix`; where none are, `clip` makes them.

    Raises:
        UserError: neither a cache nor a CLIP to make one with, or a cache of other pictures or another CLIP.
    """
    target = None
    if config.cache is not None:
        file = embeddings_file(config.cache)
        target = file.with_stem(file.stem + suffix)
    if target is not None and target.is_file():
        found = EmbeddingCache.load(target, clip, pictures)
        ends = (0, len(pictures) - 1)
        if len(found.image_embeds) != len(pictures) or any(
            [found.texts[m] for m in found.caption_of[i]] != pictures.captions(i) for i in ends
        ):
            raise UserError(
                f"{target} holds {len(found.image_embeds)} pictures, expected {len(pictures)} with the captions of "
                "this data: delete it, and it is made again"
            )
        return found
    if clip is None:
        where = "no embeddings" if target is None else f"no embeddings at {target}"
        raise UserError(f"{where}: give cache=DIR with embeddings of the data, or clip=DIR to make them")
    if target is not None:
        return EmbeddingCache.build(clip, pictures, target)
    with tempfile.TemporaryDirectory() as folder:  # cache=DIR would keep them for the next run
        return EmbeddingCache.build(clip, pictures, Path(folder) / "cache")


def indices_of(values: np.ndarray) -> Tensor:
    """Indices as a tensor."""
    return torch.from_numpy(values.astype(np.int64))
