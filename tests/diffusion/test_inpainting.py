"""Inpainting on two correlated Gaussian numbers: given the one, the distribution of the other is known."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import Denoiser, initial_noise, inpaint, make_schedule, noise_level, prepared
from unclip.diffusion.inpainting import renoise
from unclip.errors import UserError

CORRELATION, KNOWN, ROWS = 0.9, 1.2, 3000
MEAN, VARIANCE = CORRELATION * KNOWN, 1 - CORRELATION**2  # of the second number given the first
HOLE = torch.tensor([[False, True]])
COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "clip_sample": False}
SCHEDULERS = {
    "DDIM": diffusers.DDIMScheduler(**COSINE),
    "DDPM": diffusers.DDPMScheduler(**COSINE),
    "Euler": diffusers.EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
}


@pytest.fixture
def denoiser() -> Denoiser:
    """The best one of N(0, C): x_0 = alpha C (alpha² C + sigma² I)⁻¹ x_t."""
    covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]])
    schedule = make_schedule("flow")

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.reshape(-1, 1, 1) for level in schedule.alpha_sigma(t))
        noised = alpha**2 * covariance + sigma**2 * torch.eye(2)
        return (alpha * covariance @ torch.linalg.solve(noised, x[..., None]))[..., 0]

    return Denoiser(network, schedule, "sample")


def fill(denoiser: Denoiser, scheduler: Any, resamplings: int, steps: int = 25, **options: Any) -> Tensor:
    """[ROWS, 2]."""
    generator = torch.Generator().manual_seed(0)
    return inpaint(
        denoiser,
        scheduler,
        initial_noise((ROWS, 2), generator),
        torch.tensor([[KNOWN, 7.0]]).expand(ROWS, 2),  # what lies in the hole is to have no effect
        HOLE,
        num_inference_steps=steps,
        num_resamplings=resamplings,
        generator=generator,
        **options,
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resampling_finds_the_conditional_distribution(name: str, denoiser: Denoiser) -> None:
    once, several, many = (fill(denoiser, SCHEDULERS[name], times) for times in (1, 4, 16))
    for filled in (once, several, many):
        assert torch.equal(filled[:, 0], torch.full((ROWS,), KNOWN))
    # RePaint's point (§4.2): taken once, the steps do not see enough of what is known.
    assert once[:, 1].mean() < 0.7 * MEAN
    assert once[:, 1].var() > 1.3 * VARIANCE
    assert (several[:, 1].mean() - MEAN).abs() < 0.5 * (once[:, 1].mean() - MEAN).abs()
    assert_close(many[:, 1].mean().item(), MEAN, rtol=0, atol=0.07)
    assert_close(many[:, 1].var().item(), VARIANCE, rtol=0, atol=0.065)


def test_more_steps_come_closer(denoiser: Denoiser) -> None:
    """What is missing is the sampler's own error: the variance of few steps is too small."""
    few, more = (fill(denoiser, SCHEDULERS["flow Euler"], 16, steps)[:, 1] for steps in (10, 40))
    assert (few.var() - VARIANCE).abs() > 2 * (more.var() - VARIANCE).abs()
    assert_close(more.var().item(), VARIANCE, rtol=0, atol=0.03)


def test_without_a_hole_all_is_known_and_without_known_it_is_sampling(denoiser: Denoiser) -> None:
    known = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    options = {"num_inference_steps": 5, "num_resamplings": 2}
    x_T = initial_noise((50, 2), torch.Generator().manual_seed(0))
    scheduler = SCHEDULERS["flow Euler"]
    closed = inpaint(denoiser, scheduler, x_T, known, torch.tensor(False), **options)
    assert torch.equal(closed, known)
    open_ = fill_all(denoiser)
    assert_close(torch.corrcoef(open_.T)[0, 1].item(), CORRELATION, rtol=0, atol=0.03)


def fill_all(denoiser: Denoiser) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_T = initial_noise((ROWS, 2), generator)
    return inpaint(
        denoiser,
        SCHEDULERS["flow Euler"],
        x_T,
        torch.full((ROWS, 2), 7.0),
        torch.tensor(True),
        num_inference_steps=25,
        num_resamplings=2,
        generator=generator,
    )


def test_a_row_does_not_depend_on_its_batch(denoiser: Denoiser) -> None:
    def seeds(*which: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(each) for each in which]

    known = torch.tensor([[0.5, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    hole = torch.tensor([[False, True], [True, False], [True, True]])
    options = {"num_inference_steps": 6, "num_resamplings": 3}
    for scheduler in SCHEDULERS.values():
        generators = seeds(5, 6, 7)
        x_T = initial_noise((3, 2), generators)
        together = inpaint(denoiser, scheduler, x_T, known, hole, generator=generators, **options)
        for i in range(3):
            own = seeds(5 + i)
            alone = inpaint(
                denoiser,
                scheduler,
                initial_noise((1, 2), own),
                known[i : i + 1],
                hole[i : i + 1],
                generator=own,
                **options,
            )
            assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_renoising_is_the_forward_process(name: str) -> None:
    """Of x_s = alpha_s x_0 + sigma_s eps it makes alpha_t x_0 + sigma_t eps."""
    scheduler = prepared(SCHEDULERS[name], 10)
    generator = torch.Generator().manual_seed(0)
    for i in (1, 5, 9):
        more, less = noise_level(scheduler, i - 1), noise_level(scheduler, i)
        noise = torch.randn(2, 100_000, generator=generator)
        x_t = renoise(less[0] * 3 + less[1] * noise[0], noise[1], less, more)
        assert_close(x_t.mean(), more[0] * 3, rtol=0, atol=float(more[1]) * 0.015)
        assert_close(x_t.std(), more[1], rtol=0.01, atol=0)


def test_renoising_by_one_step_of_the_chain_adds_beta() -> None:
    chain = diffusers.DDPMScheduler()
    levels = [(a.sqrt(), (1 - a).sqrt()) for a in chain.alphas_cumprod]
    for t in (1, 10, 500, 999):
        one, zero = torch.ones(1), torch.zeros(1)
        beta = chain.betas[t]
        assert_close(renoise(one, zero, levels[t - 1], levels[t])[0], (1 - beta).sqrt(), rtol=1e-4, atol=0)
        assert_close(renoise(zero, one, levels[t - 1], levels[t])[0] ** 2, beta, rtol=2e-3, atol=0)


def test_callbacks_see_each_resampling(denoiser: Denoiser) -> None:
    seen: list[int] = []
    fill(
        denoiser,
        SCHEDULERS["DDIM"],
        3,
        4,
        callback_on_step_end=lambda i, t, state: seen.append(i),  # type: ignore[func-returns-value]
    )
    # The last step gives x_0 itself, so it is taken once.
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_fewer_than_one_resampling(denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match="num_resamplings must be at least 1, got 0"):
        fill(denoiser, SCHEDULERS["DDIM"], 0)


def test_schedulers_whose_steps_come_in_halves(denoiser: Denoiser) -> None:
    with pytest.raises(
        UserError, match="HeunDiscreteScheduler takes each step in halves, so none can be taken again"
    ):
        fill(denoiser, diffusers.HeunDiscreteScheduler(), 2)
    with pytest.raises(UserError, match="PNDMScheduler with Runge-Kutta steps must begin with them"):
        fill(denoiser, diffusers.PNDMScheduler(), 2)
