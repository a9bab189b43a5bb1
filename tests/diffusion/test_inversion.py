"""Inversion: x_0 -> x_T -> x_0 on Gaussian data, whose x_T is known; and the order at which its error falls."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import (
    Denoiser,
    InverseScheduler,
    classifier_free,
    denoise,
    initial_noise,
    inversion,
    invert,
    make_schedule,
    noise_level,
    prepared,
)
from unclip.diffusion.guidance import Guided
from unclip.errors import UserError

FIRST_ORDER = {
    "DDIM": diffusers.DDIMScheduler(clip_sample=False),
    "DDIM cosine": diffusers.DDIMScheduler(
        clip_sample=False, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    ),
    "DPM-Solver++ 1": diffusers.DPMSolverMultistepScheduler(solver_order=1),
    "Euler": diffusers.EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
}
HIGHER_ORDER = {
    "DPM-Solver++ 2M": diffusers.DPMSolverMultistepScheduler(),
    "Heun": diffusers.HeunDiscreteScheduler(use_karras_sigmas=True),
    "flow Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
}
CLEAN = (torch.tensor(1.0), torch.tensor(0.0))


def data(gaussian: Any) -> Tensor:
    """[41, 1], two standard deviations to either side."""
    return gaussian.mean + gaussian.std * torch.linspace(-2, 2, 41)[:, None]


def round_trip(gaussian: Any, scheduler: Any, steps: int, corrections: int) -> float:
    """Mean distance of x_0 from what its x_T is denoised to, in deviations of the data."""
    x_0, denoiser = data(gaussian), gaussian.denoiser("flow", "sample")
    x_T = invert(denoiser, scheduler, x_0, num_inference_steps=steps, corrections=corrections)
    again = denoise(denoiser, scheduler, x_T, num_inference_steps=steps)
    return (again - x_0).abs().mean().item() / gaussian.std


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_denoising_gives_back_what_was_inverted(gaussian, name: str) -> None:
    assert round_trip(gaussian, FIRST_ORDER[name], 20, 8) < 0.02
    assert round_trip(gaussian, FIRST_ORDER[name], 20, 1) < 0.08


@pytest.mark.parametrize("name", HIGHER_ORDER)
def test_of_a_higher_order_only_the_levels_are_used(gaussian, name: str) -> None:
    """The round trip is as good as the orders differ: it gets better with steps, though not with corrections."""
    coarse, fine = (round_trip(gaussian, HIGHER_ORDER[name], steps, 4) for steps in (40, 160))
    assert fine < 0.6 * coarse
    assert fine < 0.08
    many = round_trip(gaussian, HIGHER_ORDER[name], 160, 8)
    assert_close(many, fine, rtol=0.1, atol=0)


def test_each_of_heuns_levels_comes_once() -> None:
    scheduler = HIGHER_ORDER["Heun"]
    forward, inverse = prepared(scheduler, 10), InverseScheduler(scheduler)
    inverse.set_timesteps(10)
    assert len(forward.timesteps) == 19
    sigmas = [sigma for _, sigma in inverse.rising]
    assert sigmas == sorted(set(sigmas))
    assert set(sigmas) == {float(sigma) for sigma in forward.sigmas if sigma > inversion.LEAST_NOISE}


@pytest.mark.parametrize("corrections", [1, 2, 3])
def test_order_of_convergence(gaussian, monkeypatch: pytest.MonkeyPatch, corrections: int) -> None:
    """The first guess alone makes an error of first order in the steps; each correction adds an order."""
    monkeypatch.setattr(inversion, "LEAST_NOISE", 0.0)  # else the levels below it are what the error is of
    scheduler = FIRST_ORDER["Euler"]
    coarse, fine = (round_trip(gaussian, scheduler, steps, corrections) for steps in (40, 80))
    assert_close(math.log2(coarse / fine), corrections + 1.0, rtol=0, atol=0.15)


def test_plain_inversion_is_of_first_order(gaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    """What corrections are measured against: DDIM inversion as it was published (2010.02502)."""
    x_0, denoiser, scheduler = data(gaussian), gaussian.denoiser("flow", "sample"), FIRST_ORDER["Euler"]

    def plain(steps: int) -> float:
        made = prepared(scheduler, steps)
        levels = [noise_level(made, i) for i in reversed(range(len(made.timesteps)))]
        x = x_0
        for (alpha, sigma), (more, noisier) in pairwise(levels):
            x0 = denoiser(x, alpha, sigma).mean
            x = more * x0 + noisier * (x - alpha * x0) / sigma
        x_T = x / made.init_noise_sigma
        again = denoise(denoiser, scheduler, x_T, num_inference_steps=steps)
        return (again - x_0).abs().mean().item() / gaussian.std

    coarse, fine = plain(40), plain(80)
    assert_close(math.log2(coarse / fine), 1.0, rtol=0, atol=0.15)
    assert round_trip(gaussian, scheduler, 40, 1) < 0.25 * coarse


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_corrections_never_lead_away(gaussian, name: str, steps: int) -> None:
    """Also where noise more than doubles from one level to the next; what stays is the levels that are passed over."""
    errors = [round_trip(gaussian, FIRST_ORDER[name], steps, corrections) for corrections in (1, 8, 24)]
    assert errors[1] < max(errors[0], 0.03)
    assert errors[2] < max(errors[0], 0.03)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_one_correction_is_all_where_data_have_unit_variance(name: str) -> None:
    """There the gain is Newton's and x_0 linear in x_t, so that one step of it is exact."""
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), make_schedule("cosine"), "v_prediction")
    x_0 = torch.linspace(-2, 2, 41)[:, None]  # v = 0: the best network of N(0, 1)
    options = {"num_inference_steps": 20}
    one, many = (
        invert(denoiser, FIRST_ORDER[name], x_0, corrections=corrections, **options) for corrections in (1, 9)
    )
    assert_close(one, many, rtol=1e-5, atol=1e-5)
    assert_close(denoise(denoiser, FIRST_ORDER[name], one, **options), x_0, rtol=0, atol=0.01)


