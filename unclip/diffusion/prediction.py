"""What a network predicts about x_t = alpha x_0 + sigma eps, and how each form follows from the others.

Given x_t, all four types are linear in x_0 and say the same thing:

    sample         x_0
    epsilon        eps                                              (DDPM, eq. 14)
    v_prediction   (alpha eps - sigma x_0) / sqrt(alpha² + sigma²)  (Salimans & Ho 2022, app. D)
    flow           eps - x_0, the velocity of the straight line     (Liu et al. 2022)

The formulas hold for any scale of (alpha, sigma), not only for alpha² + sigma² = 1, so that they serve
variance-preserving, variance-exploding (alpha = 1) and flow (alpha + sigma = 1) processes alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.errors import UserError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")

# Pure noise (alpha = 0) tells nothing of x_0, nor clean data (sigma = 0) of eps: finite nonsense instead of
# NaN.
SMALLEST = 1e-6


def check_prediction_type(prediction_type: str) -> str:
    """Give the name back, or raise UserError when there is no such type."""
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"unknown prediction type {prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}"
        )
    return prediction_type


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient per sample, [B] or 0-d, shaped to multiply x [B, ...]."""
    return coefficient if coefficient.ndim == 0 else coefficient.reshape(-1, *(1,) * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """A draw x_t [B, ...] of q(x_t | x_0) = N(alpha x_0, sigma² I) (DDPM, eq. 4); alpha, sigma [B] or 0-d."""
    return broadcast(alpha, x0) * x0 + broadcast(sigma, x0) * noise


def to_x0(prediction_type: str, prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 from a prediction of the given type; prediction, x_t [B, ...], alpha, sigma [B] or 0-d."""
    alpha, sigma = broadcast(alpha, x_t), broadcast(sigma, x_t)
    match check_prediction_type(prediction_type):
        case "sample":
            return prediction
        case "epsilon":
            return (x_t - sigma * prediction) / alpha.clamp(min=SMALLEST)
        case "v_prediction":
            norm = torch.hypot(alpha, sigma)
            return (alpha / norm * x_t - sigma * prediction) / norm
        case _:
            return (x_t - sigma * prediction) / (alpha + sigma)


def from_x0(prediction_type: str, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction of the given type that means x_0; the inverse of `to_x0`."""
    if check_prediction_type(prediction_type) == "sample":
        return x0
    noise = (x_t - broadcast(alpha, x_t) * x0) / broadcast(sigma, x_t).clamp(min=SMALLEST)
    return target(prediction_type, x0, noise, alpha, sigma)


def target(prediction_type: str, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of the given type should say of add_noise(x0, noise, alpha, sigma)."""
    alpha, sigma = broadcast(alpha, x0), broadcast(sigma, x0)
    match check_prediction_type(prediction_type):
        case "sample":
            return x0
        case "epsilon":
            return noise
        case "v_prediction":
            return (alpha * noise - sigma * x0) / torch.hypot(alpha, sigma)
        case _:
            return noise - x0


def error_scale(prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """sigma · |d prediction / d x_0| at fixed x_t, shaped like alpha.

    The ratio of two of these says how an error in one space looks in another: error_a = error_b · scale_a /
    scale_b, up to its sign.
    """
    match check_prediction_type(prediction_type):
        case "sample":
            return sigma
        case "epsilon":
            return alpha
        case "v_prediction":
            return torch.hypot(alpha, sigma)
        case _:
            return alpha + sigma
