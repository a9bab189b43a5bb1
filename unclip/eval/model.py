"""A text-to-image model as evaluation sees it, what is asked of it, and CLIP's embeddings of pictures and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.errors import UserError
from unclip.eval.cache import Features, features_of_all
from unclip.eval.choice import Pictures
from unclip.eval.drawing import Generate

JUDGED_AT = 256  # pixels of the real pictures that others are compared with
EMBED_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Model:
    """A text-to-image model as evaluation sees it; D = width of CLIP's embeddings.

    Attributes:
        encode_image: uint8 [N,H,W,3] -> [N,D]. encode_text: N captions -> [N,D]. Both of unit norm.
        make_embeds: N prompts and N seeds -> the prior's image embeddings [N,D].
        generate: N prompts and N seeds -> N pictures.
        decode: N image embeddings [N,D], N prompts and N seeds -> N pictures of these embeddings, the prior left out.
        fingerprint: of all weights; clip_fingerprint: of CLIP's.
        settings: steps, guidance and the like, as the report shows them.
    """

    encode_image: Callable[[np.ndarray], Tensor]
    encode_text: Callable[[Sequence[str]], Tensor]
    make_embeds: Callable[[Sequence[str], Sequence[int]], Tensor]
    generate: Generate
    decode: Callable[[Tensor, Sequence[str], Sequence[int]], Sequence[Image.Image]]
    fingerprint: str
    clip_fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)

    def stamp(self, size: int) -> dict[str, Any]:
        """What a picture of `size` pixels depends on besides prompt and seed; see `draw_pictures`."""
        return {**self.settings, "model": self.fingerprint, "size": size}


@dataclass(frozen=True, kw_only=True)
class Manipulator:
    """A model's manipulations of pictures as evaluation sees them; pictures are uint8 [N,H,W,3].

    Attributes:
        vary: N pictures and N seeds -> N variations; takes eta, noise and steps as the pipeline does.
        diff: N pictures, source prompts (None to redraw), target prompts and seeds -> N pictures; takes theta, via and
            noise.
        fingerprint: of all weights. settings: of every call.
    """

    vary: Callable[..., Sequence[Image.Image]]
    diff: Callable[..., Sequence[Image.Image]]
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Which pictures are drawn; the same number and seed give the same prompts in every evaluation.

    Attributes:
        prompts: pictures to draw, over all splits. size: their side in pixels.
    """

    LEAST: ClassVar[dict[str, int]] = {"prompts": 1, "seed": 0, "size": 1, "batch_size": 1}

    prompts: int = 200
    seed: int = 0
    size: int = 256
    batch_size: int = 8
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in self.LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """What is asked of an emoji model, and how much of it; no `prompts` leave that part out.

    Attributes:
        queries: captions of each split for retrieval; prior_queries: embeddings of each split made by the
        prior.
        grid: pictures of each split in its grid: the first of the seeded list, good or bad.
        varied: seen prompts that are drawn from other seeds too, to see how varied their pictures are.
        relations: composed scenes to draw.
    """

    LEAST: ClassVar[dict[str, int]] = {
        **Drawing.LEAST, "prompts": 0, "queries": 1, "prior_queries": 1, "grid": 0, "varied": 0,
        "relations": 0,
    }  # fmt: skip

    queries: int = 1000
    prior_queries: int = 200
    grid: int = 24
    varied: int = 10
    relations: int = 40


def clip_features(model: Model) -> Features:
    """CLIP's embeddings of pictures, of unit norm, as what to keep of all real ones."""
    return Features(
        "eval-clip.safetensors",
        model.clip_fingerprint,
        lambda pictures: F.normalize(model.encode_image(np.stack(pictures)).float().cpu(), dim=-1),
    )


def real_embeds(data: Pictures, model: Model, cache: Path, progress: bool = True) -> Tensor:
    """CLIP's embeddings of all real pictures -> [N,D], unit norm; kept in `cache`."""
    return features_of_all(data, [clip_features(model)], cache, JUDGED_AT, progress)[0]


def encode_texts(model: Model, texts: Sequence[str]) -> Tensor:
    """CLIP's embeddings of N captions -> [N,D], unit norm, on the CPU."""
    parts = [model.encode_text(texts[i : i + EMBED_BATCH]) for i in range(0, len(texts), EMBED_BATCH)]
    return F.normalize(torch.cat(parts).float().cpu(), dim=-1)