# ------------------------------------------------------------------------------------------------- x_T itself


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_the_noise_found_is_that_of_the_exact_flow(gaussian, name: str) -> None:
    """N(mean, std²) is carried to unit noise; what is missing is a discrete sampler's error, of first order."""
    scheduler, x_0 = FIRST_ORDER[name], data(gaussian)

    def distance(steps: int) -> tuple[float, float]:
        made = prepared(scheduler, steps)
        unit = getattr(made, "init_noise_sigma", 1.0)
        exact = gaussian.flow(x_0, CLEAN, noise_level(made, 0)) / unit
        x_T = invert(gaussian.denoiser("flow"), scheduler, x_0, num_inference_steps=steps)
        return (x_T - exact).abs().mean().item(), (x_T.std() / torch.linspace(-2, 2, 41).std()).item()

    (coarse, _), (fine, deviation) = distance(10), distance(40)
    assert fine < 0.5 * coarse
    assert_close(deviation, 1.0, rtol=0, atol=0.13)


def test_x_t_has_unit_deviation(gaussian, generator: torch.Generator) -> None:
    x_0 = gaussian.mean + gaussian.std * initial_noise((20_000, 1), generator)
    x_T = invert(
        gaussian.denoiser("flow"), FIRST_ORDER["DDIM cosine"], x_0, num_inference_steps=100, corrections=1
    )
    assert_close(x_T.mean().item(), 0.0, rtol=0, atol=0.02)
    assert_close(x_T.std().item(), 1.0, rtol=0, atol=0.06)


def test_guidance_is_inverted_too(gaussian) -> None:
    x_0 = data(gaussian)
    network = gaussian.denoiser("flow", "sample").network

    def shifted(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return network(x, t) + shift

    denoiser = Guided(
        Denoiser(shifted, make_schedule("flow"), "sample"),
        classifier_free(2.0),
        {"shift": torch.zeros(41, 1)},
    )
    options = {"cond": {"shift": torch.full((41, 1), 0.05)}, "num_inference_steps": 20}
    scheduler = FIRST_ORDER["DPM-Solver++ 1"]
    x_T = invert(denoiser, scheduler, x_0, corrections=6, **options)
    assert_close(denoise(denoiser, scheduler, x_T, **options), x_0, rtol=0, atol=1e-3)
    without = denoise(denoiser, scheduler, x_T, **{**options, "cond": {"shift": torch.zeros(41, 1)}})
    assert (without - x_0).abs().min() > 0.05


# --------------------------------------------------------------------------------------------------- mechanics


def test_callbacks_see_each_correction(gaussian) -> None:
    seen = []
    invert(
        gaussian.denoiser("flow"),
        FIRST_ORDER["flow Euler"],
        data(gaussian),
        num_inference_steps=4,
        corrections=2,
        callback_on_step_end=lambda i, t, state: seen.append((i, float(t))),  # type: ignore[func-returns-value]
    )
    # Of four levels; the last one, of sigma 1/1000, is less than LEAST_NOISE.
    assert [i for i, _ in seen] == list(range(6))
    times = [t for _, t in seen]
    assert times[::2] == times[1::2] == sorted(times[::2])


def test_a_row_does_not_depend_on_its_batch(gaussian) -> None:
    x_0, options = data(gaussian), {"num_inference_steps": 6}
    scheduler = FIRST_ORDER["DDIM"]
    together = invert(gaussian.denoiser("flow"), scheduler, x_0, **options)
    assert_close(invert(gaussian.denoiser("flow"), scheduler, x_0[7:8], **options), together[7:8])


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    ],
    ids=["DDPM", "Euler ancestral", "flow Euler stochastic", "DPM-Solver++ sde"],
)
def test_schedulers_that_add_noise_are_refused(gaussian, scheduler: Any) -> None:
    with pytest.raises(UserError, match="adds noise, so it cannot be run backwards: choose a deterministic"):
        invert(gaussian.denoiser("flow"), scheduler, data(gaussian), num_inference_steps=4)


def test_what_cannot_be_done_is_said(gaussian) -> None:
    scheduler = FIRST_ORDER["DDIM"]
    with pytest.raises(UserError, match="corrections must be at least 1, got 0"):
        invert(gaussian.denoiser("flow"), scheduler, data(gaussian), num_inference_steps=4, corrections=0)
    with pytest.raises(UserError, match="num_inference_steps must be at least 1"):
        invert(gaussian.denoiser("flow"), scheduler, data(gaussian), num_inference_steps=0)
