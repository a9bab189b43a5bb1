"""The posterior of the chain against diffusers and against Bayes' rule."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch.testing import assert_close

from unclip.diffusion import DiscreteSchedule, gaussian_kl, q_posterior, reverse_log_variances


def test_posterior_is_that_of_diffusers(generator: torch.Generator) -> None:
    theirs = diffusers.DDPMScheduler(prediction_type="sample", clip_sample=False)
    theirs._get_variance = lambda *_, **__: torch.zeros(())  # the mean alone
    x0, x_t = torch.randn(2, 1, 3, generator=generator)
    for t in (0, 1, 500, 999):
        mean, variance = q_posterior(DiscreteSchedule.linear(), x0, x_t, torch.tensor([float(t)]))
        assert_close(mean, theirs.step(x0, t, x_t).prev_sample, rtol=1e-4, atol=1e-5)
        if t:
            expected = diffusers.DDPMScheduler()._get_variance(t)
            assert_close(variance, expected.reshape(1), rtol=2e-3, atol=1e-9)  # theirs cancels in float32


@pytest.mark.parametrize("t", [1, 30, 99])
def test_posterior_is_bayes_rule(t: int) -> None:
    """q(x_{t-1} | x_0) q(x_t | x_{t-1}) / q(x_t | x_0) on a fine grid of x_{t-1}."""
    schedule = DiscreteSchedule.linear(100, 1e-3, 0.2)
    x0, x_t = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-0.2]], dtype=torch.float64)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    beta, before = schedule.betas[t], schedule.alphas_cumprod[t - 1]
    log_weight = -((grid - before.sqrt() * x0) ** 2) / (2 * (1 - before))
    log_weight = log_weight - (x_t - (1 - beta).sqrt() * grid) ** 2 / (2 * beta)
    weight = torch.softmax(log_weight.flatten(), 0)
    mean, variance = q_posterior(schedule, x0, x_t, torch.tensor([float(t)]))
    assert_close(mean.flatten()[0], (weight * grid).sum(), rtol=1e-6, atol=1e-8)
    assert_close(variance[0], (weight * (grid - mean.flatten()) ** 2).sum(), rtol=1e-6, atol=1e-12)


def test_reverse_variances_bracket_and_meet(generator: torch.Generator) -> None:
    schedule = DiscreteSchedule.cosine()
    small, large = reverse_log_variances(schedule, torch.arange(1000.0))
    assert_close(large.double().exp(), schedule.betas, rtol=1e-5, atol=0)
    assert bool((small[1:] <= large[1:]).all())
    assert_close(small[0], small[1])
    _, variance = q_posterior(schedule, *torch.zeros(2, 999, 1), torch.arange(1.0, 1000.0))
    assert_close(small[1:].exp(), variance)


def test_kl_against_torch() -> None:
    p = torch.distributions.Normal(torch.tensor(0.3), torch.tensor(0.5))
    q = torch.distributions.Normal(torch.tensor(-0.1), torch.tensor(0.8))
    ours = gaussian_kl(p.mean, 2 * p.stddev.log(), q.mean, 2 * q.stddev.log())
    assert_close(ours, torch.distributions.kl_divergence(p, q))
