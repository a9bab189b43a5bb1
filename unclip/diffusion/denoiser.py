"""The border between networks and probability: a denoiser turns a noisy x_t into a posterior of x_0.

A network knows its own times and its own kind of prediction. A `Denoiser` knows both, and answers for the x_t
of *any* Gaussian process x_t = alpha x_0 + sigma eps: it looks up the time of its own schedule that has the
same alpha/sigma, rescales x_t to that process, and reads x_0 off the answer. So a network trained on the flow
line samples under DDIM, and one trained on DDPM's chain samples under flow matching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unclip.diffusion.gaussian import reverse_log_variances
from unclip.diffusion.prediction import SMALLEST, broadcast, check_prediction_type, to_x0
from unclip.diffusion.schedule import DiscreteSchedule, Schedule, at_least_float32
from unclip.errors import UserError

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Posterior:
    """What a denoiser believes of x_0 given x_t.

    Attributes:
        mean: x_0 [B, ...], at least float32.
        log_var: where the reverse variance is learned, log variance [B, ...] of p(x_{t-1} | x_t) in the
            network's own chain; else None.
        variance_fraction: the v of Improved DDPM, eq. 15, that `log_var` comes from (0: beta-tilde, 1: beta).
            It is what stays meaningful when a sampler takes longer steps.
    """

    mean: Tensor
    log_var: Tensor | None = None
    variance_fraction: Tensor | None = None


class Denoiser:
    """A network with the schedule it was trained on and the type of its prediction.

    Args:
        network: called as network(x [B, C, ...], t [B], **cond); gives [B, C, ...], or [B, 2C, ...] with a
            learned variance. `x` comes in the network's dtype, the answer is converted in float32.
        schedule: of the network's times.
        prediction_type: one of PREDICTION_TYPES.
        learned_variance: the second half of the channels holds 2v - 1, v interpolating the log variance
            between log beta-tilde and log beta (Improved DDPM, eq. 15); needs a DiscreteSchedule.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        prediction_type: str,
        learned_variance: bool = False,
    ) -> None:
        if learned_variance and not isinstance(schedule, DiscreteSchedule):
            raise UserError(
                f"a learned variance belongs to a chain of steps, got {type(schedule).__name__}: train with "
                "a DiscreteSchedule, or without learned_variance"
            )
        self.network = network
        self.schedule = schedule
        self.prediction_type = check_prediction_type(prediction_type)
        self.learned_variance = learned_variance

    def __call__(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, cond: Conditions | None = None
    ) -> Posterior:
        """The posterior given x_t [B, ...] = alpha x_0 + sigma eps of any process; the pair [B] or 0-d."""
        x_t = at_least_float32(x_t)
        alpha, sigma = alpha.to(x_t).expand(len(x_t)), sigma.to(x_t).expand(len(x_t))
        t = self.schedule.time_of(alpha, sigma)
        own_alpha, own_sigma = self.schedule.alpha_sigma(t)
        # The quotients are equal unless the network saw no such level; that of the larger part is never 0/0.
        x = broadcast(torch.where(alpha > sigma, own_alpha / alpha, own_sigma / sigma), x_t) * x_t
        posterior = self.at(x, t, cond)
        # With less noise than the network ever saw, keep its score: x/alpha - x_0 shrinks as (sigma/alpha)².
        seen = alpha * own_sigma.clamp(min=SMALLEST)
        trust = torch.where(t > 0, 1.0, (sigma * own_alpha / seen).clamp(max=1) ** 2)
        undone = x / broadcast(own_alpha.clamp(min=SMALLEST), x)
        return replace(posterior, mean=torch.lerp(undone, posterior.mean, broadcast(trust, x)))

    def at(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Posterior:
        """The posterior given x_t [B, ...] of the network's own process at its times t [B]."""
        return self.posterior(*self.predict(x_t, t, cond), x_t, t)

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's own words: its prediction and, if learned, the variance fraction v, both [B, ...]."""
        output = at_least_float32(
            self.network(x_t.to(getattr(self.network, "dtype", x_t.dtype)), t, **(cond or {}))
        )
        channels = x_t.shape[1] * (2 if self.learned_variance else 1)
        if output.shape != (len(x_t), channels, *x_t.shape[2:]):
            raise UserError(
                f"the network must give [B, {channels}, ...] for x_t {tuple(x_t.shape)} with "
                f"learned_variance={self.learned_variance}, got {tuple(output.shape)}"
            )
        if not self.learned_variance:
            return output, None
        prediction, fraction = output.chunk(2, dim=1)
        return prediction, (fraction + 1) / 2

    def posterior(self, prediction: Tensor, fraction: Tensor | None, x_t: Tensor, t: Tensor) -> Posterior:
        """The posterior that an answer of `predict` to the same (x_t, t) means."""
        x_t = at_least_float32(x_t)
        mean = to_x0(self.prediction_type, prediction, x_t, *self.schedule.alpha_sigma(t))
        if fraction is None:
            return Posterior(mean)
        assert isinstance(self.schedule, DiscreteSchedule)
        smallest, largest = reverse_log_variances(self.schedule, t)
        log_var = torch.lerp(broadcast(smallest, x_t), broadcast(largest, x_t), fraction)
        return Posterior(mean, log_var, fraction)

    def begin_run(self) -> None:
        """Told by the sampling loop that a new run begins; a denoiser whose rule has a memory listens."""

    def begin_step(self, index: int, count: int, timestep: Tensor) -> None:
        """Told by the sampling loop before each step; a denoiser whose rule depends on the step listens."""


class Relay:
    """A denoiser for all steps but the last of a run, and another one for that."""

    def __init__(self, first: Denoiser, last: Denoiser) -> None:
        self.first, self.last = first, last
        self.at_work = first

    @property
    def learned_variance(self) -> bool:
        return self.at_work.learned_variance

    def begin_run(self) -> None:
        """As of Denoiser."""
        self.at_work = self.first

    def begin_step(self, index: int, count: int, timestep: Tensor) -> None:
        """As of Denoiser."""
        self.at_work = self.last if index == count - 1 else self.first

    def __call__(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, cond: Conditions | None = None
    ) -> Posterior:
        """As of Denoiser."""
        return self.at_work(x_t, alpha, sigma, cond)
