"""Autoregressive prior p(z_i | y): the codes of z_i, one after another (unCLIP §2.2).

Trained by the cross-entropy of every code given the true ones before it. No caption is dropped: that serves guidance,
and here the token for z_i · z_t is what asks for pictures that fit their captions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unclip.models import AutoregressivePrior

from ..config import TrainConfig
from .base import Batch
from .captions import CaptionTask, text_of
from .embedded import indices_of


class AutoregressivePriorTask(CaptionTask):
    """Trains `AutoregressivePrior` on cached embeddings; the codes are fitted to them first."""

    name = "prior-ar"
    model: AutoregressivePrior

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        z = self.data.image_embeds
        pictures, captions = (indices_of(each) for each in self.pairs())
        self.model.fit_pca(z[indices_of(self.data.sampling.trained)])
        self.model.fit_pairs(z[pictures], self.text_embeds[captions])

    @classmethod
    def network(cls) -> Callable[..., AutoregressivePrior]:
        return AutoregressivePrior

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Cross-entropy in nats, the mean over all codes."""
        return {"loss": self._nats(model, batch)}

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """As of every prior, and the held-out "nats" of a code given the true ones before it."""
        figures = super().validate(model)
        if not figures:
            return {}
        return figures | {"nats": float(self._nats(model, self.held_out(next(model.buffers()).device)))}

    def _nats(self, model: nn.Module, batch: Batch) -> Tensor:
        z, z_t = batch["image_embeds"], batch["text_embeds"]
        codes = self.model.encode(z)
        logits = model(codes, self.model.similarity_code(z, z_t), **text_of(batch))
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())
