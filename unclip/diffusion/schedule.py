"""Noise schedules: functions t -> (alpha_t, sigma_t) of the forward process x_t = alpha_t x_0 + sigma_t eps.

A schedule names noise levels. What a level *means* is its signal-to-noise ratio alpha/sigma alone: scaling
the pair only scales x_t. So every schedule can answer which of its times has a given ratio (`time_of`), and a
network that was trained on one schedule can be asked about the x_t of any other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unclip.errors import UserError

# log(alpha/sigma) beyond this is noise alone, or signal alone, to single precision (zero terminal SNR has
# -inf).
MAX_LOG_SNR = 20.0
ROUNDING = 2e4  # of a chain's times, in units of the last place of their levels


class Schedule(ABC):
    """A noise schedule. `t_max` is the noisiest time; the least noisy one is 0."""

    t_max: float

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at times `t`, both shaped like `t`, in its dtype (at least float32)."""

    @abstractmethod
    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The time whose ratio alpha/sigma is the given one, within [0, t_max]; shaped like `alpha`.

        The pair may have any common scale, and one of the two may be 0 (pure noise, clean data).
        """

    @abstractmethod
    def training_time(self, quantile: Tensor) -> Tensor:
        """The time below which a share `quantile` in [0, 1] of the training times lies; shaped like it."""

    def sample_t(self, n: int, generator: torch.Generator | None = None, each: int = 1) -> Tensor:
        """Draw `each` training times for each of `n` samples: float32 [n · each] on the generator's device.

        They are stratified: the k-th time of a sample comes from the k-th of `each` equal shares of all times.
        """
        device = None if generator is None else generator.device
        u = torch.rand(n, each, generator=generator, device=device)
        return self.training_time(((torch.arange(each, device=device) + u) / each).flatten())

    def to_level(self, t: Tensor) -> Tensor:
        """Times as a fraction of the noisiest one, in [0, 1]."""
        return at_least_float32(t) / self.t_max


class DiscreteSchedule(Schedule):
    """The T-step chain of DDPM (2006.11239, eq. 2–4); `t` is the index 0…T-1 of a step, as a float.

    Between the indices log(alpha/sigma) is interpolated linearly.

    Args:
        betas: variances beta_1…beta_T of the forward steps, each in (0, 1].
        skew: training times have a density that grows as t^(skew - 1): uniform for 1, as in the paper; above 1 more
            of them are noisy, where a condition decides and not the data that still shines through.
    """

    betas: Tensor  # [T] float64
    alphas_cumprod: Tensor  # [T] float64, alpha-bar of DDPM = alpha_t²

    def __init__(self, betas: Tensor | Sequence[float], skew: float = 1.0) -> None:
        if not skew > 0:
            raise UserError(f"the skew of the training times must be positive, got {skew}: 1 is uniform")
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError(
                f"betas must be at least 2 numbers in (0, 1] in a row, got shape {tuple(betas.shape)} with "
                f"values from {betas.min():g} to {betas.max():g}"
            )
        self.betas = betas
        self.skew = skew
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        log_snr = 0.5 * (self.alphas_cumprod.log() - (1 - self.alphas_cumprod).log())
        self.log_snr = log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)  # [T] log(alpha/sigma), decreasing
        self.t_max = float(len(betas) - 1)

    @classmethod
    def linear(
        cls, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteSchedule:
        """Linear betas (DDPM §4)."""
        return cls(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))

    @classmethod
    def cosine(
        cls, num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999, skew: float = 1.0
    ) -> DiscreteSchedule:
        """alpha-bar(u) = cos²((u + s) / (1 + s) · pi/2), betas cut at `max_beta` (Improved DDPM, eq. 17)."""
        u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        alphas_cumprod = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta), skew)

    def __len__(self) -> int:
        return len(self.betas)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t).clamp(0, self.t_max)
        table = self.log_snr.to(t)
        below = t.floor().long().clamp(max=len(table) - 2)
        log_snr = torch.lerp(table[below], table[below + 1], t - below)
        return torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        log_snr = at_least_float32(alpha).log() - at_least_float32(sigma).log()
        table = self.log_snr.to(log_snr)
        above = torch.searchsorted(-table, -log_snr).clamp(1, len(table) - 1)
        fraction = (table[above - 1] - log_snr) / (table[above - 1] - table[above])
        t = (above - 1 + fraction).clamp(0, self.t_max)
        # A level of the chain itself, read off a table of this precision, means just that; float32 is off by 1.3e-3.
        rounding = ROUNDING * torch.finfo(t.dtype).eps
        return torch.where((t - t.round()).abs() < rounding, t.round(), t)

    def training_time(self, quantile: Tensor) -> Tensor:
        return (len(self) * quantile ** (1 / self.skew)).floor().clamp(max=self.t_max)


class FlowSchedule(Schedule):
    """The straight line alpha = 1 - t, sigma = t of flow matching (2209.03003), t in [0, 1].

    Training times are logit-normal (2403.03206, §3.1): t = sigmoid(mean + std · N(0, 1)).
    """

    t_max = 1.0

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise UserError(f"the standard deviation of the logit-normal times must be positive, got {std}")
        self.mean = mean
        self.std = std

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t).clamp(0, 1)
        return 1 - t, t

    def time_of(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        alpha, sigma = at_least_float32(alpha), at_least_float32(sigma)
        return sigma / (alpha + sigma)

    def training_time(self, quantile: Tensor) -> Tensor:
        normal = 2**0.5 * torch.erfinv(2 * quantile - 1)  # torch.special.ndtri, which not every device has
        return torch.sigmoid(self.mean + self.std * normal)


def make_schedule(name: str, **options: Any) -> Schedule:
    """The schedule that a network's config names: "linear", "cosine" or "flow", made with `options`."""
    constructors: dict[str, Callable[..., Schedule]] = {
        "linear": DiscreteSchedule.linear,
        "cosine": DiscreteSchedule.cosine,
        "flow": FlowSchedule,
    }
    if name not in constructors:
        raise UserError(f"unknown noise schedule {name!r}: choose one of {', '.join(constructors)}")
    return constructors[name](**options)


def at_least_float32(x: Tensor) -> Tensor:
    """Integers and half precision become float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
