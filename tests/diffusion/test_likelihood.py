"""The variational bound in closed form: an exact reverse process leaves no gap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import (
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    add_noise,
    bits_per_dim,
    prior_kl,
    q_posterior,
    reverse_log_variances,
    vlb_term,
    vlb_terms,
)
from unclip.diffusion.likelihood import discretized_gaussian_log_prob
from unclip.errors import UserError

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1  # the 8-bit values


@pytest.fixture
def schedule() -> DiscreteSchedule:
    return DiscreteSchedule.linear()


@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.77, 1.1])
@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 3.0])
def test_decoder_probabilities_sum_to_one(mean: float, std: float) -> None:
    log_prob = discretized_gaussian_log_prob(VALUES, torch.tensor(mean), torch.tensor(std).log())
    assert_close(log_prob.exp().sum().item(), 1.0, rtol=1e-6, atol=0)
    assert bool(torch.isfinite(log_prob).all())
    single = discretized_gaussian_log_prob(VALUES.float(), torch.tensor(mean), torch.tensor(std).log())
    assert_close(single.exp().sum().item(), 1.0, rtol=1e-3, atol=0)


def test_decoder_probability_is_the_density_where_bins_are_small() -> None:
    density = torch.distributions.Normal(0.1, 0.5).log_prob(VALUES[1:-1].float())
    ours = discretized_gaussian_log_prob(VALUES[1:-1].float(), torch.tensor(0.1), torch.tensor(0.5).log())
    assert_close(ours, density + math.log(2 / 255), rtol=0, atol=1e-3)


def test_decoder_gradient_is_finite_at_the_edges_and_far_off() -> None:
    log_std = torch.full((3,), -6.0, requires_grad=True)
    mean = torch.tensor([1.0, -1.0, 0.9], requires_grad=True)
    discretized_gaussian_log_prob(torch.tensor([1.0, -1.0, -0.9]), mean, log_std).sum().backward()
    assert bool(torch.isfinite(log_std.grad).all() & torch.isfinite(mean.grad).all())


def test_prior_kl_in_closed_form(schedule: DiscreteSchedule) -> None:
    x0 = torch.tensor([[0.5, -1.0], [0.0, 0.0]], dtype=torch.float64)
    alpha_bar = schedule.alphas_cumprod[-1]
    expected = 0.5 * (alpha_bar * x0**2 - alpha_bar - torch.log(1 - alpha_bar)) / math.log(2)
    assert_close(prior_kl(schedule, x0), expected.mean(1), rtol=1e-4, atol=1e-10)


def test_terms_are_closed_form_for_a_perfect_guess(schedule: DiscreteSchedule) -> None:
    """Who knows x_0 pays for the variance alone: nothing with beta-tilde, for the ratio of the two with beta."""
    x0 = VALUES[100:104].reshape(2, 2)
    knowing = Denoiser(lambda x, t: x0, schedule, "sample")
    generator = torch.Generator().manual_seed(0)
    small, large = reverse_log_variances(schedule, torch.arange(1.0, 1000.0, dtype=torch.float64))
    price = 0.5 * ((small - large).exp() - 1 - (small - large)) / math.log(2)
    assert_close(
        vlb_terms(knowing, x0, generator=generator)[:, 1:], price.expand(2, -1), rtol=1e-6, atol=1e-9
    )
    none = vlb_terms(knowing, x0, generator=generator, variance="fixed_small")[:, 1:]
    assert_close(none, torch.zeros_like(none), rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------- the bound for Gaussian data


class ExactReverse:
    """Denoisers of N(mean, std²) on a chain, their p(x_{t-1} | x_t) that of the data if the variance is learned."""

    def __init__(self, gaussian, schedule: DiscreteSchedule) -> None:
        self.gaussian, self.schedule = gaussian, schedule

    def fixed(self) -> Denoiser:
        return Denoiser(self.gaussian.network(self.schedule, "sample"), self.schedule, "sample")

    def learned(self) -> Denoiser:
        mean = self.gaussian.network(self.schedule, "sample")

        def network(x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([mean(x, t), (2 * self.fraction(t) - 1)[:, None].expand_as(x)], dim=1)

        return Denoiser(network, self.schedule, "sample", learned_variance=True)

    def fraction(self, t: Tensor) -> Tensor:
        """v such that the reverse variance is Var(x_{t-1} | x_t) = beta-tilde + c² Var(x_0 | x_t)."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        var_x0 = (self.gaussian.std * sigma) ** 2 / ((alpha * self.gaussian.std) ** 2 + sigma**2)
        one, zero = torch.ones_like(t)[:, None], torch.zeros_like(t)[:, None]
        coefficient, beta_tilde = q_posterior(self.schedule, one, zero, t)
        small, large = reverse_log_variances(self.schedule, t)
        return ((beta_tilde + coefficient[:, 0] ** 2 * var_x0).log() - small) / (large - small)


