"""Equal output: diffusers' deprecated unCLIP pipelines, run in memory on the same weights, seeds and steps.

They skip on a diffusers that removed those. What differs is rounding, since sums are taken in another order. At the
first step x_0 is a difference divided by 5e-5, so a rounded bit becomes a whole grey level in a pixel here and there,
as it does between two runs of theirs in batches of other sizes. So in float32 nearly all values are held to one grey
level, and in float64 all of them to a hundredth of one.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.testing import assert_close

from benchmarks import karlo_checkpoint as karlo
from unclip.diffusion import UnCLIPScheduler
from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline, UnCLIPVariationPipeline

pytest.importorskip(
    "diffusers.pipelines.deprecated.unclip", reason="this diffusers has no unCLIP pipelines any more"
)

LEVEL = 1 / 255  # of pictures in [0, 1]
FEW = {"prior_num_inference_steps": 4, "decoder_num_inference_steps": 4, "super_res_num_inference_steps": 3}
UNGUIDED = {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0}
LONG = " ".join(["a big blue house"] * 12)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Theirs and ours, text to image."""
    folder = karlo.write_checkpoint(tmp_path_factory.mktemp("parity") / "karlo")
    ours = UnCLIPTextToImagePipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    return karlo.deprecated_pipeline(folder), ours


