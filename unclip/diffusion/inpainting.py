"""Inpainting with any denoiser (RePaint, Lugmayr et al. 2022, 2201.09865): what is known is put in at every step.

A step of the sampler makes x_s from x_t. In it everything known is replaced by the known picture noised to level s
(RePaint, eq. 8), so that the next step sees it. What is unknown was made without knowing that, so a step is taken
several times, with the noise between the levels put back in between (§4.2): hole and surroundings come to agree.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser
from unclip.diffusion.guidance import Guided
from unclip.diffusion.prediction import add_noise
from unclip.diffusion.sample import Generators, StepCallback, denoise, noise_level, prepared
from unclip.errors import UserError


def inpaint(
    denoiser: Denoiser | Guided,
    scheduler: Any,
    x_T: Tensor,
    known: Tensor,
    hole: Tensor,
    *,
    cond: Conditions | None = None,
    num_inference_steps: int,
    num_resamplings: int = 1,
    generator: Generators = None,
    clip_range: float | None = None,
    callback_on_step_end: StepCallback | None = None,
) -> Tensor:
    """Sample x_0 [B, ...] that is `known` [B, ...] wherever `hole` (bool, broadcast to it) is False, exactly.

    Args:
        scheduler: one of diffusers' that needs no memory of earlier steps, since each is begun anew.
        num_resamplings: how often each step is taken.
        x_T, cond, num_inference_steps, generator, clip_range, callback_on_step_end: as of `denoise`.

    Raises:
        UserError: as `denoise`; fewer than one resampling.
    """
    plan = prepared(scheduler, num_inference_steps, x_T.device)
    _check(plan, num_resamplings)
    count = len(plan.timesteps)
    unit = getattr(plan, "init_noise_sigma", 1.0)
    levels = [tuple(level.to(x_T) for level in noise_level(plan, i)) for i in range(count)]

    def noise() -> Tensor:
        return randn_tensor(x_T.shape, generator=generator, device=x_T.device, dtype=x_T.dtype)

    x = x_T
    for i in range(count):
        last = i + 1 == count
        for again in reversed(range(1 if last else num_resamplings)):
            x = denoise(
                denoiser,
                scheduler,
                x,
                cond=cond,
                num_inference_steps=num_inference_steps,
                generator=generator,
                start=i,
                end=i + 1,
                clip_range=clip_range,
                callback_on_step_end=callback_on_step_end,
            )
            if last:
                break
            x = torch.where(hole, x, add_noise(known, noise(), *levels[i + 1]))
            if again:
                x = renoise(x, noise(), levels[i + 1], levels[i]) / (unit if i == 0 else 1)
    return torch.where(hole, x, known)


def _check(scheduler: Any, num_resamplings: int) -> None:
    if num_resamplings < 1:
        raise UserError(f"num_resamplings must be at least 1, got {num_resamplings}")
    if getattr(scheduler, "order", 1) > 1:
        raise UserError(
            f"{type(scheduler).__name__} takes each step in halves, so none can be taken again: choose DDIMScheduler, "
            "DDPMScheduler or another of first order"
        )


def renoise(x_s: Tensor, noise: Tensor, less: tuple[Tensor, ...], more: tuple[Tensor, ...]) -> Tensor:
    """From a level (alpha, sigma) to a noisier one: a draw of q(x_t | x_s), the forward process between them."""
    scale = more[0] / less[0]
    return scale * x_s + (more[1] ** 2 - (scale * less[1]) ** 2).clamp(min=0).sqrt() * noise
