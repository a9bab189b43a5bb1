"""Schedules against diffusers, their inverses and their ends."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch.testing import assert_close

from unclip.diffusion import DiscreteSchedule, FlowSchedule, add_noise, make_schedule
from unclip.errors import UserError

BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", BETAS)
def test_betas_are_those_of_diffusers(name: str) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=BETAS[name])
    ours = make_schedule(name)
    assert isinstance(ours, DiscreteSchedule)
    assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", BETAS)
def test_noised_samples_are_those_of_diffusers(name: str, generator: torch.Generator) -> None:
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    t = torch.tensor([0, 1, 321, 998, 999])
    theirs = diffusers.DDPMScheduler(beta_schedule=BETAS[name]).add_noise(x0, noise, t)
    assert_close(add_noise(x0, noise, *make_schedule(name).alpha_sigma(t)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_time_of_inverts_alpha_sigma(name: str, scale: float) -> None:
    schedule = make_schedule(name)
    t = torch.linspace(0, 1, 777, dtype=torch.float64) * schedule.t_max
    alpha, sigma = schedule.alpha_sigma(t)
    assert_close(schedule.time_of(scale * alpha, scale * sigma), t, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_levels_of_the_chain_are_whole_times_in_single_precision(name: str) -> None:
    schedule = make_schedule(name)
    alphas_cumprod = schedule.alphas_cumprod.float()
    t = schedule.time_of(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
    assert_close(t, torch.arange(1000.0), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_time_of_pure_noise_and_clean_data(name: str) -> None:
    schedule = make_schedule(name)
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert_close(schedule.time_of(alpha, sigma), torch.tensor([schedule.t_max, 0.0]))


def test_discrete_schedules_preserve_variance_between_steps_too() -> None:
    alpha, sigma = make_schedule("cosine").alpha_sigma(torch.tensor([0.25, 1.5, 998.7]))
    assert_close(alpha**2 + sigma**2, torch.ones(3))


def test_zero_terminal_snr_is_finite() -> None:
    betas = torch.linspace(1e-4, 0.02, 100)
    betas[-1] = 1.0
    alpha, sigma = DiscreteSchedule(betas).alpha_sigma(torch.tensor([99.0, 98.5]))
    assert bool((alpha[0] < 1e-8) & (sigma[0] == 1))
    assert bool(torch.isfinite(alpha).all())


def test_half_precision_times_give_float32() -> None:
    assert make_schedule("cosine").alpha_sigma(torch.tensor([5.0]).half())[0].dtype == torch.float32


def test_training_times_of_the_chain_are_uniform_indices(generator: torch.Generator) -> None:
    t = make_schedule("linear", num_steps=10).sample_t(20000, generator)
    assert_close(torch.bincount(t.long(), minlength=10) / 20000, torch.full((10,), 0.1), rtol=0, atol=0.01)
    assert_close(t, t.round())


def test_skewed_training_times_crowd_at_the_noisy_end(generator: torch.Generator) -> None:
    t = make_schedule("cosine", num_steps=1000, skew=3.0).sample_t(40000, generator)
    for level in (0.25, 0.5, 0.8):
        assert_close((t < 1000 * level).float().mean().item(), level**3, rtol=0, atol=0.01)
    assert t.max() == 999
    with pytest.raises(UserError, match="must be positive"):
        make_schedule("cosine", skew=0.0)


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_the_training_times_of_one_sample_come_from_equal_shares(
    name: str, generator: torch.Generator
) -> None:
    schedule = make_schedule(name)
    t = schedule.sample_t(500, generator, each=4).view(500, 4)
    bounds = schedule.training_time(torch.tensor([0.25, 0.5, 0.75]))
    # A time that is a bound belongs to the share above it.
    assert torch.equal(torch.bucketize(t, bounds, right=True), torch.arange(4).expand(500, 4))


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_the_first_and_last_training_times_are_the_ends_of_the_schedule(name: str) -> None:
    schedule = make_schedule(name)
    assert_close(schedule.training_time(torch.tensor([0.0, 1.0])), torch.tensor([0.0, schedule.t_max]))


def test_the_shares_of_one_sample_together_are_all_times(generator: torch.Generator) -> None:
    schedule = make_schedule("flow")
    t = schedule.sample_t(500, generator, each=4)
    lone = schedule.sample_t(2000, torch.Generator().manual_seed(0))
    assert_close(t.flatten().logit().std(), lone.logit().std(), rtol=0.05, atol=0)


def test_training_times_of_the_flow_are_logit_normal(generator: torch.Generator) -> None:
    t = FlowSchedule(mean=-0.8, std=0.8).sample_t(40000, generator)
    logit = torch.logit(t.double())
    assert_close(logit.mean().item(), -0.8, rtol=0, atol=0.02)
    assert_close(logit.std().item(), 0.8, rtol=0, atol=0.02)


def test_training_times_repeat_with_the_generator() -> None:
    for name in ("cosine", "flow"):
        one, two = (make_schedule(name).sample_t(8, torch.Generator().manual_seed(3)) for _ in range(2))
        assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("betas", [[0.1], [0.1, 0.0], [0.1, 1.5], [[0.1, 0.2]]])
def test_impossible_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(UserError, match="betas must be"):
        DiscreteSchedule(betas)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="choose one of linear, cosine, flow"):
        make_schedule("sigmoid")
    with pytest.raises(UserError, match="must be positive"):
        FlowSchedule(std=0.0)
