"""Upsamplers p(x_high | x_low), unconditional, trained on crops (unCLIP §2.1, appendix C).

The low-resolution picture is the area mean of the high one, then blurred and noised: as at sampling time it is not
the true one but what the stage before made. `noise_level` is an upper bound that the network is told: the blur and
the noise are drawn between nothing and that level, so a picture cleaner than its level says is no surprise either.
Where that stage is an upsampler itself (`before`), a share of the small pictures is what it makes of still smaller
ones: its own softness and mistakes, at any level.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

from unclip.data.degradations import down, gaussian_blur
from unclip.data.images import on_background
from unclip.data.render import render_svg, require_renderer
from unclip.diffusion import Denoiser, FlowSchedule, SharpLoss, denoise, initial_noise
from unclip.errors import UserError
from unclip.models import Upsampler
from unclip.models.saved import load_network

from ..config import TrainConfig
from ..pictures import grid, load_thumbnails, random_background, to_pixels, to_uint8
from .base import Batch, Task, normal_like
from .embedded import Sampling, load_pictures


@dataclass(frozen=True, kw_only=True)
class UpsamplerOptions:
    """Options of the upsamplers' task. Shares are probabilities per sample."""

    crop: int = 128  # side of the high-resolution crop, pixels
    crops_per_picture: int = 2  # crops of one picture in a batch: decoding is shared
    background_share: float = 0.3  # a random background instead of white
    before: str | None = None  # folder of the upsampler whose pictures this one is to enlarge
    before_share: float = 0.5  # small pictures that are made by it
    before_steps: int = 1
    clean_share: float = 0.25  # noise level 0; the others get a uniform one
    max_blur: float = 1.0  # sigma at noise level 1, in low-resolution pixels
    max_noise: float = 0.1  # standard deviation at noise level 1, pixels lying in [-1, 1]
    time_mean: float = 0.0  # of the logit-normal training times
    time_std: float = 1.0
    min_sigma: float = 0.05
    l1_weight: float = 0.0  # weight of the absolute error of the predicted picture
    held_out: int = 64
    pictures: int = 8  # shown at each validation
    picture_steps: int = 8
    skip_styles: tuple[str, ...] = ()  # styles that are too slow to render

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        if not 0 <= self.before_share <= 1:
            raise UserError(f"task.before_share: expected a share from 0 to 1, got {self.before_share}")
        if self.before_steps < 1:
            raise UserError(f"task.before_steps: expected at least 1, got {self.before_steps}")


