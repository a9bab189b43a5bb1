"""The variational bound on log-likelihood, in bits per dimension (DDPM §2 and §3.3; Improved DDPM §2).

    L_vlb = L_0 + L_1 + … + L_{T-1} + L_T,   -log p(x_0) <= L_vlb

    L_0   -log p(x_0 | x_1): a Gaussian integrated over the bin of each 8-bit value
    L_t   KL(q(x_t | x_{t+1}, x_0) || p(x_t | x_{t+1}))
    L_T   KL(q(x_T | x_0) || N(0, I)): nothing to learn

Index t = 0 … T-1 of the schedule names the state that is denoised, so term 0 is L_0. Data are 8-bit values v
scaled to [-1, 1] as v / 127.5 - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser, Posterior
from unclip.diffusion.gaussian import gaussian_kl, q_posterior, reverse_log_variances
from unclip.diffusion.prediction import add_noise, broadcast
from unclip.diffusion.schedule import DiscreteSchedule
from unclip.errors import UserError

FIXED_VARIANCES = ("fixed_small", "fixed_large")
HALF_BIN = 1 / 255


@dataclass(frozen=True)
class BitsPerDim:
    """The bound and its parts, [B] each, in bits per dimension (DDPM, table 4: rate and distortion)."""

    total: Tensor
    prior: Tensor  # L_T
    rate: Tensor  # L_1 + … + L_{T-1}
    distortion: Tensor  # L_0


def prior_kl(schedule: DiscreteSchedule, x0: Tensor) -> Tensor:
    """L_T [B] in bits per dimension: how much q(x_T | x_0) still tells of x0 [B, ...]."""
    t = torch.full((len(x0),), schedule.t_max, device=x0.device, dtype=x0.dtype)
    alpha, sigma = schedule.alpha_sigma(t)
    zero = torch.zeros_like(x0)
    return _bits_per_dim(gaussian_kl(broadcast(alpha, x0) * x0, broadcast(2 * sigma.log(), x0), zero, zero))


def vlb_term(
    schedule: DiscreteSchedule,
    posterior: Posterior,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    variance: str = "fixed_large",
) -> Tensor:
    """L_t [B] in bits per dimension (L_0 where t = 0), given the posterior at x_t [B, ...], t [B].

    `variance` is that of p where it is not learned: "fixed_large" (beta) or "fixed_small" (beta-tilde), DDPM
    §3.2.
    """
    if variance not in FIXED_VARIANCES:
        raise UserError(f"unknown reverse variance {variance!r}: choose one of {', '.join(FIXED_VARIANCES)}")
    small, large = (broadcast(log_var, x_t) for log_var in reverse_log_variances(schedule, t))
    fixed = large if variance == "fixed_large" else small
    log_var = fixed if posterior.log_var is None else posterior.log_var
    true_mean, _ = q_posterior(schedule, x0, x_t, t)
    mean, _ = q_posterior(schedule, posterior.mean, x_t, t)
    kl = _bits_per_dim(gaussian_kl(true_mean, small, mean, log_var).expand_as(x0))
    # Elsewhere than at t = 0 the decoder is asked about x_0 itself: far guesses would overflow in gradients.
    first = t.round() == 0
    mean = torch.where(broadcast(first, x0), mean, x0)
    log_std = torch.where(broadcast(first, x0), log_var / 2, 0)
    decoder = _bits_per_dim(-discretized_gaussian_log_prob(x0, mean, log_std))
    return torch.where(first, decoder, kl)


@torch.no_grad()
def vlb_terms(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Conditions | None = None,
    generator: torch.Generator | None = None,
    variance: str = "fixed_large",
) -> Tensor:
    """All terms L_0 … L_{T-1} of x0 [B, ...], one draw of x_t each: [B, T] bits/dim; T network calls."""
    schedule = _chain_of(denoiser)
    terms = []
    for index in range(len(schedule)):
        t = torch.full((len(x0),), float(index), device=x0.device, dtype=x0.dtype)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x_t = add_noise(x0, noise, *schedule.alpha_sigma(t))
        terms.append(vlb_term(schedule, denoiser.at(x_t, t, cond), x0, x_t, t, variance))
    return torch.stack(terms, dim=1)


def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Conditions | None = None,
    generator: torch.Generator | None = None,
    variance: str = "fixed_large",
) -> BitsPerDim:
    """The bound on -log2 p(x0) / dimensions of 8-bit data x0 [B, ...] in [-1, 1]; T network calls."""
    terms = vlb_terms(denoiser, x0, cond, generator, variance)
    prior = prior_kl(_chain_of(denoiser), x0)
    rate, distortion = terms[:, 1:].sum(1), terms[:, 0]
    return BitsPerDim(total=prior + rate + distortion, prior=prior, rate=rate, distortion=distortion)


def discretized_gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of N(mean, e^{2 log_std}) over the bin of x, one of 256 values in [-1, 1] (DDPM, eq. 13).

    The outermost bins reach to infinity, so the 256 probabilities sum to 1. Elementwise, in nats.
    """
    inverse_std = torch.exp(-log_std)
    upper, lower = (x + HALF_BIN - mean) * inverse_std, (x - HALF_BIN - mean) * inverse_std
    first, last = x < HALF_BIN - 1, x > 1 - HALF_BIN
    # In the right half look at the mirror image: small cdfs do not cancel. The last bin becomes the first.
    mirrored = last | ((upper + lower > 0) & ~first)
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    share = -torch.expm1(log_lower - log_upper)  # of cdf(upper), what is not below the bin
    share = torch.where(first | last, 1.0, share.clamp(min=torch.finfo(share.dtype).tiny))
    return log_upper + share.log()


def _bits_per_dim(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)


def _chain_of(denoiser: Denoiser) -> DiscreteSchedule:
    if not isinstance(denoiser.schedule, DiscreteSchedule):
        raise UserError(
            f"the bound is that of a chain of steps, got {type(denoiser.schedule).__name__}: make the "
            "denoiser with a DiscreteSchedule"
        )
    return denoiser.schedule
