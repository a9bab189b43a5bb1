"""The Gaussians of the discrete chain: q(x_{t-1} | x_t, x_0), the reverse variances and their divergence.

Index t = 0 is the first noisy state (the paper's x_1), before which stands the clean x_0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.diffusion.prediction import broadcast
from unclip.diffusion.schedule import DiscreteSchedule


def q_posterior(schedule: DiscreteSchedule, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and variance [B] of q(x_{t-1} | x_t, x_0) (DDPM, eq. 6–7); x0, x_t [B, ...], t [B]."""
    beta, alpha_bar, alpha_bar_before = _chain_at(schedule, t)
    x0_coefficient = alpha_bar_before.sqrt() * beta / (1 - alpha_bar)
    x_t_coefficient = (1 - beta).sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
    variance = beta * (1 - alpha_bar_before) / (1 - alpha_bar)
    mean = broadcast(x0_coefficient.to(x_t), x_t) * x0 + broadcast(x_t_coefficient.to(x_t), x_t) * x_t
    return mean, variance.to(x_t)


def reverse_log_variances(schedule: DiscreteSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(log beta-tilde_t, log beta_t), [B]: the least and the greatest sensible variance of p(x_{t-1} | x_t).

    beta-tilde is 0 at t = 0, where the value of t = 1 stands in for it (Improved DDPM §3.1).
    """
    beta = _chain_at(schedule, t)[0]
    small_beta, alpha_bar, alpha_bar_before = _chain_at(schedule, t.clamp(min=1))
    beta_tilde = small_beta * (1 - alpha_bar_before) / (1 - alpha_bar)
    return beta_tilde.log().to(t), beta.log().to(t)


def gaussian_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """KL(N(mean_1, e^log_var_1) || N(mean_2, e^log_var_2)) of each element, in nats."""
    ratio = log_var_1 - log_var_2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean_1 - mean_2) ** 2 * (-log_var_2).exp())


def _chain_at(schedule: DiscreteSchedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """beta_t, alpha-bar_t and alpha-bar_{t-1} (1 before the first step), float64 [B]."""
    index = t.detach().cpu().round().long()
    before = torch.cat([schedule.alphas_cumprod.new_ones(1), schedule.alphas_cumprod[:-1]])
    return schedule.betas[index], schedule.alphas_cumprod[index], before[index]
