"""Decoder p(x | z_i, y) at the base resolution (unCLIP §2.1).

Flow-matching path, x_0-prediction, error measured on the velocity (JiT, 2511.13720). For guidance z_i is dropped 10 %
of the time and the caption 50 %; a random share of noise in z_i makes the decoder robust to a prior's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion import (
    Denoiser,
    FlowSchedule,
    Guided,
    SharpLoss,
    SimpleLoss,
    classifier_free,
    denoise,
    initial_noise,
)
from unclip.errors import UserError
from unclip.models import Decoder

from ..config import TrainConfig
from ..pictures import grid, thumbnails_on_white, to_pixels, to_uint8
from .base import Batch, normal_like
from .embedded import EmbeddedPictures, EmbeddedTask, SceneOptions, indices_of


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(SceneOptions):
    """Shares are probabilities per sample."""

    embeds: str = "image"  # what it decodes; "text": z_t, for a decoder without a prior (unCLIP §5.1)
    drop_image: float = 0.1
    drop_text: float = 0.5
    clean_share: float = 0.5  # z_i without noise; the others get a uniform noise level
    time_mean: float = 0.0  # of the logit-normal training times
    time_std: float = 1.0
    min_sigma: float = 0.05
    l1_weight: float = 0.0  # weight of the absolute error of the predicted picture
    held_out: int = 128
    pictures: int = 32  # drawn at each validation
    picture_steps: int = 20
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        super().__post_init__()
        if self.embeds not in ("image", "text"):
            raise UserError(f"task.embeds: expected image or text, got {self.embeds!r}")


class DecoderTask(EmbeddedTask):
    """Trains `Decoder` on thumbnails on white, all in memory as uint8, and on scenes, painted when they are drawn."""

    name = "decoder"
    Options = DecoderOptions
    model: Decoder

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        arguments = dict(config.model)
        self.data = EmbeddedPictures(
            config, self.options.held_out, arguments["max_text_tokens"], self.options
        )
        self.model = Decoder(
            **arguments,
            embed_dim=self.data.embed_dim,
            token_dim=self.data.token_dim,
            schedule="flow",
            prediction_type="sample",
            time_scale=1000.0,
        )
        self.thumbnails = thumbnails_on_white(self.data.pictures, arguments["sample_size"], config.limit)
        self._fit()
        self.schedule = FlowSchedule(self.options.time_mean, self.options.time_std)
        self.measure = SharpLoss(min_sigma=self.options.min_sigma, l1_weight=self.options.l1_weight)

    @classmethod
    def network(cls) -> type[nn.Module]:
        return Decoder

    def load(self, path: Path) -> None:
        """Weights of a decoder; those that learned of z_i know nothing of the scale of z_t, which is fitted anew."""
        super().load(path)
        if self.options.embeds == "text":
            self._fit()

    def _fit(self) -> None:
        """What of the network follows from the embeddings and pictures in closed form."""
        trained = self.data.sampling.trained
        z = self._embeds(trained, self.data.draw_captions(trained, np.random.default_rng(0))).float()
        statistics = self.data.statistics() if self.options.embeds == "image" else (z.mean(0), z.std(0))
        self.model.set_embed_statistics(*statistics)
        # In parts: all pictures at once would fill gigabytes as floating point numbers.
        side = self.model.draft_size
        parts = indices_of(trained).split(1024)
        pooled = [F.adaptive_avg_pool2d(to_pixels(self.thumbnails[part]), side) for part in parts]
        self.model.fit_draft(z, torch.cat(pooled))

    def _embeds(self, indices: np.ndarray, captions: np.ndarray) -> Tensor:
        """What the decoder is to decode, [n, D]: z_i of samples, or z_t of a caption of each."""
        if self.options.embeds == "image":
            return self.data.image_embeds[indices_of(indices)]
        return torch.as_tensor(self.data.cache.text_embeds)[indices_of(captions)].float()

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """Pictures [n, 3, S, S] uint8, z_i [n, D], caption states and mask, noise level of z_i, what to drop."""
        indices, captions = self.data.draw(n, rng)
        level = np.where(rng.random(n) < self.options.clean_share, 0.0, rng.random(n))
        return {
            **self._samples(indices, captions),
            "noise_level": torch.from_numpy(level.astype(np.float32)),
            "drop_image": torch.from_numpy(rng.random(n) < self.options.drop_image),
            "drop_text": torch.from_numpy(rng.random(n) < self.options.drop_text),
        }

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """v-weighted error of the predicted picture."""
        x0 = to_pixels(batch["pictures"])
        z = batch["image_embeds"]
        noised = self.model.noise_image_embeds(z, batch["noise_level"], normal_like(z, generator))
        condition = {key: value for key, value in batch.items() if key != "pictures"} | {
            "image_embeds": noised
        }
        t = self.schedule.sample_t(len(x0), generator)
        denoiser = Denoiser(model, self.schedule, "sample")
        return self.measure(denoiser, x0, t, normal_like(x0, generator), condition)

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """Loss on held-out samples at fixed times, and pictures made from held-out z_i below the real ones."""
        device = next(model.parameters()).device
        held_out = self.data.sampling.held_out
        if len(held_out) == 0:
            return {}
        rng = np.random.default_rng(0)
        samples = self._samples(held_out, self.data.draw_captions(held_out, rng))
        samples = {key: value.to(device) for key, value in samples.items()}
        count = min(self.options.pictures, len(held_out))
        real = samples.pop("pictures")
        made = self._generate(model, {key: value[:count] for key, value in samples.items()})
        pairs = torch.stack([to_uint8(made), real[:count]], dim=1).flatten(0, 1)
        return {
            "loss": self._held_out_loss(model, to_pixels(real), samples),
            "pictures": grid(pairs, columns=16),
        }

    def _held_out_loss(self, model: nn.Module, x0: Tensor, condition: Batch) -> float:
        """Mean over held-out pictures, each at a time of its own (evenly spread), with clean z_i and the caption."""
        generator = torch.Generator(x0.device).manual_seed(0)
        t = self.schedule.training_time((torch.arange(len(x0), device=x0.device) + 0.5) / len(x0))
        denoiser = Denoiser(model, self.schedule, "sample")
        measure = SimpleLoss("flow", self.options.min_sigma)  # comparable whatever else is trained for
        noise = normal_like(x0, generator)
        total = 0.0
        for part in torch.arange(len(x0), device=x0.device).split(32):
            rows = {key: value[part] for key, value in condition.items()}
            clean = {"noise_level": torch.zeros(len(part), device=x0.device)}
            total += float(measure(denoiser, x0[part], t[part], noise[part], rows | clean)["loss"]) * len(
                part
            )
        return total / len(x0)

    def _generate(self, model: nn.Module, condition: Batch) -> Tensor:
        """Pictures [B, 3, S, S] from clean z_i and captions, with guidance against neither."""
        z = condition["image_embeds"]
        keep = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        condition = condition | {
            "noise_level": torch.zeros(len(z), device=z.device),
            "drop_image": keep,
            "drop_text": keep,
        }
        guided = Guided(
            Denoiser(model, self.schedule, "sample"),
            classifier_free(self.options.guidance_scale),
            {"drop_image": ~keep, "drop_text": ~keep},
        )
        size = self.config.model["sample_size"]
        generators = [torch.Generator(z.device).manual_seed(i) for i in range(len(z))]
        noise = initial_noise((len(z), 3, size, size), generators, z.device)
        return denoise(
            guided,
            FlowMatchEulerDiscreteScheduler(),
            noise,
            cond=condition,
            num_inference_steps=self.options.picture_steps,
            clip_range=1.0,
        )

    def _pictures(self, indices: np.ndarray) -> Tensor:
        """Pictures [n, 3, S, S] uint8 of samples; scenes are painted when they are drawn."""
        count, _, _, size = self.thumbnails.shape
        found = self.thumbnails[indices_of(indices).clamp(max=count - 1)]
        for place, scene in self.data.composed(indices, size).items():
            found[place] = torch.from_numpy(np.array(scene)).permute(2, 0, 1)
        return found

    def _samples(self, indices: np.ndarray, captions: np.ndarray) -> Batch:
        return {
            "pictures": self._pictures(indices),
            "image_embeds": self._embeds(indices, captions),
            **self.data.text(captions),
        }
