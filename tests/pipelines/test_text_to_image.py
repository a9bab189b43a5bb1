"""The pipeline on tiny networks: forms of output, seeds, schedulers, callbacks, wrong arguments."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline, stages

SHORT, LONG = "a red apple", "a small blue house on the left of the green cat"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(pipe: UnCLIPTextToImagePipeline, *args: Any, **kwargs: Any) -> Tensor:
    """Pictures [B, 3, S, S] in [0, 1]."""
    return pipe(*args, output_type="pt", **{"size": 16, "generator": seeded(), **kwargs}).images


@pytest.mark.parametrize("size", [16, 64, 256])
def test_forms_of_output(tiny_pipeline: UnCLIPTextToImagePipeline, size: int) -> None:
    outputs = {
        form: tiny_pipeline(
            [SHORT, LONG], num_images_per_prompt=2, size=size, generator=seeded(), output_type=form
        )
        for form in ("pil", "np", "pt", "latent")
    }
    images = {form: output.images for form, output in outputs.items()}
    assert [type(each) for each in images["pil"]] == [Image.Image] * 4
    assert images["pil"][0].size == (size, size)
    assert images["np"].shape == (4, size, size, 3)
    assert images["pt"].shape == images["latent"].shape == (4, 3, size, size)
    assert images["pt"].min() >= 0
    assert images["pt"].max() <= 1
    assert_close((images["latent"] / 2 + 0.5).clamp(0, 1), images["pt"])
    assert_close(torch.from_numpy(images["np"]).permute(0, 3, 1, 2), images["pt"])
    assert np.array_equal(np.asarray(images["pil"][3]), (images["np"][3] * 255).round().astype(np.uint8))
    assert outputs["pt"].image_embeds.shape == (4, 12)
    assert_close(outputs["pt"].image_embeds.norm(dim=-1), torch.ones(4))


def test_default_size_and_tuple(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    images, embeds = tiny_pipeline(SHORT, return_dict=False)
    assert images[0].size == (64, 64)
    assert embeds.shape == (1, 12)
    tiny_pipeline.upsampler_256 = None
    assert tiny_pipeline.sizes == {16: "decoder", 64: "upsampler_1024"}
    tiny_pipeline.upsampler_1024 = None
    assert tiny_pipeline(SHORT).images[0].size == (16, 16)
    assert tiny_pipeline(SHORT, height=16, width=16).images[0].size == (16, 16)


def test_a_picture_does_not_depend_on_its_batch(
    tiny_pipeline: UnCLIPTextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.decoder_scheduler = diffusers.EulerAncestralDiscreteScheduler()  # adds noise at each step
    alone = run(tiny_pipeline, SHORT, size=64, prior_guidance_scale=2.0, negative_prompt="green")
    batch = run(
        tiny_pipeline, [LONG, SHORT],
        num_images_per_prompt=2, size=64, prior_guidance_scale=2.0, negative_prompt=["", "green"],
    )  # fmt: skip
    assert_close(batch[2], alone[0], atol=1e-4, rtol=0)
    assert (batch[2] - batch[3]).abs().max() > 0.01  # the second picture of a prompt is another one
    monkeypatch.setattr(stages, "PIXELS_AT_ONCE", 64 * 64)
    assert [part.stop - part.start for part in stages.groups(40, 16)] == [16, 16, 16]
    in_groups = run(
        tiny_pipeline, [LONG, SHORT],
        num_images_per_prompt=2, size=64, prior_guidance_scale=2.0, negative_prompt=["", "green"],
    )  # fmt: skip
    assert_close(in_groups, batch, atol=1e-4, rtol=0)


def test_seeds(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    one, two = run(tiny_pipeline, SHORT), run(tiny_pipeline, SHORT, generator=seeded(1))
    assert (one - two).abs().max() > 0.01
    listed = run(tiny_pipeline, [LONG, SHORT, SHORT], generator=[seeded(5), seeded(1), seeded(0)])
    assert_close(listed[1:], torch.cat([two, one]), atol=1e-4, rtol=0)
    same = run(tiny_pipeline, [SHORT, SHORT])  # one generator: each prompt as if it were alone
    assert_close(same[0], same[1], atol=1e-4, rtol=0)
    generator = seeded()
    first, then = (run(tiny_pipeline, SHORT, generator=generator) for _ in range(2))
    assert_close(first, one)
    assert (then - one).abs().max() > 0.01
    torch.manual_seed(0)
    a, b = run(tiny_pipeline, [SHORT, SHORT], generator=None)
    assert (a - b).abs().max() > 0.01
    torch.manual_seed(0)
    assert_close(run(tiny_pipeline, [SHORT, SHORT], generator=None)[1], b)


def test_every_condition_arrives(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    plain = run(tiny_pipeline, SHORT)
    assert torch.equal(plain, run(tiny_pipeline, SHORT))
    for change in (
        {"prompt": LONG},
        {"negative_prompt": LONG},
        {"decoder_guidance_scale": 4.0},
        {"prior_guidance_scale": 4.0},
        {"noise_level": 0.8},
        {"prior_num_inference_steps": 4},
        {"decoder_num_inference_steps": 4},
        {"image_embeds": torch.ones(1, 12)},
    ):
        other = run(tiny_pipeline, **{"prompt": SHORT, **change})
        assert not torch.equal(plain, other), change
    large = run(tiny_pipeline, SHORT, size=64)
    for change in ({"upsampler_num_inference_steps": 4}, {"upsampler_noise_level": 0.9}):
        assert not torch.equal(large, run(tiny_pipeline, **{"prompt": SHORT, "size": 64, **change})), change
    # The negative prompt guides the prior, too.
    embeds = [
        tiny_pipeline(
            SHORT, negative_prompt=n, size=16, prior_guidance_scale=3.0, generator=seeded()
        ).image_embeds
        for n in (None, LONG)
    ]
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_image_embeds_take_the_priors_place(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    made = tiny_pipeline([SHORT, LONG], size=16, generator=seeded(), output_type="pt")
    again = run(tiny_pipeline, [SHORT, LONG], image_embeds=3 * made.image_embeds)
    assert_close(again, made.images)
    without_caption = run(tiny_pipeline, image_embeds=made.image_embeds, num_images_per_prompt=2)
    assert without_caption.shape == (4, 3, 16, 16)
    assert (without_caption[::2] - made.images).abs().max() > 1e-3
    shared = run(tiny_pipeline, [SHORT, LONG], image_embeds=made.image_embeds[:1])
    assert_close(shared[0], made.images[0])
    with pytest.warns(UserWarning, match="no effect without guidance"):
        run(
            tiny_pipeline,
            SHORT,
            image_embeds=made.image_embeds[:1],
            negative_prompt=LONG,
            decoder_guidance_scale=1,
        )


def test_the_best_candidate_is_kept(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    """Of more candidates, among them the same ones, the best is no worse."""
    z_t = tiny_pipeline.clip.encode_text([SHORT]).embeds

    def likeness(candidates: int) -> float:
        made = tiny_pipeline(SHORT, num_prior_candidates=candidates, size=16, generator=seeded())
        return float((made.image_embeds * z_t).sum())

    one, two, many = likeness(1), likeness(2), likeness(16)
    assert one <= two + 1e-6
    assert two <= many + 1e-6
    assert one < many


def test_captions_longer_than_a_network_reads(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    """Networks that read fewer tokens than CLIP get the first ones, as in training."""
    tiny_pipeline.decoder.register_to_config(max_text_tokens=4)
    tiny_pipeline.prior.register_to_config(max_tokens=5)
    assert run(tiny_pipeline, LONG, negative_prompt=LONG, prior_guidance_scale=2.0).isfinite().all()


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DDPMScheduler(prediction_type="v_prediction"),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        diffusers.EulerDiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_schedulers_swap(tiny_pipeline: UnCLIPTextToImagePipeline, scheduler: Any) -> None:
    for stage in ("prior", "decoder", "upsampler_256"):
        setattr(tiny_pipeline, f"{stage}_scheduler", scheduler)
    assert tiny_pipeline.config.decoder_scheduler == ("diffusers", type(scheduler).__name__)
    images = run(tiny_pipeline, SHORT, size=64, decoder_num_inference_steps=4)
    assert images.isfinite().all()
    assert images.std() > 0


def test_callbacks_see_each_stage(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    seen = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((pipe.stage, step, tuple(tensors["latents"].shape), set(tensors)))
        return tensors

    images = run(
        tiny_pipeline,
        SHORT,
        size=256,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "x0"],
    )
    shapes = {
        "prior": (2, 12),  # two candidates
        "decoder": (1, 3, 16, 16),
        "upsampler_256": (1, 3, 64, 64),
        "upsampler_1024": (1, 3, 256, 256),
    }
    both = {"latents", "x0"}
    assert seen == [(stage, step, shape, both) for stage, shape in shapes.items() for step in (0, 1)]
    assert tiny_pipeline.stage is None
    assert_close(images, run(tiny_pipeline, SHORT, size=256))

    def blank(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])} if pipe.stage == "decoder" else {}

    assert_close(run(tiny_pipeline, SHORT, callback_on_step_end=blank), torch.full((1, 3, 16, 16), 0.5))


def test_progress_bars(tiny_pipeline: UnCLIPTextToImagePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_pipeline, SHORT)
    assert capsys.readouterr().err == ""
    tiny_pipeline.set_progress_bar_config(disable=False)
    run(tiny_pipeline, SHORT)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("prior", "decoder", "2/2"))


class Heavy(Exception):
    """A network ran."""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "nothing to draw"),
    ({"prompt": 3}, "got int"),
    ({"prompt": {"a": 1}}, "got dict"),
    ({"prompt": ["a", 3]}, "type int"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": ["a", "  "]}, "prompt is empty"),
    ({"prompt": []}, "empty list"),
    ({"prompt": "a", "size": 128}, "128 is not offered: this model makes 16, 64, 256"),
    ({"prompt": "a", "size": [64, 64]}, "whole numbers of pixels, got .64, 64."),
    ({"prompt": "a", "height": 64, "width": 16}, "must agree"),
    ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt"),
    ({"prompt": "a", "output_type": "jpeg"}, "pil, np, pt, latent"),
    ({"prompt": "a", "decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be"),
    ({"prompt": "a", "prior_num_inference_steps": 2.5}, "prior_num_inference_steps must be"),
    ({"prompt": "a", "num_prior_candidates": 0}, "num_prior_candidates must be"),
    ({"prompt": "a", "decoder_guidance_scale": -1}, "decoder_guidance_scale must be"),
    ({"prompt": "a", "prior_guidance_scale": "high"}, "prior_guidance_scale must be a number"),
    ({"prompt": "a", "noise_level": 1.5}, "noise_level must lie"),
    ({"prompt": "a", "negative_prompt": ["b", "c"]}, "2 negative prompts for 1"),
    ({"prompt": "a", "negative_prompt": 3}, "got int"),
    ({"prompt": "a", "image_embeds": torch.ones(12)}, r"tensor \[N, 12\], got \(12,\)"),
    ({"image_embeds": torch.ones(1, 5)}, r"tensor \[N, 12\], got \(1, 5\)"),
    ({"image_embeds": torch.zeros(1, 12)}, "zero or not finite"),
    ({"prompt": ["a", "b", "c"], "image_embeds": torch.ones(2, 12)}, "2 image_embeds for 3"),
    ({"prompt": "a", "generator": [seeded(), seeded()]}, "2 generators for 1"),
    ({"prompt": "a", "generator": 0}, "got int: use torch.Generator"),
    (
        {"prompt": "a", "callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
        "noise",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments(
    tiny_pipeline: UnCLIPTextToImagePipeline,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    def run_network(*_: Any, **__: Any) -> None:
        raise Heavy

    monkeypatch.setattr(tiny_pipeline.clip, "encode_text", run_network)
    monkeypatch.setattr(tiny_pipeline.decoder, "forward", run_network)
    with pytest.raises(UserError, match=message) as error:
        tiny_pipeline(**arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(Heavy):
        tiny_pipeline("a")


def test_unknown_setting(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    with pytest.raises(UserError, match="unknown setting 'steps': choose from prior_num"):
        tiny_pipeline.settings(steps=3)


def test_captions_alone_need_no_prior(tiny_pipeline: UnCLIPTextToImagePipeline, monkeypatch) -> None:
    monkeypatch.setattr("unclip.pipelines.base.sample_prior", None)
    seed = torch.Generator().manual_seed
    made, other = (
        tiny_pipeline(text, captions_only=True, size=16, output_type="pt", generator=seed(0))
        for text in ("a red apple", "a blue house")
    )
    assert made.image_embeds is None
    assert (made.images - other.images).abs().max() > 1e-4
    for wrong in ({"prompt": None, "image_embeds": torch.ones(1, 12)}, {"image_embeds": torch.ones(1, 12)}):
        with pytest.raises(UserError, match="captions_only decodes captions alone"):
            tiny_pipeline(**{"prompt": "a red apple", "captions_only": True, **wrong})
