"""What the tasks of all priors share: captions with the z_i of their pictures, and how close a sample comes to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unclip.clip import FrozenCLIP, TextEncoding
from unclip.clip.things import PLACES

from ..config import TrainConfig
from .base import Batch
from .embedded import EmbeddedPictures, EmbeddedTask, SceneOptions, indices_of

CAPTIONS = 3  # of each picture, where something is fitted in closed form


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(SceneOptions):
    """Options of every prior's task."""

    held_out: int = 256


class CaptionTask(EmbeddedTask):
    """Trains a prior on cached embeddings; subclasses give `network`, `loss` and `generate`."""

    Options = CaptionOptions
    model: Any

    def __init__(self, config: TrainConfig, clip: FrozenCLIP | None = None) -> None:
        """With `clip`, that of `config.clip` if it is loaded already."""
        super().__init__(config)
        self.data = EmbeddedPictures(
            config, self.options.held_out, config.model["max_tokens"], self.options, clip
        )
        self.text_embeds = torch.as_tensor(self.data.cache.text_embeds).float()
        self.model = self.network()(**config.model, **self.network_arguments(self.data))

    @classmethod
    def network(cls) -> Callable[..., Any]:
        raise NotImplementedError

    def network_arguments(self, data: EmbeddedPictures) -> dict[str, Any]:
        """The arguments of the network that follow from the data or the objective."""
        return {"embed_dim": data.embed_dim, "token_dim": data.token_dim}

    def generate(self, model: Any, text: Batch, generators: list[torch.Generator]) -> Tensor:
        """One image embedding [B, D] for each caption, on its device; generators on the CPU."""
        return model.sample(encoding_of(text), generators)

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """z_i [n, D] with a caption's states [n, L, C], mask [n, L] and embedding z_t [n, D]."""
        return self._samples(*self.data.draw(n, rng))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices of all pictures trained on, `CAPTIONS` times, and of a caption of each."""
        pictures = np.tile(self.data.sampling.trained, CAPTIONS)
        return pictures, self.data.draw_captions(pictures, np.random.default_rng(self.config.seed))

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """Samples for held-out captions against the true z_i.

        "cosine" of one sample to the truth (beside that of the mean embedding and of z_t, which a useful prior beats),
        and "top1": how often the true z_i is the nearest of all held-out ones.
        """
        if len(self.data.sampling.held_out) == 0:
            return {}
        batch = self.held_out(next(model.buffers()).device)
        z = batch.pop("image_embeds")
        generators = [torch.Generator().manual_seed(i) for i in range(len(z))]
        made = F.normalize(self.generate(model, batch, generators), dim=-1)
        nearest = (made @ z.T).argmax(dim=1)
        mean: Any = model.embed_mean
        return {
            "cosine": float(F.cosine_similarity(made, z).mean()),
            "cosine_of_mean": float(F.cosine_similarity(mean.expand_as(z), z).mean()),
            "cosine_of_text": float(F.cosine_similarity(batch["text_embeds"], z).mean()),
            "top1": float((nearest == torch.arange(len(z), device=z.device)).float().mean()),
        }

    def held_out(self, device: torch.device) -> Batch:
        """All samples held out, with one caption each, always the same."""
        held_out = self.data.sampling.held_out
        captions = self.data.draw_captions(held_out, np.random.default_rng(0))
        return {key: value.to(device) for key, value in self._samples(held_out, captions).items()}

    def _samples(self, indices: np.ndarray, captions: np.ndarray) -> Batch:
        return {
            "image_embeds": self.data.image_embeds[indices_of(indices)],
            "text_embeds": self.text_embeds[indices_of(captions)],
            **self.data.text(captions),
        }


def encoding_of(text: Batch) -> TextEncoding:
    """The captions of a batch as a CLIP would give them."""
    B, D = text["text_embeds"].shape
    nothing = text["text_embeds"].new_zeros(B, len(PLACES), D)
    return TextEncoding(text["text_embeds"], text["text_tokens"], text["text_mask"], nothing)


def text_of(batch: Batch) -> Batch:
    """A batch without its image embeddings: the arguments of a network's `prefix`."""
    return {key: value for key, value in batch.items() if key != "image_embeds"}