@pytest.fixture(scope="module")
def variations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Theirs and ours, image variations."""
    folder = karlo.write_checkpoint(tmp_path_factory.mktemp("parity") / "variations", karlo.VARIATIONS)
    ours = UnCLIPVariationPipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    return karlo.deprecated_pipeline(folder, karlo.VARIATIONS), ours


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(theirs: Any, ours: Any) -> None:
    """One grey level at most, but in one value of a thousand."""
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    assert theirs.shape == ours.shape
    assert theirs.std() > 0.1  # no blank pictures
    difference = abs(theirs - ours)
    assert np.median(difference) < LEVEL / 100
    assert (difference > LEVEL).mean() < 1e-3


CALLS: dict[str, dict[str, Any]] = {
    "one": {"prompt": "red apple"},
    "four": {"prompt": "red apple", "num_images_per_prompt": 4, **FEW},
    "several prompts": {"prompt": ["red apple", "a", LONG], **FEW},
    "several prompts, two each": {
        "prompt": ["red apple", "big blue house"],
        "num_images_per_prompt": 2,
        **FEW,
    },
    "unguided": {"prompt": ["red apple", "big blue house"], **UNGUIDED, **FEW},
    "unguided prior": {"prompt": "red apple", "prior_guidance_scale": 1.0, **FEW},
    "strongly guided": {
        "prompt": "red apple",
        "prior_guidance_scale": 8.0,
        "decoder_guidance_scale": 20.0,
        **FEW,
    },
    "fewest steps": {"prompt": "red apple", **dict.fromkeys(FEW, 2)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_text_to_image(pipelines: tuple[Any, Any], call: str) -> None:
    theirs, ours = (pipe(**CALLS[call], generator=generator(), output_type="np").images for pipe in pipelines)
    assert_same(theirs, ours)


@pytest.mark.parametrize("call", CALLS)
def test_in_double_precision(pipelines: tuple[Any, Any], call: str) -> None:
    theirs, ours = (copy.deepcopy(pipe).to(torch.float64) for pipe in pipelines)
    options = CALLS[call]
    count = len(np.atleast_1d(options["prompt"])) * options.get("num_images_per_prompt", 1)
    side = karlo.SIDE
    shapes = {
        "prior_latents": (count, karlo.EMBED),
        "decoder_latents": (count, 3, side, side),
        "super_res_latents": (count, 3, karlo.FACTOR * side, karlo.FACTOR * side),
    }
    latents = {name: torch.randn(shape, generator=generator(1)).double() for name, shape in shapes.items()}
    made = [
        pipe(**options, **latents, generator=generator(), output_type="np").images for pipe in (theirs, ours)
    ]
    assert made[0].std() > 0.1
    assert_close(torch.as_tensor(made[1]), torch.as_tensor(made[0]), rtol=0, atol=LEVEL / 100)


def test_a_generator_for_each_picture(pipelines: tuple[Any, Any]) -> None:
    call = {"prompt": ["red apple", "blue house"], "output_type": "np", **FEW}
    theirs, ours = (pipe(**call, generator=[generator(1), generator(2)]).images for pipe in pipelines)
    assert_same(theirs, ours)


def test_without_a_generator_the_global_one_is_used(pipelines: tuple[Any, Any]) -> None:
    made = []
    for pipe in pipelines:
        torch.manual_seed(5)
        made.append(pipe("red apple", output_type="np", **FEW).images)
    assert_same(*made)


def test_given_latents_and_encoded_prompts(pipelines: tuple[Any, Any]) -> None:
    theirs, ours = pipelines
    side = karlo.SIDE
    ids = theirs.tokenizer(["red apple"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        encoded = theirs.text_encoder(ids.input_ids)
    call = {
        "prior_latents": torch.randn(1, karlo.EMBED, generator=generator(1)),
        "decoder_latents": torch.randn(1, 3, side, side, generator=generator(2)),
        "super_res_latents": torch.randn(1, 3, 2 * side, 2 * side, generator=generator(3)),
        "text_model_output": (encoded.text_embeds, encoded.last_hidden_state),
        "text_attention_mask": ids.attention_mask.bool(),
        "output_type": "np",
        **FEW,
    }
    assert_same(*(pipe(**call, generator=generator()).images for pipe in (theirs, ours)))


@pytest.mark.parametrize("name", ["prior_latents", "decoder_latents", "super_res_latents"])
def test_latents_of_another_shape_are_refused_before_any_stage(pipelines: tuple[Any, Any], name: str) -> None:
    seen: list[str] = []

    def look(pipe: Any, *step: Any) -> None:
        seen.append(pipe.stage)

    own = name.replace("super_res", "upsampler")
    with pytest.raises(UserError, match=rf"{own} must be noise of shape \(1, .*, got \(2, 3\)"):
        pipelines[1]("red apple", **{name: torch.zeros(2, 3)}, callback_on_step_end=look)
    assert not seen


def test_another_scheduler_stays_in_its_place(pipelines: tuple[Any, Any]) -> None:
    theirs = copy.copy(pipelines[0])
    theirs.register_modules(decoder_scheduler=DDIMScheduler(clip_sample=False))
    ours = UnCLIPTextToImagePipeline.from_diffusers(theirs)
    assert isinstance(ours.decoder_scheduler, DDIMScheduler)
    assert isinstance(ours.prior_scheduler, UnCLIPScheduler)


def test_tuples(pipelines: tuple[Any, Any]) -> None:
    call = {"prompt": "red apple", "return_dict": False, "output_type": "np", **FEW}
    assert_same(*(pipe(**call, generator=generator())[0] for pipe in pipelines))


def test_pil(pipelines: tuple[Any, Any]) -> None:
    theirs, ours = (pipe("red apple", generator=generator(), **FEW).images[0] for pipe in pipelines)
    assert theirs.size == ours.size == (2 * karlo.SIDE, 2 * karlo.SIDE)
    assert_close(torch.as_tensor(np.array(ours)), torch.as_tensor(np.array(theirs)), rtol=0, atol=1)


def test_stage_by_stage(pipelines: tuple[Any, Any]) -> None:
    theirs, ours = pipelines
    seen: dict[str, torch.Tensor] = {}
    prior, decoder = theirs.prior.post_process_latents, theirs.decoder_scheduler.step

    def after_prior(latents: torch.Tensor) -> torch.Tensor:
        seen["embeds"] = prior(latents)
        return seen["embeds"]

    def after_decoder(*arguments: Any, **options: Any) -> Any:
        made = decoder(*arguments, **options)
        seen["decoder"] = made.prev_sample.clamp(-1, 1)
        return made

    prompts = ["red apple", "big blue house"]
    theirs.prior.post_process_latents, theirs.decoder_scheduler.step = after_prior, after_decoder
    try:
        theirs(prompts, generator=generator(), **FEW)
    finally:
        del theirs.prior.post_process_latents, theirs.decoder_scheduler.step
    made = ours(prompts, generator=generator(), size=karlo.SIDE, output_type="latent", **FEW)
    assert_close(made.image_embeds, seen["embeds"], rtol=1e-4, atol=1e-5)
    assert_close(made.images.clamp(-1, 1), seen["decoder"], rtol=0, atol=2 * LEVEL)


def pictures() -> list[Image.Image]:
    """Of several shapes."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40 + 16 * i, 56, 3), dtype=np.uint8)) for i in range(2)]


VARIED: dict[str, dict[str, Any]] = {
    "one": {"image": pictures()[0]},
    "four": {"image": pictures()[0], "num_images_per_prompt": 4},
    "several": {"image": pictures(), "num_images_per_prompt": 2},
    "unguided": {"image": pictures(), "decoder_guidance_scale": 1.0},
}


@pytest.mark.parametrize("call", VARIED)
def test_variations(variations: tuple[Any, Any], call: str) -> None:
    steps = {"decoder_num_inference_steps": 4, "super_res_num_inference_steps": 3, "output_type": "np"}
    assert_same(*(pipe(**VARIED[call], **steps, generator=generator()).images for pipe in variations))


def test_variations_of_embeddings(variations: tuple[Any, Any]) -> None:
    theirs, ours = variations
    embeds = torch.randn(2, karlo.EMBED, generator=generator(4)) * 3
    steps = {"decoder_num_inference_steps": 4, "super_res_num_inference_steps": 3, "output_type": "np"}
    former, own = {"image_embeddings": embeds}, {"image_embeds": embeds}
    for pipe, call in ((ours, former), (ours, own)):
        made = (
            each(**given, **steps, generator=generator()).images
            for each, given in ((theirs, former), (pipe, call))
        )
        assert_same(*made)
