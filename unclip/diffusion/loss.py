"""Training losses: objects called as loss(denoiser, x0, t, noise, cond), with their hyper-parameters in the
constructor.

Each gives a dict: "loss", a scalar to differentiate, and detached parts to log. Among these
"loss_q0"…"loss_q3" are the mean over the samples in each quarter of the schedule's time, from clean to noisy;
a quarter without a sample in the batch is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser
from unclip.diffusion.likelihood import vlb_term
from unclip.diffusion.prediction import add_noise, check_prediction_type, error_scale, target
from unclip.diffusion.schedule import DiscreteSchedule, Schedule
from unclip.errors import UserError


class _WeightedMSE(ABC):
    """Mean over the batch of weight(t) · mean squared error in the space that the network predicts."""

    @abstractmethod
    def weight(self, prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Weight [B] of the squared error of a network that predicts `prediction_type`."""

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Conditions | None = None
    ) -> dict[str, Tensor]:
        """The loss of predicting x0 [B, ...] from its noised version at times t [B] of the denoiser."""
        alpha, sigma = denoiser.schedule.alpha_sigma(t)
        prediction, _ = denoiser.predict(add_noise(x0, noise, alpha, sigma), t, cond)
        return self.of_prediction(denoiser, prediction, x0, t, noise)

    def of_prediction(
        self, denoiser: Denoiser, prediction: Tensor, x0: Tensor, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """The same for an answer that the network has given already."""
        alpha, sigma = denoiser.schedule.alpha_sigma(t)
        wanted = target(denoiser.prediction_type, x0, noise, alpha, sigma)
        error = ((prediction - wanted) ** 2).flatten(1).mean(1)  # [B]
        per_sample = self.weight(denoiser.prediction_type, alpha, sigma) * error
        return {"loss": per_sample.mean(), **by_quarter(denoiser.schedule, t, per_sample)}


class SimpleLoss(_WeightedMSE):
    """Mean squared error in the space of `target`, whatever the network predicts.

    `SimpleLoss("epsilon")` is L_simple of DDPM (eq. 14); `SimpleLoss("flow")` with a network that predicts
    the sample is the v-weighted loss of JiT (2511.13720).

    Args:
        target: one of PREDICTION_TYPES: where the error is measured.
        min_sigma: the error of an x_0 network is divided by sigma when it is measured elsewhere (that of an
            eps network by alpha); what it is divided by is at least this. JiT uses .05.
    """

    def __init__(self, target: str = "epsilon", min_sigma: float = 0.05) -> None:
        self.target = check_prediction_type(target)
        if min_sigma <= 0:
            raise UserError(f"min_sigma must be positive, got {min_sigma}: JiT uses .05")
        self.min_sigma = min_sigma

    def weight(self, prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
        if prediction_type == self.target:
            return torch.ones_like(alpha)
        own = error_scale(prediction_type, alpha, sigma).clamp(min=self.min_sigma)
        return (error_scale(self.target, alpha, sigma) / own) ** 2


class SharpLoss(SimpleLoss):
    """SimpleLoss plus l1_weight · mean absolute error of x_0, for a network that predicts the sample.

    The absolute error's minimum is the median, so where an edge is somewhere within a pixel the picture chooses a side,
    where the mean would be a blur: a sharp guess even in one step from t = 1.
    """

    def __init__(self, target: str = "flow", min_sigma: float = 0.05, l1_weight: float = 0.0) -> None:
        super().__init__(target, min_sigma)
        if l1_weight < 0:
            raise UserError(
                f"l1_weight must not be negative, got {l1_weight}: 0 leaves the absolute error out"
            )
        self.l1_weight = l1_weight

    def of_prediction(
        self, denoiser: Denoiser, prediction: Tensor, x0: Tensor, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """As SimpleLoss gives it, and "l1"."""
        if denoiser.prediction_type != "sample":
            raise UserError(
                f"SharpLoss needs a network that predicts the sample, got {denoiser.prediction_type}"
            )
        losses = super().of_prediction(denoiser, prediction, x0, t, noise)
        l1 = F.l1_loss(prediction, x0)
        return {**losses, "loss": losses["loss"] + self.l1_weight * l1, "l1": l1.detach()}


class MinSNRLoss(_WeightedMSE):
    """min(SNR, gamma) · mean squared error of x_0, SNR = alpha²/sigma² (Min-SNR, 2303.09556, eq. 8)."""

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise UserError(f"gamma of the Min-SNR weighting must be positive, got {gamma}: the paper uses 5")
        self.gamma = gamma

    def weight(self, prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
        # Numerator and denominator times sigma²: neither end of the schedule divides by 0.
        own = error_scale(prediction_type, alpha, sigma) ** 2
        return torch.minimum(alpha**2, self.gamma * sigma**2) / own.clamp(min=torch.finfo(own.dtype).tiny)


class HybridLoss:
    """L_simple + vlb_weight · L_vlb for a network that learns its variance (Improved DDPM, eq. 16).

    L_vlb is the variational bound in bits per dimension, estimated as T times the term at t, and it trains
    the variance alone: the mean is behind a stop-gradient.
    """

    def __init__(self, vlb_weight: float = 0.001) -> None:
        if vlb_weight < 0:
            raise UserError(f"vlb_weight must not be negative, got {vlb_weight}: the paper uses .001")
        self.vlb_weight = vlb_weight
        self.simple = SimpleLoss("epsilon")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Conditions | None = None
    ) -> dict[str, Tensor]:
        """Like the others, for x0 [B, ...] of 8-bit data in [-1, 1]; adds "simple" and "vlb" (bits/dim)."""
        schedule = denoiser.schedule
        if not (denoiser.learned_variance and isinstance(schedule, DiscreteSchedule)):
            raise UserError(
                "HybridLoss trains a learned variance: make the denoiser with learned_variance=True"
            )
        if schedule.skew != 1:
            raise UserError(
                "HybridLoss needs uniform training times, else its bound is none: expected skew=1, "
                f"got skew={schedule.skew:g}"
            )
        x_t = add_noise(x0, noise, *schedule.alpha_sigma(t))
        prediction, fraction = denoiser.predict(x_t, t, cond)
        simple = self.simple.of_prediction(denoiser, prediction, x0, t, noise)
        frozen_mean = denoiser.posterior(prediction.detach(), fraction, x_t, t)
        vlb = len(schedule) * vlb_term(schedule, frozen_mean, x0, x_t, t).mean()
        loss = simple["loss"] + self.vlb_weight * vlb
        return {**simple, "loss": loss, "simple": simple["loss"].detach(), "vlb": vlb.detach()}


def by_quarter(schedule: Schedule, t: Tensor, per_sample: Tensor) -> dict[str, Tensor]:
    """Mean of per_sample [B] over each quarter of the schedule's time that t [B] visits."""
    quarter = (schedule.to_level(t) * 4).floor().clamp(0, 3)
    parts = {}
    for i in range(4):
        chosen = per_sample.detach()[quarter == i]
        if len(chosen):
            parts[f"loss_q{i}"] = chosen.mean()
    return parts
