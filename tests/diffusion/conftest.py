"""Analytic truth: for Gaussian data N(mean, std²) the best network of every schedule and type is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unclip.diffusion import Denoiser, Schedule, from_x0, make_schedule


@dataclass(frozen=True)
class GaussianData:
    """N(mean, std²) in each dimension, and what is known of it in closed form."""

    mean: float = 0.4
    std: float = 0.3

    def x0(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def flow(self, x_t: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
        """Where the probability-flow ODE carries x_t: quantiles stay quantiles."""
        z = (x_t - start[0] * self.mean) / torch.hypot(start[0] * self.std, start[1])
        return end[0] * self.mean + torch.hypot(end[0] * self.std, end[1]) * z

    def network(self, schedule: Schedule, prediction_type: str) -> Callable[..., Tensor]:
        """The network that training would end at."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level.reshape(-1, *(1,) * (x.ndim - 1)) for level in schedule.alpha_sigma(t))
            return from_x0(prediction_type, self.x0(x, alpha, sigma), x, *schedule.alpha_sigma(t))

        return predict

    def denoiser(self, schedule: str = "linear", prediction_type: str = "epsilon") -> Denoiser:
        made = make_schedule(schedule)
        return Denoiser(self.network(made, prediction_type), made, prediction_type)


@pytest.fixture
def gaussian() -> GaussianData:
    return GaussianData()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
