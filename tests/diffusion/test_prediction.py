"""The four prediction types say the same thing, at every noise level and scale."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unclip.diffusion import PREDICTION_TYPES, add_noise, from_x0, target, to_x0
from unclip.diffusion.prediction import error_scale
from unclip.errors import UserError

# Variance preserving, flow line, variance exploding, each at several levels.
LEVELS = torch.tensor(
    [[0.99995, 0.01], [0.6, 0.8], [0.01, 0.99995], [0.9, 0.1], [0.1, 0.9], [1.0, 0.03], [1.0, 80.0]],
    dtype=torch.float64,
)


@pytest.fixture
def pair(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, len(LEVELS), 3, 2, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x0_and_back(prediction_type: str, pair: torch.Tensor) -> None:
    alpha, sigma = LEVELS.T
    x0, noise = pair
    x_t = add_noise(x0, noise, alpha, sigma)
    prediction = target(prediction_type, x0, noise, alpha, sigma)
    assert_close(to_x0(prediction_type, prediction, x_t, alpha, sigma), x0)
    assert_close(from_x0(prediction_type, x0, x_t, alpha, sigma), prediction)


def test_velocities_are_the_derivatives_of_their_paths(pair: torch.Tensor) -> None:
    x0, noise = pair
    t = torch.full((len(x0),), 0.3, dtype=torch.float64)
    for prediction_type, path in {
        "flow": lambda t: (1 - t, t),
        "v_prediction": lambda t: (t.cos(), t.sin()),  # Salimans & Ho: the angle is the time
    }.items():
        derivative = (add_noise(x0, noise, *path(t + 1e-5)) - add_noise(x0, noise, *path(t - 1e-5))) / 2e-5
        assert_close(target(prediction_type, x0, noise, *path(t)), derivative, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_ends_of_the_line_are_finite(prediction_type: str) -> None:
    x = torch.randn(2, 3)
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    for convert in (to_x0, from_x0):
        assert bool(torch.isfinite(convert(prediction_type, x, x, alpha, sigma)).all())
    assert_close(to_x0("flow", x, x, alpha, sigma), torch.stack([torch.zeros(3), x[1]]))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_error_scale_is_the_derivative(prediction_type: str, pair: torch.Tensor) -> None:
    alpha, sigma = LEVELS.T
    x_t, x0 = pair
    moved = from_x0(prediction_type, x0 + 1, x_t, alpha, sigma) - from_x0(
        prediction_type, x0, x_t, alpha, sigma
    )
    assert_close(moved.abs()[:, 0, 0] * sigma, error_scale(prediction_type, alpha, sigma))


def test_unknown_types_are_refused() -> None:
    with pytest.raises(UserError, match="choose one of epsilon, sample"):
        to_x0("score", *torch.ones(4, 1))
