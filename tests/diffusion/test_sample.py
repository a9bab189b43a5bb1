"""THE loop: equal to diffusers' own by hand, and its mechanics (ranges, callbacks, generators, errors)."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import (
    Denoiser,
    DiscreteSchedule,
    denoise,
    first_step,
    initial_noise,
    make_schedule,
    noise_to_step,
)
from unclip.errors import UserError

SHAPE = (3, 2, 4, 4)


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of x and t."""
    return torch.tanh(x + x.flip(-1) * torch.cos(t / 300).reshape(-1, *(1,) * (x.ndim - 1)))


def network_with_variance(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([network(x, t), torch.sin(3 * x)], dim=1)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(network, make_schedule("linear"), "epsilon")


@pytest.fixture
def x_T() -> Tensor:
    return initial_noise(SHAPE, torch.Generator().manual_seed(1))


def seeds(n: int = SHAPE[0], first: int = 10) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def by_hand(scheduler: Any, x: Tensor, steps: int, model: Any = network, **options: Any) -> list[Tensor]:
    """The loop of diffusers' documentation."""
    scheduler.set_timesteps(steps)
    path = []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x, **options).prev_sample
        path.append(x)
    return path


# ---------------------------------------------------------------------------------------- equal to diffusers


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("name", "steps"), [("DDPM", 1000), ("DDPM", 27), ("DDIM", 50), ("DDIM eta", 50)])
def test_trajectories_are_those_of_diffusers(schedule: str, name: str, steps: int, x_T: Tensor) -> None:
    made = getattr(diffusers, f"{name[:4]}Scheduler")(beta_schedule=schedule)
    options = {"eta": 0.7} if "eta" in name else {}
    expected = by_hand(made, x_T, steps, generator=torch.Generator().manual_seed(2), **options)
    ours: list[Tensor] = []
    denoise(
        Denoiser(network, DiscreteSchedule(made.betas), "epsilon"),
        made,
        x_T,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(2),
        callback_on_step_end=lambda i, t, state: ours.append(state["latents"]),
        **options,
    )
    assert_close(torch.stack(ours), torch.stack(expected), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("variance_type", ["learned_range", "learned"])
def test_learned_variance_reaches_ddpm(variance_type: str, x_T: Tensor) -> None:
    """`learned` takes a variance, `learned_range` a place between two: the same where every step is taken."""
    ranged = diffusers.DDPMScheduler(variance_type="learned_range")
    expected = by_hand(ranged, x_T, 1000, network_with_variance, generator=torch.Generator().manual_seed(2))
    denoiser = Denoiser(network_with_variance, make_schedule("linear"), "epsilon", learned_variance=True)
    options = {"num_inference_steps": 1000, "generator": torch.Generator().manual_seed(2)}
    x_0 = denoise(denoiser, diffusers.DDPMScheduler(variance_type=variance_type), x_T, **options)
    assert_close(x_0, expected[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", [diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler])
def test_schedulers_get_the_prediction_that_they_ask_for(
    solver: Any, denoiser: Denoiser, x_T: Tensor
) -> None:
    results = [
        denoise(denoiser, solver(prediction_type=asked), x_T, num_inference_steps=10)
        for asked in ("epsilon", "sample", "v_prediction")
    ]
    for result in results[1:]:
        assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_x0_is_clipped(denoiser: Denoiser, x_T: Tensor) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    assert denoise(denoiser, scheduler, x_T, num_inference_steps=5).abs().max() > 0.1
    assert denoise(denoiser, scheduler, x_T, num_inference_steps=5, clip_range=0.1).abs().max() <= 0.1 + 1e-6


# -------------------------------------------------------------------------------------------------- mechanics

SCHEDULERS = {
    "DDPM": diffusers.DDPMScheduler(),
    "DDIM eta": diffusers.DDIMScheduler(),
    "PNDM": diffusers.PNDMScheduler(),
    "DPM-Solver++": diffusers.DPMSolverMultistepScheduler(),
    "DPM-Solver++ sde": diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "DPM-Solver++ single": diffusers.DPMSolverSinglestepScheduler(lower_order_final=True),
    "DEIS": diffusers.DEISMultistepScheduler(),
    "UniPC": diffusers.UniPCMultistepScheduler(),
    "Euler": diffusers.EulerDiscreteScheduler(),
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler(),
    "Heun": diffusers.HeunDiscreteScheduler(),
    "flow Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
    "flow Euler stochastic": diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "flow Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_row_does_not_depend_on_its_batch(name: str, denoiser: Denoiser) -> None:
    options = {"num_inference_steps": 12, "eta": 0.8}
    x_T = initial_noise(SHAPE, seeds())
    together = denoise(denoiser, SCHEDULERS[name], x_T, generator=seeds(first=20), **options)
    alone = torch.cat(
        [
            denoise(
                denoiser,
                SCHEDULERS[name],
                initial_noise((1, *SHAPE[1:]), seeds(1, 10 + i)),
                generator=seeds(1, 20 + i),
                **options,
            )
            for i in range(SHAPE[0])
        ]
    )
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_nothing_is_left_behind_in_the_scheduler(name: str, denoiser: Denoiser, x_T: Tensor) -> None:
    scheduler = SCHEDULERS[name]
    before = repr(vars(scheduler))
    one, two = (
        denoise(denoiser, scheduler, x_T, num_inference_steps=9, generator=seeds(), eta=0.5) for _ in range(2)
    )
    assert_close(one, two, rtol=0, atol=0)
    assert repr(vars(scheduler)) == before


@pytest.mark.parametrize(
    "name", ["DDPM", "DDIM eta", "Euler", "Euler ancestral", "flow Euler", "DPM-Solver++"]
)
def test_two_halves_make_a_whole(name: str, denoiser: Denoiser, x_T: Tensor) -> None:
    scheduler = SCHEDULERS[name]
    if name == "DPM-Solver++":  # only a single-step solver has no memory to lose
        scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=1)
    options = {"num_inference_steps": 10, "eta": 0.5}
    whole = denoise(denoiser, scheduler, x_T, generator=seeds(), **options)
    generators = seeds()
    half = denoise(denoiser, scheduler, x_T, generator=generators, end=6, **options)
    assert_close(denoise(denoiser, scheduler, half, generator=generators, start=6, **options), whole)
    assert_close(denoise(denoiser, scheduler, half, start=6, end=6, **options), half, rtol=0, atol=0)


IMAGE_TO_IMAGE = {
    "DDPM": 600,
    "DDIM eta": 200,  # with the eta of 0 that is the default
    "DPM-Solver++": 60,
    "UniPC": 60,
    "Euler": 300,
    "Heun": 60,
    "flow Euler": 200,
    "flow Heun": 60,
}


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_image_to_image_starts_at_the_level_of_its_step(name: str, gaussian) -> None:
    """The exact denoiser carries noised data back to the data's distribution, wherever it starts."""
    scheduler, steps = SCHEDULERS[name], IMAGE_TO_IMAGE[name]
    data = gaussian.mean + gaussian.std * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    options = {"num_inference_steps": steps, "start": steps // 2}
    x_t = noise_to_step(scheduler, data, noise, **options)
    generator = torch.Generator().manual_seed(2)
    x_0 = denoise(gaussian.denoiser("cosine"), scheduler, x_t, generator=generator, **options)
    assert_close(x_0.mean().item(), gaussian.mean, rtol=0, atol=0.02)
    assert_close(x_0.std().item(), gaussian.std, rtol=0, atol=0.02)


def test_the_callback_sees_each_step_and_may_replace_x(denoiser: Denoiser, x_T: Tensor) -> None:
    seen = []

    def callback(i: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        assert state["latents"].shape == state["x0"].shape == SHAPE
        seen.append((i, int(t)))
        return {"latents": torch.zeros(SHAPE)} if i == 4 else None

    scheduler = diffusers.DDIMScheduler()
    x_0 = denoise(denoiser, scheduler, x_T, num_inference_steps=5, start=2, callback_on_step_end=callback)
    assert seen == [(2, 400), (3, 200), (4, 0)]
    assert_close(x_0, torch.zeros(SHAPE), rtol=0, atol=0)


def test_progress_is_shown_only_when_named(denoiser: Denoiser, x_T: Tensor, capsys) -> None:
    denoise(denoiser, diffusers.DDIMScheduler(), x_T, num_inference_steps=3)
    assert capsys.readouterr().err == ""
    denoise(denoiser, diffusers.DDIMScheduler(), x_T, num_inference_steps=3, progress="decoder")
    assert "decoder" in capsys.readouterr().err


def test_eta_adds_noise_where_it_exists(denoiser: Denoiser, x_T: Tensor) -> None:
    def run(scheduler: Any, eta: float) -> Tensor:
        return denoise(denoiser, scheduler, x_T, num_inference_steps=5, generator=seeds(), eta=eta)

    assert (run(SCHEDULERS["DDIM eta"], 0.0) - run(SCHEDULERS["DDIM eta"], 1.0)).abs().max() > 0.01
    assert_close(run(SCHEDULERS["UniPC"], 0.0), run(SCHEDULERS["UniPC"], 1.0), rtol=0, atol=0)


def test_half_precision_starts_are_denoised_in_float32(denoiser: Denoiser, x_T: Tensor) -> None:
    assert (
        denoise(denoiser, diffusers.DDIMScheduler(), x_T.half(), num_inference_steps=2).dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (diffusers.DDIMScheduler(), {"start": 4, "end": 9}, "not among the 5"),
        (diffusers.DDIMScheduler(), {"start": 4, "end": 3}, "not among the 5"),
        (diffusers.DDIMScheduler(), {"num_inference_steps": 0}, "at least 1"),
        (diffusers.DDPMScheduler(), {"num_inference_steps": 1001}, "DDPMScheduler cannot take 1001 steps"),
        (diffusers.DDPMScheduler(), {"generator": seeds(2)}, "2 generators for 3 samples"),
        (diffusers.DDPMScheduler(variance_type="learned_range"), {}, "learned no variance"),
        (diffusers.EDMEulerScheduler(), {}, "unknown scheduler EDMEulerScheduler"),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), {}, "misreads"),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="v_prediction", use_flow_sigmas=True),
            {},
            "misreads",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    scheduler: Any, options: dict[str, Any], message: str, denoiser: Denoiser, x_T: Tensor
) -> None:
    with pytest.raises(UserError, match=message):
        denoise(denoiser, scheduler, x_T, **{"num_inference_steps": 5, **options})


# ---- begun in the midst ------------------------------------------------------------------------------------------

BEGUN: dict[str, Any] = {
    "DDPM": diffusers.DDPMScheduler(),
    "DDIM": diffusers.DDIMScheduler(),
    "PNDM": diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True),
    "DPM-Solver++": diffusers.DPMSolverMultistepScheduler(),
    "DPM-Solver++ singlestep": diffusers.DPMSolverSinglestepScheduler(),
    "UniPC": diffusers.UniPCMultistepScheduler(),
    "DEIS": diffusers.DEISMultistepScheduler(),
    "Euler": diffusers.EulerDiscreteScheduler(),
    "Heun": diffusers.HeunDiscreteScheduler(),
    "flow Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
    "flow Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
}


@pytest.mark.parametrize("strength", [0.9, 0.75, 0.4, 0.3, 0.1])
@pytest.mark.parametrize("name", BEGUN)
def test_who_knows_x0_finds_it_from_any_step(name: str, strength: float) -> None:
    """A denoiser that always answers the true x_0 leads there, wherever image to image begins."""
    scheduler, x0 = BEGUN[name], torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) - 0.5

    class Knows(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            return x0

    start = first_step(scheduler, 20, strength)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    made = denoise(
        Denoiser(Knows(), make_schedule("cosine"), "sample"),
        scheduler,
        noise_to_step(scheduler, x0, noise, 20, start),
        num_inference_steps=20,
        start=start,
        generator=torch.Generator().manual_seed(2),
    )
    assert_close(made, x0, rtol=0, atol=0.1)  # PNDM extrapolates past it


def test_steps_that_cannot_be_begun_with(x_T: Tensor) -> None:
    knows = Denoiser(network, make_schedule("cosine"), "sample")
    with pytest.raises(
        UserError, match="step 3 of HeunDiscreteScheduler is the second half of one: begin at a mul"
    ):
        denoise(knows, diffusers.HeunDiscreteScheduler(), x_T, num_inference_steps=5, start=3)
    with pytest.raises(UserError, match="PNDMScheduler with Runge-Kutta steps must begin with them"):
        denoise(knows, diffusers.PNDMScheduler(), x_T, num_inference_steps=5, start=3)