class UpsamplerTask(Task):
    """Trains `Upsampler`; subclasses say where a high-resolution crop comes from."""

    Options = UpsamplerOptions
    resolution: ClassVar[int]  # side of a whole high-resolution picture
    model: Upsampler

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        factor = config.model["factor"]
        if self.options.crop % factor or self.options.crop > self.resolution:
            raise UserError(
                f"task.crop: expected a multiple of {factor} up to {self.resolution}, got {self.options.crop}"
            )
        self.before = self._load_before()
        self.pictures = load_pictures(config)
        count = min(config.limit or len(self.pictures), len(self.pictures))
        usable = np.array([self.can_crop(i) for i in range(count)], dtype=bool)
        if not usable.any():
            raise UserError(f"no picture of {config.data} serves {self.name}: build data with more sources")
        weights = np.where(usable, self.pictures.weights[:count], 0.0)
        self.sampling = Sampling(weights, config, self.options.held_out)
        # Small copies tell where in a picture there is something to see.
        self.thumbnails = load_thumbnails(self.pictures, 64, config.limit)
        self.schedule = FlowSchedule(self.options.time_mean, self.options.time_std)
        self.measure = SharpLoss(min_sigma=self.options.min_sigma, l1_weight=self.options.l1_weight)
        self.model = Upsampler(**config.model, schedule="flow", prediction_type="sample", time_scale=1000.0)

    @classmethod
    def network(cls) -> type[nn.Module]:
        return Upsampler

    def _load_before(self) -> Upsampler | None:
        if self.options.before is None:
            return None
        try:
            before: Upsampler = load_network(Upsampler, self.options.before).eval()
        except UserError as error:
            raise UserError(f"task.before={self.options.before}: {error}") from error
        trained = (before.config.schedule, before.config.prediction_type)
        if trained != ("flow", "sample"):
            raise UserError(
                f"task.before: expected an upsampler of schedule flow that predicts sample, got {trained}"
            )
        whole = self.config.model["factor"] * before.factor
        if self.options.crop % whole:
            raise UserError(
                f"task.crop: expected a multiple of {whole} with task.before, got {self.options.crop}"
            )
        return before

    def can_crop(self, index: int) -> bool:
        """Whether crops can be taken from a picture."""
        return self.pictures.records[index]["style"] not in self.options.skip_styles

    @abstractmethod
    def crops(self, index: int, places: list[tuple[int, int]]) -> list[np.ndarray]:
        """Crops of a picture at (left, top), in pixels of `resolution`: uint8 [crop, crop, 4] each.

        Raises:
            ValueError: the picture cannot be drawn.
        """

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """High-resolution crops [n, 3, c, c] uint8, corrupted low ones [n, 3, c/f, c/f] in [-1, 1], noise level [n]."""
        rgba: list[np.ndarray] = []
        failures = 0
        while len(rgba) < n:
            index = int(self.sampling.draw(1, rng)[0])
            places = [
                self._place(index, rng) for _ in range(min(self.options.crops_per_picture, n - len(rgba)))
            ]
            try:
                rgba += self.crops(index, places)
                failures = 0
            except UserError:  # also a ValueError, but no other picture would help
                raise
            except ValueError as error:
                failures += 1  # a few pictures cannot be drawn at this size
                if failures > 100:
                    raise UserError(f"100 pictures in a row cannot be drawn, the last: {error}") from error
        high = torch.from_numpy(np.stack([self._on_background(crop, rng) for crop in rgba])).permute(
            0, 3, 1, 2
        )
        level = np.where(rng.random(n) < self.options.clean_share, 0.0, rng.random(n)).astype(np.float32)
        return {
            "pictures": high.contiguous(),
            "low_res": self._corrupt(self._made_before(self._low(high), rng), level, rng),
            "noise_level": torch.from_numpy(level),
        }

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """v-weighted squared error of the predicted picture, plus its absolute error."""
        x0 = to_pixels(batch["pictures"])
        condition = {key: batch[key] for key in ("low_res", "noise_level")}
        t = self.schedule.sample_t(len(x0), generator)
        noise = normal_like(x0, generator)
        return self.measure(Denoiser(model, self.schedule, "sample"), x0, t, noise, condition)

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """PSNR (dB) of held-out crops against that of bicubic enlargement; low, bicubic, made and true side by side."""
        device = next(model.parameters()).device
        high = self._held_out_crops().to(device)
        if len(high) == 0:
            return {}
        x0 = to_pixels(high)
        low = self._low(high)
        generators = [torch.Generator(device).manual_seed(i) for i in range(len(x0))]
        noise = initial_noise(tuple(x0.shape), generators, device)
        made = self._enlarge(model, low, noise, self.options.picture_steps)
        bicubic = F.interpolate(low, scale_factor=float(x0.shape[-1] // low.shape[-1]), mode="bicubic")
        nearest = F.interpolate(low, size=x0.shape[-2:])
        shown = torch.stack([to_uint8(nearest), to_uint8(bicubic), to_uint8(made), high], dim=1)
        return {
            "psnr": psnr(made, x0),
            "psnr_bicubic": psnr(bicubic, x0),
            "pictures": grid(shown[: self.options.pictures].flatten(0, 1), columns=4),
        }

    def describe(self) -> dict[str, Any]:
        """How many pictures there are."""
        return {"pictures": len(self.sampling.trained), "held_out": len(self.sampling.held_out)}

    def _place(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Left and top of a crop around a visible point, aligned to the pixels of all smaller resolutions."""
        crop = self.options.crop
        factor = self.config.model["factor"] * (self.before.factor if self.before else 1)
        alpha = self.thumbnails[index, :, :, 3]
        visible = np.flatnonzero(alpha > 128)
        spot = int(rng.choice(visible)) if len(visible) else int(rng.integers(alpha.size))
        scale = self.resolution / len(alpha)
        corner = []
        for centre in (spot % len(alpha), spot // len(alpha)):
            shift = rng.uniform(-0.5, 0.5) * crop / 2
            start = np.clip(centre * scale + shift - crop / 2, 0, self.resolution - crop)
            corner.append(int(start) // factor * factor)
        return corner[0], corner[1]

    def _on_background(self, rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.options.background_share:
            return on_background(rgba)
        return on_background(rgba, random_background(len(rgba), rng))

    def _low(self, high: Tensor) -> Tensor:
        """[n, 3, c, c] uint8 -> area mean [n, 3, c/f, c/f] in [-1, 1]."""
        return down(to_pixels(high), self.config.model["factor"])

    @torch.no_grad()
    def _made_before(self, low: Tensor, rng: np.random.Generator) -> Tensor:
        """A share of the small pictures as the stage before makes them of their area means."""
        if self.before is None:
            return low
        chosen = torch.from_numpy(rng.random(len(low)) < self.options.before_share)
        if not chosen.any():
            return low
        noise = torch.from_numpy(rng.standard_normal(low[chosen].shape, dtype=np.float32))
        low = low.clone()
        low[chosen] = self._enlarge(
            self.before, down(low[chosen], self.before.factor), noise, self.options.before_steps
        )
        return low

    def _enlarge(self, model: nn.Module, low: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Enlarged pictures [n, 3, H, W] of low ones, which are told to be undamaged, from noise [n, 3, H, W]."""
        return denoise(
            Denoiser(model, self.schedule, "sample"),
            FlowMatchEulerDiscreteScheduler(),
            noise,
            cond={"low_res": low, "noise_level": low.new_zeros(len(low))},
            num_inference_steps=steps,
            clip_range=1.0,
        )

    def _corrupt(self, low: Tensor, level: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Blur and noise, each of a strength between nothing and what `level` [n] allows."""
        allowed = torch.from_numpy(level)
        blur = allowed * torch.from_numpy(rng.random(len(level), dtype=np.float32)) * self.options.max_blur
        noise = allowed * torch.from_numpy(rng.random(len(level), dtype=np.float32)) * self.options.max_noise
        grain = torch.from_numpy(rng.standard_normal(low.shape, dtype=np.float32))
        return (gaussian_blur(low, blur) + noise[:, None, None, None] * grain).clamp(-1, 1)

    def _held_out_crops(self) -> Tensor:
        """One crop on white of each held-out picture that can be drawn, always the same: [n, 3, c, c] uint8."""
        rng = np.random.default_rng(0)
        crops = []
        for index in self.sampling.held_out:
            place = self._place(index, rng)
            try:
                crops += self.crops(int(index), [place])
            except ValueError:
                continue
        if not crops:
            return torch.empty(0, 3, self.options.crop, self.options.crop, dtype=torch.uint8)
        return torch.from_numpy(on_background(np.stack(crops))).permute(0, 3, 1, 2).contiguous()


class Upsampler256Task(UpsamplerTask):
    """64 -> 256: crops of the stored pictures."""

    name = "upsampler-256"
    resolution = 256

    def crops(self, index: int, places: list[tuple[int, int]]) -> list[np.ndarray]:
        picture = self.pictures.rgba(index, self.resolution)
        size = self.options.crop
        return [picture[top : top + size, left : left + size] for left, top in places]


class Upsampler1024Task(UpsamplerTask):
    """256 -> 1024: crops drawn from the SVG at that resolution; pictures without one are left out."""

    name = "upsampler-1024"
    resolution = 1024

    def __init__(self, config: TrainConfig) -> None:
        require_renderer()  # here, not in a worker that draws batches
        super().__init__(config)

    def can_crop(self, index: int) -> bool:
        return super().can_crop(index) and self.pictures.svg(index) is not None

    def crops(self, index: int, places: list[tuple[int, int]]) -> list[np.ndarray]:
        svg = self.pictures.svg(index)
        if svg is None:
            raise ValueError(f"picture {index} has no SVG")
        size, whole = self.options.crop, self.resolution
        return [render_svg(svg, size, (left / whole, top / whole, size / whole)) for left, top in places]


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1], mean over the batch."""
    error = ((made.clamp(-1, 1) - true) ** 2).flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * torch.log10(4 / error)).mean())