def exact_bound(denoiser: Denoiser, probabilities: Tensor, variance: str = "fixed_large") -> float:
    """The bound in bits per dimension, its mean over 8-bit data of the given probabilities and noise integrated."""
    schedule = denoiser.schedule
    assert isinstance(schedule, DiscreteSchedule)
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(8))
    x0 = VALUES.repeat_interleave(len(nodes))[:, None]  # every value with every node of the noise
    noise = nodes.repeat(256)[:, None]
    weight = (probabilities[:, None] * weights / weights.sum()).flatten()
    total = (weight * prior_kl(schedule, x0)).sum()
    for times in torch.arange(len(schedule), dtype=torch.float64).split(20):
        n = len(times)
        t, many_x0, many_noise = times.repeat_interleave(len(x0)), x0.repeat(n, 1), noise.repeat(n, 1)
        x_t = add_noise(many_x0, many_noise, *schedule.alpha_sigma(t))
        terms = vlb_term(schedule, denoiser.at(x_t, t), many_x0, x_t, t, variance)
        total = total + (weight.repeat(n) * terms).sum()
    return total.item()


@pytest.fixture
def narrow(gaussian):
    """Gaussian data whose tails end within the 8-bit values."""
    return replace(gaussian, mean=0.1, std=0.2)


@pytest.fixture
def probabilities(narrow) -> Tensor:
    """Of the 8-bit values, when Gaussian data are rounded to them."""
    mean, std = torch.tensor([narrow.mean, narrow.std], dtype=torch.float64)
    return discretized_gaussian_log_prob(VALUES, mean, std.log()).exp()


@pytest.fixture
def entropy(probabilities: Tensor) -> float:
    """In bits."""
    return -torch.special.xlogy(probabilities, probabilities).sum().item() / math.log(2)


def test_the_bound_lies_above_the_entropy_and_close(
    narrow, schedule, probabilities: Tensor, entropy: float
) -> None:
    exact = ExactReverse(narrow, schedule)
    learned = exact_bound(exact.learned(), probabilities)
    assert learned >= entropy
    assert_close(learned, entropy, rtol=0, atol=0.002)  # the reverse process is that of the data: no gap
    large = exact_bound(exact.fixed(), probabilities, "fixed_large")
    assert large > learned
    assert_close(large, entropy, rtol=0, atol=0.02)  # T = 1000 steps are many
    assert exact_bound(exact.fixed(), probabilities, "fixed_small") > large


def test_bits_per_dim_is_the_sum_of_its_parts(narrow, schedule: DiscreteSchedule, entropy: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data = narrow.mean + narrow.std * torch.randn(64, 40, generator=generator, dtype=torch.float64)
    x0 = ((data.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bits = bits_per_dim(ExactReverse(narrow, schedule).learned(), x0, generator=generator)
    assert_close(bits.total, bits.prior + bits.rate + bits.distortion)
    assert_close(bits.total.mean().item(), entropy, rtol=0, atol=0.1)  # 2560 draws
    assert bits.total.shape == (64,)


def test_the_bound_needs_a_chain_and_a_known_variance(gaussian) -> None:
    flow = Denoiser(lambda x, t: x, FlowSchedule(), "flow")
    with pytest.raises(UserError, match="FlowSchedule"):
        bits_per_dim(flow, torch.zeros(1, 2))
    with pytest.raises(UserError, match="fixed_small, fixed_large"):
        bits_per_dim(gaussian.denoiser(), torch.zeros(1, 2), variance="learned")
