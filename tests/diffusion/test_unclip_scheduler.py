"""Karlo's scheduler: the deprecated one of diffusers step by step, and its own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import Denoiser, DiscreteSchedule, UnCLIPScheduler, denoise
from unclip.errors import UserError

# As in the published checkpoint: of prior, decoder and upsamplers.
CONFIGS: dict[str, dict[str, Any]] = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0, "variance_type": "fixed_small_log"},
    "decoder": {"prediction_type": "epsilon", "variance_type": "learned_range"},
    "super_res": {"prediction_type": "epsilon", "variance_type": "fixed_small_log"},
}


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + x.flip(-1) * torch.cos(t / 300).reshape(-1, 1, 1, 1))


def with_variance(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([network(x, t), torch.sin(3 * x)], dim=1)


@pytest.mark.parametrize("steps", [2, 7, 25, 1000])
@pytest.mark.parametrize("stage", CONFIGS)
def test_trajectories_are_those_of_the_deprecated_class(stage: str, steps: int) -> None:
    if not hasattr(diffusers, "UnCLIPScheduler"):
        pytest.skip("this diffusers has no UnCLIPScheduler any more")
    deprecated, own = diffusers.UnCLIPScheduler(**CONFIGS[stage]), UnCLIPScheduler(**CONFIGS[stage])
    learned = CONFIGS[stage]["variance_type"] == "learned_range"
    model = with_variance if learned else network
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    deprecated.set_timesteps(steps)
    generator, x, expected = torch.Generator().manual_seed(1), x_T, []
    for i, t in enumerate(deprecated.timesteps):
        following = deprecated.timesteps[i + 1] if i + 1 < steps else None
        x = deprecated.step(
            model(x, t.expand(2)), t, x, prev_timestep=following, generator=generator
        ).prev_sample
        expected.append(x)

    made: list[Tensor] = []
    denoise(
        Denoiser(model, DiscreteSchedule(own.betas), own.config.prediction_type, learned_variance=learned),
        own,
        x_T,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        callback_on_step_end=lambda i, t, state: made.append(state["latents"]),
    )
    # Both in float32. Near pure noise x_0 is a difference divided by 5e-5, so rounding shows in a pixel here and there.
    assert_close(torch.stack(made), torch.stack(expected), rtol=0, atol=5e-5)
    other = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", **CONFIGS[stage]
    )  # on diffusers' timesteps
    if steps < 1000:
        other.set_timesteps(steps)
        assert other.timesteps.tolist() != deprecated.timesteps.tolist()


def test_timesteps() -> None:
    scheduler = UnCLIPScheduler()
    for steps, timesteps in (
        (1, [999]),
        (2, [999, 0]),
        (4, [999, 666, 333, 0]),
        (1000, list(range(999, -1, -1))),
    ):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == timesteps


def test_configs_of_the_deprecated_class_are_read_and_written_again(tmp_path: Path) -> None:
    config = {"_class_name": "UnCLIPScheduler", "_diffusers_version": "0.15.0", **CONFIGS["prior"]}
    scheduler = UnCLIPScheduler.from_config(config)
    scheduler.save_pretrained(tmp_path)
    again = UnCLIPScheduler.from_pretrained(tmp_path)
    assert {name: again.config[name] for name in CONFIGS["prior"]} == CONFIGS["prior"]


def test_more_steps_than_it_was_made_for() -> None:
    with pytest.raises(UserError, match="UnCLIPScheduler cannot take 1001 steps"):
        denoise(
            Denoiser(network, DiscreteSchedule(UnCLIPScheduler().betas), "epsilon"),
            UnCLIPScheduler(),
            torch.zeros(1, 3, 4, 4),
            num_inference_steps=1001,
        )


def test_a_pipeline_is_saved_with_it(tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.prior_scheduler = UnCLIPScheduler(**CONFIGS["prior"])
    tiny_pipeline.save_pretrained(tmp_path)
    again = type(tiny_pipeline).from_pretrained(tmp_path)
    assert type(again.prior_scheduler) is UnCLIPScheduler
    z = [
        pipe("a red apple", size=16, generator=torch.Generator().manual_seed(0)).image_embeds
        for pipe in (tiny_pipeline, again)
    ]
    assert_close(z[0], z[1], rtol=0, atol=1e-6)
