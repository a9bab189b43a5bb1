"""Analytic truth: with the exact denoiser of Gaussian data every sampler must find the data, at its order."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

from unclip.diffusion import denoise, initial_noise, noise_level, prepared

FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SAMPLERS = {
    "DDPM": (diffusers.DDPMScheduler(clip_sample=False), 500),
    "DDPM cosine": (diffusers.DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"), 500),
    "DDIM": (diffusers.DDIMScheduler(clip_sample=False), 250),
    "DDIM eta": (diffusers.DDIMScheduler(clip_sample=False), 500),
    "PNDM": (diffusers.PNDMScheduler(skip_prk_steps=True), 40),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler(), 40),
    "DPM-Solver++ karras": (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), 40),
    "DPM-Solver++ flow": (diffusers.DPMSolverMultistepScheduler(**FLOW_SIGMAS), 40),
    "DPM-Solver++ sde": (
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
        60,
    ),
    "DEIS": (diffusers.DEISMultistepScheduler(), 60),
    "UniPC": (diffusers.UniPCMultistepScheduler(use_karras_sigmas=True), 40),
    "UniPC flow": (diffusers.UniPCMultistepScheduler(**FLOW_SIGMAS), 60),
    "Euler": (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), 250),
    "Euler v": (
        diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"),
        250,
    ),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler(), 500),
    "Heun": (diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), 40),
    "flow Euler": (diffusers.FlowMatchEulerDiscreteScheduler(), 250),
    "flow Euler shifted": (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 250),
    "flow Heun": (diffusers.FlowMatchHeunDiscreteScheduler(), 40),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("trained", [("cosine", "epsilon"), ("flow", "sample")])
def test_samples_have_the_mean_and_deviation_of_the_data(
    gaussian, name: str, trained: tuple[str, str]
) -> None:
    scheduler, steps = SAMPLERS[name]
    generator = torch.Generator().manual_seed(0)
    x_T = initial_noise((10_000, 1), generator)
    eta = 1.0 if "eta" in name else 0.0
    x_0 = denoise(
        gaussian.denoiser(*trained), scheduler, x_T, num_inference_steps=steps, generator=generator, eta=eta
    )
    # Standard errors of the mean and deviation of 10,000 draws: .003 and .002.
    assert_close(x_0.mean().item(), gaussian.mean, rtol=0, atol=0.012)
    assert_close(x_0.std().item(), gaussian.std, rtol=0, atol=0.012)


# Scheduler, whether its last step (to zero noise, always of first order) is left out, order of convergence.
LU = {"use_lu_lambdas": True, "lower_order_final": False}
ORDERS = {
    "DDIM": (diffusers.DDIMScheduler(clip_sample=False), 0, 1),
    "DPM-Solver++ 1": (diffusers.DPMSolverMultistepScheduler(solver_order=1, **LU), 1, 1),
    "DPM-Solver++ 2M": (diffusers.DPMSolverMultistepScheduler(solver_order=2, **LU), 1, 2),
    "UniPC": (diffusers.UniPCMultistepScheduler(use_karras_sigmas=True), 1, 3),  # order 2 and its corrector
    "Euler": (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), 1, 1),
    "Heun": (diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), 1, 2),
    "flow Euler": (diffusers.FlowMatchEulerDiscreteScheduler(), 0, 1),
    "flow Heun": (diffusers.FlowMatchHeunDiscreteScheduler(), 0, 2),
}


def distance_to_exact_flow(gaussian, scheduler: Any, steps: int, left_out: int) -> float:
    """Mean distance of a sampler's x from the exact solution of the probability-flow ODE, given x_T."""
    x_T = torch.linspace(-2, 2, 41)[:, None]
    made = prepared(scheduler, steps)
    end = len(made.timesteps) - left_out
    x = denoise(gaussian.denoiser("linear", "sample"), scheduler, x_T, num_inference_steps=steps, end=end)
    clean = (torch.tensor(1.0), torch.tensor(0.0))
    stop = noise_level(made, end) if left_out else clean
    exact = gaussian.flow(x_T * getattr(made, "init_noise_sigma", 1.0), noise_level(made, 0), stop)
    return (x - exact).abs().mean().item()


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(gaussian, name: str) -> None:
    scheduler, left_out, order = ORDERS[name]
    coarse, fine = (distance_to_exact_flow(gaussian, scheduler, steps, left_out) for steps in (40, 80))
    assert_close(math.log2(coarse / fine), float(order), rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++", "UniPC", "Heun", "flow Euler"])
def test_what_the_network_was_trained_on_does_not_matter(gaussian, name: str) -> None:
    x_T = initial_noise((50, 2), torch.Generator().manual_seed(0))
    results = [
        denoise(gaussian.denoiser(*trained), SAMPLERS[name][0], x_T, num_inference_steps=20)
        for trained in (
            ("cosine", "epsilon"),
            ("cosine", "v_prediction"),
            ("flow", "sample"),
            ("flow", "flow"),
        )
    ]
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=5e-4)
