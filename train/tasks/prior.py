"""Diffusion prior p(z_i | y): image embedding from a caption (unCLIP §2.2), by the paper's transformer.

The network predicts z_i itself by mean squared error, in the space where each dimension has unit variance; the text is
replaced by the encoding of "" 10 % of the time, for guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion import Denoiser, DiscreteSchedule, SimpleLoss, add_noise, denoise, initial_noise
from unclip.errors import UserError
from unclip.models import DiffusionPrior

from ..config import TrainConfig
from .base import Batch, normal_like
from .embedded import EmbeddedPictures, EmbeddedTask, SceneOptions, indices_of, load_clip


@dataclass(frozen=True, kw_only=True)
class PriorOptions(SceneOptions):
    """Options of the prior's task."""

    drop_text: float = 0.1  # probability that a caption becomes ""
    noises: int = 1  # noised z_i for each caption, whose tokens are computed once for all of them
    time_skew: float = 1.0  # of the training times; above 1 more of them are noisy (see DiscreteSchedule)
    held_out: int = 256
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


class PriorTask(EmbeddedTask):
    """Trains `DiffusionPrior` on cached embeddings."""

    name = "prior"
    Options = PriorOptions
    model: DiffusionPrior

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        if config.clip is None:
            raise UserError('the prior needs clip=DIR, the CLIP of the cache, to encode the empty caption ""')
        self.clip = clip = load_clip(config.clip)
        self.data = EmbeddedPictures(
            config, self.options.held_out, config.model["max_tokens"], self.options, clip
        )
        self.text_embeds = torch.as_tensor(self.data.cache.text_embeds).float()
        self._empty = clip.encode_text([""])
        D, C = self.data.embed_dim, self.data.token_dim
        if (self._empty.embeds.shape[1], self._empty.tokens.shape[2]) != (D, C):
            raise UserError(
                f"clip={config.clip} has embeddings of {self._empty.embeds.shape[1]} and states of "
                f"{self._empty.tokens.shape[2]}, the cache of {D} and {C}: give the CLIP that made the cache"
            )
        self.schedule = DiscreteSchedule.cosine(skew=self.options.time_skew)
        self.measure = SimpleLoss(target="sample")
        self.model = self.network()(
            **config.model,
            **self.network_sizes(self.data),
            schedule="cosine",
            prediction_type="sample",
            time_scale=1.0,
        )
        self.model.set_embed_statistics(*self.data.statistics())

    @classmethod
    def network(cls) -> Callable[..., DiffusionPrior]:
        return DiffusionPrior

    def network_sizes(self, data: EmbeddedPictures) -> dict[str, int]:
        """The arguments of the network that follow from the data."""
        return {"embed_dim": data.embed_dim, "token_dim": data.token_dim}

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """z_i [n, D] with a caption's states [n, L, C], mask [n, L] and embedding z_t [n, D]."""
        batch = self._samples(*self.data.draw(n, rng))
        return self._drop(batch, torch.from_numpy(rng.random(n) < self.options.drop_text))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Squared error of z_i in the scaled space, at `noises` times for each; logs its cosine to the true one."""
        n = self.options.noises
        z = batch["image_embeds"].repeat_interleave(n, dim=0)
        text = {key: value for key, value in batch.items() if key != "image_embeds"}
        x0 = self.model.normalize(z)
        t = self.schedule.sample_t(len(batch["image_embeds"]), generator, each=n)
        noise = normal_like(x0, generator)
        denoiser = Denoiser(model, self.schedule, "sample")
        prediction, _ = denoiser.predict(add_noise(x0, noise, *self.schedule.alpha_sigma(t)), t, text)
        losses = self.measure.of_prediction(denoiser, prediction, x0, t, noise)
        made = self.model.denormalize(prediction.detach())
        return losses | {"cosine": F.cosine_similarity(made, z).mean()}

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """Samples for held-out captions against the true z_i.

        "cosine" of one sample to the truth (beside that of the mean embedding and of z_t, which a useful prior beats),
        and "top1": how often the true z_i is the nearest of all held-out ones.
        """
        held_out = self.data.sampling.held_out
        if len(held_out) == 0:
            return {}
        assert isinstance(model, DiffusionPrior)
        device = next(model.parameters()).device
        captions = self.data.draw_captions(held_out, np.random.default_rng(0))
        samples = {key: value.to(device) for key, value in self._samples(held_out, captions).items()}
        z = samples.pop("image_embeds")
        made = F.normalize(self._generate(model, samples, z.shape), dim=-1)
        nearest = (made @ z.T).argmax(dim=1)
        mean = model.embed_mean.expand_as(z)
        return {
            "cosine": float(F.cosine_similarity(made, z).mean()),
            "cosine_of_mean": float(F.cosine_similarity(mean, z).mean()),
            "cosine_of_text": float(F.cosine_similarity(samples["text_embeds"], z).mean()),
            "top1": float((nearest == torch.arange(len(z), device=device)).float().mean()),
        }

    def _generate(self, model: DiffusionPrior, text: Batch, shape: tuple[int, ...]) -> Tensor:
        """One image embedding [B, D] for each caption, without guidance."""
        device = text["text_mask"].device
        generators = [torch.Generator(device).manual_seed(i) for i in range(shape[0])]
        scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        x = denoise(
            Denoiser(model, self.schedule, "sample"),
            scheduler,
            initial_noise(tuple(shape), generators, device),
            cond=model.prefix(text["text_tokens"], text["text_mask"], text["text_embeds"]),
            num_inference_steps=self.options.sampling_steps,
        )
        return model.denormalize(x)

    def _samples(self, indices: np.ndarray, captions: np.ndarray) -> Batch:
        return {
            "image_embeds": self.data.image_embeds[indices_of(indices)],
            "text_embeds": self.text_embeds[indices_of(captions)],
            **self.data.text(captions),
        }

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
