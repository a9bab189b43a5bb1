"""Diffusion prior p(z_i | y): image embedding from a caption (unCLIP §2.2), by the paper's transformer.

The network predicts z_i itself by mean squared error, in the space where each dimension has unit variance; the text is
replaced by the encoding of "" 10 % of the time, for guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from unclip.diffusion import Denoiser, DiscreteSchedule, SimpleLoss, add_noise, denoise, initial_noise
from unclip.errors import UserError
from unclip.models import DiffusionPrior

from ..config import TrainConfig
from .base import Batch, normal_like
from .captions import CaptionOptions, CaptionTask, text_of
from .embedded import EmbeddedPictures, load_clip


@dataclass(frozen=True, kw_only=True)
class PriorOptions(CaptionOptions):
    """Options of the diffusion prior's task."""

    drop_text: float = 0.1  # probability that a caption becomes ""
    noises: int = 1  # noised z_i for each caption, whose tokens are computed once for all of them
    time_skew: float = 1.0  # of the training times; above 1 more of them are noisy (see DiscreteSchedule)
    sampling_steps: int = 16  # of the samples drawn at each validation

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        super().__post_init__()
        if self.noises < 1:
            raise UserError(f"task.noises: expected at least 1, got {self.noises}")
        if not self.time_skew > 0:
            raise UserError(
                f"task.time_skew: expected a positive number, 1 for uniform times, got {self.time_skew}"
            )


class PriorTask(CaptionTask):
    """Trains `DiffusionPrior` on cached embeddings."""

    name = "prior"
    Options = PriorOptions
    model: DiffusionPrior

    def __init__(self, config: TrainConfig) -> None:
        if config.clip is None:
            raise UserError('the prior needs clip=DIR, the CLIP of the cache, to encode the empty caption ""')
        clip = load_clip(config.clip)
        super().__init__(config, clip)
        self.clip = clip
        self._empty = clip.encode_text([""])
        D, C = self.data.embed_dim, self.data.token_dim
        if (self._empty.embeds.shape[1], self._empty.tokens.shape[2]) != (D, C):
            raise UserError(
                f"clip={config.clip} has embeddings of {self._empty.embeds.shape[1]} and states of "
                f"{self._empty.tokens.shape[2]}, the cache of {D} and {C}: give the CLIP that made the cache"
            )
        self.schedule = DiscreteSchedule.cosine(skew=self.options.time_skew)
        self.measure = SimpleLoss(target="sample")
        self.model.set_embed_statistics(*self.data.statistics())

    @classmethod
    def network(cls) -> Callable[..., DiffusionPrior]:
        return DiffusionPrior

    def network_arguments(self, data: EmbeddedPictures) -> dict[str, Any]:
        """Those of every prior, and what the network is trained to predict."""
        trained_for = {"schedule": "cosine", "prediction_type": "sample", "time_scale": 1.0}
        return super().network_arguments(data) | trained_for

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """As of every prior; a share of the captions is replaced by ""."""
        batch = super().draw(n, rng)
        return self._drop(batch, torch.from_numpy(rng.random(n) < self.options.drop_text))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Squared error of z_i in the scaled space, at `noises` times for each; logs its cosine to the true one."""
        n = self.options.noises
        z = batch["image_embeds"].repeat_interleave(n, dim=0)
        x0 = self.model.normalize(z)
        t = self.schedule.sample_t(len(batch["image_embeds"]), generator, each=n)
        noise = normal_like(x0, generator)
        denoiser = Denoiser(model, self.schedule, "sample")
        prediction, _ = denoiser.predict(
            add_noise(x0, noise, *self.schedule.alpha_sigma(t)), t, text_of(batch)
        )
        losses = self.measure.of_prediction(denoiser, prediction, x0, t, noise)
        made = self.model.denormalize(prediction.detach())
        return losses | {"cosine": F.cosine_similarity(made, z).mean()}

    def generate(self, model: DiffusionPrior, text: Batch, generators: list[torch.Generator]) -> Tensor:
        """One image embedding [B, D] for each caption, without guidance."""
        scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        x = denoise(
            Denoiser(model, self.schedule, "sample"),
            scheduler,
            initial_noise((len(generators), self.data.embed_dim), generators, text["text_mask"].device),
            cond=model.prefix(**text),
            num_inference_steps=self.options.sampling_steps,
        )
        return model.denormalize(x)

    def _drop(self, batch: Batch, drop: Tensor) -> Batch:
        """The captions of the rows `drop` [B] replaced by ""."""
        states, mask = batch["text_tokens"], batch["text_mask"]
        length = self._empty.mask.shape[1]
        missing = max(0, length - mask.shape[1])
        states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        states[drop], mask[drop] = 0.0, False
        states[drop, :length], mask[drop, :length] = self._empty.tokens[0], self._empty.mask[0]
        embeds = torch.where(drop[:, None], self._empty.embeds, batch["text_embeds"])
        return batch | {"text_tokens": states, "text_mask": mask, "text_embeds": embeds}
