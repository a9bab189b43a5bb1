"""THE denoising loop: any denoiser under any of diffusers' schedulers.

The steps are the scheduler's. Before each one its noise level (alpha, sigma) is read off, the denoiser is
asked for x_0, and x_0 is put into the words that the scheduler expects.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser, Posterior, Relay
from unclip.diffusion.guidance import Guided
from unclip.diffusion.prediction import add_noise, from_x0
from unclip.diffusion.schedule import at_least_float32
from unclip.errors import UserError

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

# How a scheduler names its noise levels.
# Chain: timesteps[i] points into alphas_cumprod.
# Solver: sigmas[i] is sigma/alpha of a variance-preserving process, or the flow's sigma with use_flow_sigmas.
# Exploding: sigmas[i] with alpha = 1. Flow: sigmas[i] with alpha = 1 - sigma.
CHAIN: tuple[Any, ...] = (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.PNDMScheduler)
TAKES_X0: tuple[Any, ...] = (diffusers.DDPMScheduler, diffusers.DDIMScheduler)
SOLVER: tuple[Any, ...] = (
    diffusers.DPMSolverMultistepScheduler,
    diffusers.DPMSolverSinglestepScheduler,
    diffusers.UniPCMultistepScheduler,
    diffusers.DEISMultistepScheduler,
)
EXPLODING: tuple[Any, ...] = (
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
)
FLOW: tuple[Any, ...] = (diffusers.FlowMatchEulerDiscreteScheduler, diffusers.FlowMatchHeunDiscreteScheduler)


class LevelScheduler:
    """Base of our own schedulers: they name the (alpha, sigma) of each step themselves, and want x_0.

    Subclasses set `timesteps` and `levels`, equally many, in `set_timesteps`, and have `step`.
    """

    timesteps: Tensor
    levels: list[tuple[Tensor, Tensor]]


@torch.no_grad()
def denoise(
    denoiser: Denoiser | Guided | Relay,
    scheduler: Any,
    x_T: Tensor,
    *,
    cond: Conditions | None = None,
    num_inference_steps: int,
    generator: Generators = None,
    start: int = 0,
    end: int | None = None,
    clip_range: float | None = None,
    eta: float = 0.0,
    callback_on_step_end: StepCallback | None = None,
    progress: str | None = None,
) -> Tensor:
    """Run steps `start` to `end` of a scheduler; x_T [B, ...] -> x_0 [B, ...], or the x_t of step `end`.

    Args:
        scheduler: one of diffusers'; it is copied, so that it stays as it is.
        x_T: where `start` is 0, noise of unit variance; else the x_t of step `start` (see `noise_to_step`).
        cond: conditions of the network, batch first.
        num_inference_steps: how many steps the scheduler divides the whole way into. `start` and `end` count
            its timesteps, of which second-order schedulers such as Heun's have almost twice as many.
        generator: of the noise that stochastic schedulers add. A list gives each row its own, so that a row
            does not depend on its batch.
        clip_range: x_0 is clipped to ±clip_range at each step.
        eta: of DDIM (2010.02502, eq. 16); ignored by schedulers without it, as in diffusers' pipelines.
        callback_on_step_end: called as (index, timestep, {"latents": x, "x0": predicted x_0}); "latents" of
            the dict that it may return replaces x.
        progress: description of a progress bar; None for none.

    Raises:
        UserError: steps out of range, an unknown scheduler, or one whose type of prediction cannot be given.
    """
    scheduler = prepared(scheduler, num_inference_steps, x_T.device)
    timesteps = scheduler.timesteps
    steps = _step_range(start, end, len(timesteps))
    _check_start(scheduler, start)
    _check_generators(generator, len(x_T))
    _check_variance(denoiser, scheduler)
    step_options = _accepted(scheduler.step, generator=generator, eta=eta, return_dict=False)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    denoiser.begin_run()

    x = at_least_float32(x_T) * (1.0 if start > 0 else getattr(scheduler, "init_noise_sigma", 1.0))
    for i in logging.tqdm(steps, desc=progress, disable=progress is None):
        t = timesteps[i]
        alpha, sigma = (level.to(x) for level in noise_level(scheduler, i))
        denoiser.begin_step(i, len(timesteps), t)
        posterior = denoiser(x, alpha, sigma, cond)
        x0 = posterior.mean if clip_range is None else posterior.mean.clamp(-clip_range, clip_range)
        output = _scheduler_output(scheduler, x0, posterior, x, alpha, sigma)
        if isinstance(scheduler, EXPLODING):
            scheduler.scale_model_input(x, t)  # they want to be asked, though denoisers scale for themselves
        x = scheduler.step(output, t, x, **step_options)[0]
        if callback_on_step_end is not None:
            x = (callback_on_step_end(i, t, {"latents": x, "x0": x0}) or {}).get("latents", x)
    return x


def initial_noise(
    shape: tuple[int, ...],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noise of unit variance [B, ...]; of a list of generators each draws one row."""
    _check_generators(generator, shape[0])
    return randn_tensor(shape, generator=generator, device=torch.device(device or "cpu"), dtype=dtype)


