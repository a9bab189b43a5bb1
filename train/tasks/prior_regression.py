"""Regression prior: z_i from a caption in one pass (Kandinsky's linear prior, arXiv 2310.03502; ECLIPSE, 2312.04655).

The linear map is fitted in closed form. What the transformer adds is trained by ECLIPSE's loss: squared error of z_i,
and a contrastive term, for which the prediction has to be nearer to its own caption's z_t than to the batch's others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models import RegressionPrior

from ..config import TrainConfig
from .base import Batch
from .captions import CaptionOptions, CaptionTask, text_of
from .embedded import indices_of

TEMPERATURE = 0.07  # of the contrastive term; where CLIP's begins


@dataclass(frozen=True, kw_only=True)
class RegressionOptions(CaptionOptions):
    """Options of the regression prior's task."""

    contrastive_weight: float = 0.2  # beside the squared error

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        super().__post_init__()
        if not self.contrastive_weight >= 0:
            raise UserError(f"task.contrastive_weight: expected at least 0, got {self.contrastive_weight}")


class RegressionPriorTask(CaptionTask):
    """Trains `RegressionPrior` on cached embeddings; with `model.layers=0` and `steps=0` the linear map is all."""

    name = "prior-regression"
    Options = RegressionOptions
    model: RegressionPrior

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        pictures, captions = (indices_of(each) for each in self.pairs())
        self.model.set_embed_statistics(*self.data.statistics())
        self.model.fit_linear(self.text_embeds[captions], self.data.image_embeds[pictures])

    @classmethod
    def network(cls) -> Callable[..., RegressionPrior]:
        return RegressionPrior

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Squared error in the scaled space and the contrastive term; logs both and the cosine to the true z_i."""
        z = batch["image_embeds"]
        prediction = model(**text_of(batch))
        error = F.mse_loss(prediction, self.model.normalize(z))
        made = F.normalize(self.model.denormalize(prediction), dim=-1)
        contrastive = contrastive_loss(made, batch["text_embeds"])
        return {
            "loss": error + self.options.contrastive_weight * contrastive,
            "error": error.detach(),
            "contrastive": contrastive.detach(),
            "cosine": F.cosine_similarity(made.detach(), z).mean(),
        }


def contrastive_loss(z: Tensor, z_t: Tensor) -> Tensor:
    """How poorly each z [B, D] tells its own caption from the others by z · z_t / τ; both of unit norm (ECLIPSE §3.2).

    L = -1/B Σ_i log( exp(z_i · z_t,i / τ) / Σ_j exp(z_i · z_t,j / τ) ), from images to texts alone.
    """
    logits = z @ z_t.T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device))
