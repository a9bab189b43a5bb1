"""A denoiser answers for any process, whatever its network was trained on."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import (
    PREDICTION_TYPES,
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    Posterior,
    make_schedule,
)
from unclip.diffusion.gaussian import reverse_log_variances
from unclip.errors import UserError

SCHEDULES = ("linear", "cosine", "flow")
# (alpha, sigma) of variance-preserving, flow and variance-exploding samplers.
LEVELS = torch.tensor([[0.98, 0.199], [0.6, 0.8], [0.7, 0.3], [0.2, 0.8], [1.0, 0.5], [1.0, 14.0]])


@pytest.mark.parametrize(("schedule", "prediction_type"), product(SCHEDULES, PREDICTION_TYPES))
def test_every_network_gives_the_true_x0_in_every_process(
    gaussian, schedule: str, prediction_type: str, generator: torch.Generator
) -> None:
    alpha, sigma = LEVELS.T
    x_t = torch.randn(len(LEVELS), 3, generator=generator)
    expected = gaussian.x0(x_t, alpha[:, None], sigma[:, None])
    posterior = gaussian.denoiser(schedule, prediction_type)(x_t, alpha, sigma)
    assert_close(posterior.mean, expected, rtol=1e-4, atol=1e-4)
    assert posterior.log_var is None


@pytest.mark.parametrize(("schedule", "prediction_type"), product(SCHEDULES, PREDICTION_TYPES))
def test_pure_noise_and_clean_data(gaussian, schedule: str, prediction_type: str) -> None:
    x_t = torch.tensor([[0.5, -0.2], [0.5, -0.2]])
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    mean = gaussian.denoiser(schedule, prediction_type)(x_t, alpha, sigma).mean
    assert bool(torch.isfinite(mean).all())
    assert_close(mean[1], x_t[1])
    if (schedule, prediction_type) != ("flow", "epsilon"):  # an eps network knows nothing of x_0 there
        assert_close(mean[0], torch.full((2,), gaussian.mean), rtol=0, atol=5e-3)


def test_less_noise_than_the_network_ever_saw(gaussian) -> None:
    """The chain's least noise is sigma = .01: below it the score stays right, and with it eps."""
    x_t, alpha, sigma = torch.tensor([[0.5, -0.2]]), torch.tensor([1.0]), torch.tensor([1e-3])
    mean = gaussian.denoiser("linear", "epsilon")(x_t, alpha, sigma).mean
    eps = (x_t - gaussian.x0(x_t.double(), alpha, sigma)) / sigma
    assert_close((x_t - mean) / sigma, eps.float(), rtol=1e-2, atol=1e-3)


def test_0d_levels_serve_a_batch(gaussian) -> None:
    x_t = torch.randn(4, 3)
    one = gaussian.denoiser()(x_t, torch.tensor(0.6), torch.tensor(0.8)).mean
    many = gaussian.denoiser()(x_t, torch.full((4,), 0.6), torch.full((4,), 0.8)).mean
    assert_close(one, many, rtol=0, atol=0)


def test_the_network_gets_its_own_time_scale_and_conditions() -> None:
    seen = {}

    def network(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        seen.update(x=x, t=t, **cond)
        return x

    x_t, label = torch.ones(2, 3), torch.tensor([7, 8])
    Denoiser(network, FlowSchedule(), "flow")(x_t, torch.tensor(0.6), torch.tensor(0.8), {"label": label})
    assert_close(seen["t"], torch.full((2,), 0.8 / 1.4))
    assert_close(seen["x"], x_t * torch.tensor([0.6, 0.8]).div(1.4).norm() / 1.0)
    assert_close(seen["label"], label)


def test_a_half_precision_network_is_converted_in_float32() -> None:
    class Half(torch.nn.Module):
        dtype = torch.float16

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == torch.float16
            assert t.dtype == torch.float32
            return x

    denoiser = Denoiser(Half(), make_schedule("linear"), "epsilon")
    x_t = torch.linspace(-1, 1, 6).reshape(2, 3)
    mean = denoiser(x_t, torch.tensor(0.6), torch.tensor(0.8)).mean
    assert mean.dtype == torch.float32
    assert_close(mean, (x_t - 0.8 * x_t) / 0.6, rtol=2e-3, atol=2e-3)


def test_learned_variance_interpolates_the_log_variances() -> None:
    schedule = DiscreteSchedule.linear()
    raw = torch.tensor([-1.0, 0.0, 1.0])

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, raw.expand_as(x)], dim=1)

    t = torch.tensor([1.0, 700.0])
    posterior: Posterior = Denoiser(network, schedule, "sample", learned_variance=True).at(
        torch.ones(2, 3), t
    )
    small, large = reverse_log_variances(schedule, t)
    assert posterior.log_var is not None
    assert_close(posterior.log_var, torch.stack([small, (small + large) / 2, large], dim=1))
    assert_close(posterior.variance_fraction, ((raw + 1) / 2).expand(2, 3))
    assert_close(posterior.mean, torch.ones(2, 3))


def test_impossible_denoisers_are_refused() -> None:
    with pytest.raises(UserError, match="DiscreteSchedule"):
        Denoiser(lambda x, t: x, FlowSchedule(), "flow", learned_variance=True)
    with pytest.raises(UserError, match="unknown prediction type"):
        Denoiser(lambda x, t: x, FlowSchedule(), "velocity")
    with pytest.raises(UserError, match=r"must give \[B, 6"):
        Denoiser(lambda x, t: x, make_schedule("linear"), "epsilon", True).at(torch.ones(2, 3), torch.ones(2))
