"""Inversion: the noise x_T that a deterministic sampler turns into a given x_0 (DDIM, 2010.02502, §4.3; unCLIP §3).

A first-order step of the probability-flow ODE goes from a level t to a less noisy one s by

    x_s = alpha_s x_0(x_t) + sigma_s eps(x_t),   eps(x_t) = (x_t - alpha_t x_0(x_t)) / sigma_t

whatever the scheduler calls it: DDIM without noise, Euler, flow-matching Euler. Backwards, x_s is known and x_t sought.
Plain DDIM inversion takes x_0 and eps at x_s for those at x_t, so its round trip is only as good as steps are small.
Here that is the first guess, which is corrected by what it misses x_s by (a fixed-point iteration, Pan et al. 2023):

    x_t <- x_t + gain · (x_s - step(x_t)),   gain = (alpha_t² + sigma_t²) / (alpha_t alpha_s + sigma_t sigma_s)

The gain is Newton's where data have unit variance: then x_0 moves by alpha_t / (alpha_t² + sigma_t²) of what x_t does.
In strong noise it is near the literature's, sigma_t / sigma_s; in weak noise that one leads away as soon as
sigma / alpha more than doubles from one level to the next.

The last step of a sampler, to sigma_s = 0, gives x_0(x_t) itself and forgets x_t: many x_t give the same picture. The
iteration finds one of them as long as the denoiser keeps what it is corrected by.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser
from unclip.diffusion.guidance import Guided
from unclip.diffusion.sample import (
    LevelScheduler,
    StepCallback,
    denoise,
    noise_level,
    prepared,
)
from unclip.diffusion.schedule import at_least_float32
from unclip.errors import UserError

# Levels with less noise (sigma/alpha) than this are passed over: what a network changes there is its own error, which
# read as noise would be far too much (on the emoji decoder x_T then has a deviation of 1.7 instead of 1.1).
LEAST_NOISE = 0.05

# Schedulers that draw noise however they are configured.
STOCHASTIC: tuple[Any, ...] = (diffusers.DDPMScheduler, diffusers.EulerAncestralDiscreteScheduler)


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler's steps draw noise, as it is configured."""
    config = scheduler.config
    return (
        isinstance(scheduler, STOCHASTIC)
        or config.get("stochastic_sampling", False)
        or config.get("algorithm_type", "").startswith("sde")
    )


class InverseScheduler(LevelScheduler):
    """The noise levels of a deterministic scheduler, the cleanest first, and the steps from each to the next.

    Args:
        scheduler: of diffusers. Of a higher order (DPM-Solver++ 2M, Heun) only the levels are its own; the round trip
            is then as good as the difference of the orders.
        corrections: evaluations of the denoiser at each level, at least 1.

    Raises:
        UserError: the scheduler adds noise, or corrections are fewer than 1.
    """

    def __init__(self, scheduler: Any, corrections: int = 1) -> None:
        if adds_noise(scheduler):
            raise UserError(
                f"{type(scheduler).__name__} adds noise, so it cannot be run backwards: choose a deterministic "
                "scheduler such as DDIMScheduler"
            )
        if corrections < 1:
            raise UserError(f"corrections must be at least 1, got {corrections}")
        self.scheduler, self.corrections = scheduler, corrections

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """As of the scheduler that is run backwards; each timestep comes `corrections` times."""
        forward = prepared(self.scheduler, num_inference_steps, device)
        count = len(forward.timesteps)
        levels = {tuple(map(float, noise_level(forward, i))): forward.timesteps[i] for i in range(count)}
        # As a dict, since Heun's levels come twice.
        rising = [each for each in reversed(levels) if each[1] >= LEAST_NOISE * each[0]]
        self.rising = rising or [next(iter(levels))]
        self.levels = [
            (torch.tensor(a), torch.tensor(s)) for a, s in self.rising for _ in range(self.corrections)
        ]
        self.timesteps = torch.stack([levels[each] for each in self.rising for _ in range(self.corrections)])
        self.unit = float(getattr(forward, "init_noise_sigma", 1.0))  # of the noise that the way ends at
        self.step_index = 0
        self.less_noisy: Tensor | None = None  # x_s, once its own level is left

    @property
    def init_noise_sigma(self) -> float:
        """What x_0 is multiplied by to be the first guess of x_t: without the noise that it cannot know."""
        return self.rising[0][0]

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Correct x_t [B, ...] = `sample` by its x_0 = `model_output`; at the last correction, guess the next x_t."""
        place, correction = divmod(self.step_index, self.corrections)
        self.step_index += 1
        alpha, sigma = self.rising[place]
        alpha_s, sigma_s = self.rising[place - 1] if place else (1.0, 0.0)
        x0, x_s = model_output, self.less_noisy
        if x_s is None:
            x_s = self.less_noisy = sample / alpha
        noise = (sample - alpha * x0) / sigma
        gain = (alpha**2 + sigma**2) / (alpha * alpha_s + sigma * sigma_s)
        x_t = sample + gain * (x_s - alpha_s * x0 - sigma_s * noise)
        if correction + 1 < self.corrections:
            return (x_t,)
        self.less_noisy = x_t
        if place + 1 == len(self.rising):
            return (x_t / self.unit,)
        alpha_t, sigma_t = self.rising[place + 1]
        return (alpha_t * x0 + sigma_t * (x_t - alpha * x0) / sigma,)


def invert(
    denoiser: Denoiser | Guided,
    scheduler: Any,
    x0: Tensor,
    *,
    cond: Conditions | None = None,
    num_inference_steps: int,
    corrections: int = 2,
    clip_range: float | None = None,
    callback_on_step_end: StepCallback | None = None,
) -> Tensor:
    """The x_T [B, ...] that `denoise` with the same arguments turns into x0 [B, ...].

    Args:
        scheduler: a deterministic one of diffusers'.
        corrections: evaluations of the denoiser at each level; more of them, a closer round trip.
        cond, num_inference_steps, clip_range, callback_on_step_end: as of `denoise`.

    Raises:
        UserError: as `denoise`; a scheduler that adds noise.
    """
    return denoise(
        denoiser,
        InverseScheduler(scheduler, corrections),
        at_least_float32(x0),
        cond=cond,
        num_inference_steps=num_inference_steps,
        clip_range=clip_range,
        callback_on_step_end=callback_on_step_end,
    )