def prepared(scheduler: Any, num_inference_steps: int, device: torch.device | str | None = None) -> Any:
    """A fresh copy of a scheduler with its timesteps set, at least one."""
    if num_inference_steps < 1:
        raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not isinstance(scheduler, (*CHAIN, *SOLVER, *EXPLODING, *FLOW, LevelScheduler)):
        known = ", ".join(each.__name__ for each in CHAIN + SOLVER + EXPLODING + FLOW)
        raise UserError(f"unknown scheduler {type(scheduler).__name__}: choose one of {known}")
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_inference_steps, device=device)
    except ValueError as error:  # more steps than it was made for, or settings that exclude each other
        reason = " ".join(str(error).split())
        raise UserError(
            f"{type(scheduler).__name__} cannot take {num_inference_steps} steps: {reason}"
        ) from error
    # Near pure noise x_0 hardly shows in what else would be said: as much of it as is asked for would be rounded away.
    if isinstance(scheduler, TAKES_X0) and scheduler.config.prediction_type == "epsilon":
        scheduler.register_to_config(prediction_type="sample")
    return scheduler


def noise_level(scheduler: Any, index: int) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), 0-d, of the x_t that step `index` of a scheduler with set timesteps works on."""
    if isinstance(scheduler, LevelScheduler):
        return scheduler.levels[index]
    if isinstance(scheduler, CHAIN):
        alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[index].cpu()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    sigma = scheduler.sigmas[index]
    if isinstance(scheduler, EXPLODING):
        return torch.ones_like(sigma), sigma
    if isinstance(scheduler, FLOW) or scheduler.config.use_flow_sigmas:
        return 1 - sigma, sigma
    norm = torch.hypot(torch.ones_like(sigma), sigma)
    return 1 / norm, sigma / norm


def first_step(scheduler: Any, num_inference_steps: int, strength: float) -> int:
    """The timestep that image to image begins with: `strength` of them are left (SDEdit, 2108.01073).

    Of second-order schedulers each step has two timesteps; it begins with the first of them.
    """
    count = len(prepared(scheduler, num_inference_steps).timesteps)
    start = min(count - 1, round(count * (1 - strength)))
    return start - start % getattr(scheduler, "order", 1)


def noise_to_step(scheduler: Any, x0: Tensor, noise: Tensor, num_inference_steps: int, start: int) -> Tensor:
    """x0 [B, ...] noised to the level at which `denoise(..., start=start)` takes over: image to image."""
    scheduler = prepared(scheduler, num_inference_steps, x0.device)
    if not 0 <= start < len(scheduler.timesteps):
        raise UserError(f"step {start} lies outside the scheduler's {len(scheduler.timesteps)} timesteps")
    alpha, sigma = (level.to(x0) for level in noise_level(scheduler, start))
    return add_noise(x0, noise, alpha, sigma)


def _scheduler_output(
    scheduler: Any, x0: Tensor, posterior: Posterior, x: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """x_0, and the variance where the scheduler takes one, in the form that its config asks for."""
    prediction = from_x0(_prediction_type(scheduler), x0, x, alpha, sigma)
    if posterior.log_var is None or posterior.variance_fraction is None:
        return prediction
    match _variance_type(scheduler):
        case "learned_range":
            return torch.cat([prediction, 2 * posterior.variance_fraction - 1], dim=1)
        case "learned":
            return torch.cat([prediction, posterior.log_var.exp()], dim=1)
        case _:
            return prediction


def _prediction_type(scheduler: Any) -> str:
    """Our name for the prediction that a scheduler asks for."""
    if isinstance(scheduler, LevelScheduler):
        return "sample"
    if isinstance(scheduler, FLOW):
        return "flow"
    asked = scheduler.config.prediction_type
    on_flow_line = isinstance(scheduler, SOLVER) and scheduler.config.use_flow_sigmas
    # diffusers reads v as if alpha² + sigma² = 1, and the velocity as if alpha + sigma = 1.
    if (asked == "v_prediction" and on_flow_line) or (asked == "flow_prediction" and not on_flow_line):
        raise UserError(
            f"{type(scheduler).__name__} with prediction_type {asked!r} and use_flow_sigmas={on_flow_line} "
            "misreads any prediction: set flow_prediction with use_flow_sigmas=True, v_prediction without"
        )
    return {"flow_prediction": "flow", "original_sample": "sample"}.get(asked, asked)


def _variance_type(scheduler: Any) -> str | None:
    """The variance that DDPM takes; the deterministic solvers throw theirs away."""
    return scheduler.config.get("variance_type") if isinstance(scheduler, CHAIN) else None


def _check_variance(denoiser: Denoiser | Guided | Relay, scheduler: Any) -> None:
    if _variance_type(scheduler) in ("learned", "learned_range") and not denoiser.learned_variance:
        raise UserError(
            f"the scheduler's variance_type is {_variance_type(scheduler)!r}, but the network learned "
            "no variance: choose 'fixed_small' or 'fixed_large'"
        )


def _step_range(start: int, end: int | None, count: int) -> range:
    end = count if end is None else end
    if not 0 <= start <= end <= count:
        raise UserError(f"steps {start} to {end} are not among the {count} of the scheduler, 0 to {count}")
    return range(start, end)


def _check_start(scheduler: Any, start: int) -> None:
    """A scheduler that carries something from step to step cannot begin where it would have to carry it."""
    if start % getattr(scheduler, "order", 1):
        raise UserError(
            f"step {start} of {type(scheduler).__name__} is the second half of one: begin at a multiple of "
            f"{scheduler.order}"
        )
    if start and isinstance(scheduler, diffusers.PNDMScheduler) and not scheduler.config.skip_prk_steps:
        raise UserError(
            "PNDMScheduler with Runge-Kutta steps must begin with them: set skip_prk_steps=True, or choose another "
            "scheduler, such as DDIMScheduler"
        )


def _check_generators(generator: Generators, batch: int) -> None:
    if isinstance(generator, list) and len(generator) != batch:
        raise UserError(
            f"got {len(generator)} generators for {batch} samples: give one for each, or a single one"
        )


def _accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of the options that a function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}
