"""Edits: how strength and holes keep the picture, batches of different pictures and masks, wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import UnCLIPImg2ImgPipeline, UnCLIPInpaintPipeline, UnCLIPTextToImagePipeline
from unclip.pipelines.masks import SEAM
from unclip.pipelines.reading import read_pictures
from unclip.pipelines.sphere import slerp

PROMPTS = ["a red apple", "a small blue house", "the green cat on the left"]


@pytest.fixture
def img2img(made_from: Callable[[Any], Any]) -> UnCLIPImg2ImgPipeline:
    return made_from(UnCLIPImg2ImgPipeline)


@pytest.fixture
def inpaint(made_from: Callable[[Any], Any]) -> UnCLIPInpaintPipeline:
    return made_from(UnCLIPInpaintPipeline)


@pytest.fixture
def masks() -> list[Tensor]:
    """[16, 16] each: a box, a half, a frame."""
    made = torch.zeros(3, 16, 16)
    made[0, 3:9, 5:12] = 1
    made[1, :, 8:] = 1
    made[2] = 1
    made[2, 4:12, 4:12] = 0
    return list(made)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(pipe: Any, *arguments: Any, **options: Any) -> Tensor:
    """[B, 3, S, S] in [0, 1]."""
    given = {"size": 16, "decoder_num_inference_steps": 5, "generator": seeded(), "output_type": "pt"}
    return pipe(*arguments, **{**given, **options}).images


# ---- image to image ----------------------------------------------------------------------------------------------


def test_the_less_strength_the_more_of_the_picture_stays(
    img2img: UnCLIPImg2ImgPipeline, analytic: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    source = torch.stack(pictures)

    def distance(strength: float) -> float:
        made = run(analytic(img2img), "a", pictures, strength=strength, decoder_num_inference_steps=100)
        return float((made - source).abs().mean())

    distances = [distance(strength) for strength in (0.01, 0.1, 0.3, 0.6, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.01
    assert distances[-1] > 20 * distances[0]


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
        diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_all_strength_is_text_to_image(
    img2img: UnCLIPImg2ImgPipeline,
    tiny_pipeline: UnCLIPTextToImagePipeline,
    pictures: list[Tensor],
    scheduler: Any,
) -> None:
    img2img.decoder_scheduler = tiny_pipeline.decoder_scheduler = scheduler
    expected = run(tiny_pipeline, PROMPTS[0], negative_prompt="blue")
    made = run(img2img, PROMPTS[0], pictures[0], strength=1.0, negative_prompt="blue")
    assert_close(made, expected, rtol=0, atol=1e-5)
    half = run(img2img, PROMPTS[0], pictures[0], strength=0.5)
    assert (half - made).abs().max() > 1e-3


def test_as_many_steps_as_strength_says(img2img: UnCLIPImg2ImgPipeline, pictures: list[Tensor]) -> None:
    for strength, expected in ((1.0, 10), (0.7, 7), (0.5, 5), (0.01, 1)):
        steps: list[int] = []

        def count(
            pipe: Any, step: int, timestep: Tensor, tensors: Any, steps: list[int] = steps
        ) -> dict[str, Tensor]:
            if pipe.stage == "decoder":
                steps.append(step)
            return {}

        options = {"decoder_num_inference_steps": 10, "callback_on_step_end": count}
        run(img2img, PROMPTS[0], pictures[0], strength=strength, **options)
        assert steps == list(range(10 - expected, 10))


def test_image_weight_goes_from_the_prompts_to_the_pictures_own(
    img2img: UnCLIPImg2ImgPipeline, tiny_pipeline: UnCLIPTextToImagePipeline, pictures: list[Tensor]
) -> None:
    def embeds(weight: float) -> Tensor:
        return img2img(PROMPTS[0], pictures[0], image_weight=weight, size=16, generator=seeded()).image_embeds

    own = img2img.clip.encode_image(read_pictures(pictures[0], 256).rgb)
    drawn = tiny_pipeline(PROMPTS[0], size=16, generator=seeded()).image_embeds
    assert_close(embeds(0.0), drawn, rtol=0, atol=1e-5)
    assert_close(embeds(1.0), own, rtol=0, atol=1e-5)
    assert_close(embeds(0.4), F.normalize(slerp(drawn, own, 0.4), dim=-1), rtol=0, atol=1e-5)


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, ["blue", "", "cat"]])
def test_batches_of_image_to_image(
    img2img: UnCLIPImg2ImgPipeline, pictures: list[Tensor], negative: list[str] | None
) -> None:
    options = {"strength": 0.6, "image_weight": 0.2, "num_images_per_prompt": 2}
    together = run(img2img, PROMPTS, pictures, negative_prompt=negative, **options)
    for i in range(3):
        own = negative and negative[i]
        alone = run(img2img, PROMPTS[i], pictures[i], negative_prompt=own, **options)
        assert_close(together[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [16, 64])
def test_batches_of_different_pictures_and_masks(
    inpaint: UnCLIPInpaintPipeline, pictures: list[Tensor], masks: list[Tensor], size: int
) -> None:
    options = {"size": size, "num_images_per_prompt": 2, "num_resamplings": 2, "image_weight": 0.2}
    options = {**options, "decoder_num_inference_steps": 3}
    together = run(inpaint, PROMPTS, pictures, masks, **options)
    assert together.shape == (6, 3, size, size)
    for i in range(3):
        alone = run(inpaint, PROMPTS[i], pictures[i], masks[i], **options)
        assert_close(together[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-4)
    own = [seeded(7), seeded(8), seeded(9)]
    one_each = {**options, "num_images_per_prompt": 1}
    listed = run(inpaint, PROMPTS, pictures, masks, **{**one_each, "generator": own})
    alone = run(inpaint, PROMPTS[1], pictures[1], masks[1], **{**one_each, "generator": [seeded(8)]})
    assert_close(listed[1:2], alone, rtol=0, atol=1e-4)
    shared = run(inpaint, PROMPTS[0], pictures, masks[0], **one_each)
    alone = run(inpaint, PROMPTS[0], pictures[2], masks[0], **one_each)
    assert_close(shared[2:], alone, rtol=0, atol=1e-4)


# ---- inpainting --------------------------------------------------------------------------------------------------


def test_what_is_not_masked_is_exactly_the_picture(
    inpaint: UnCLIPInpaintPipeline, pictures: list[Tensor], masks: list[Tensor]
) -> None:
    latent = run(inpaint, PROMPTS, pictures, masks, output_type="latent")
    own = read_pictures(pictures, 16).rgb  # type: ignore[arg-type]
    hole = torch.stack(masks)[:, None].bool().expand(-1, 3, -1, -1)
    assert torch.equal(latent[~hole], own[~hole])
    assert ((latent - own).abs()[hole] > 1e-4).float().mean() > 0.99
    other = run(inpaint, PROMPTS, pictures, masks, output_type="latent", generator=seeded(1))
    assert (other - latent).abs()[hole].max() > 0.01


@pytest.mark.parametrize("side", [64, 256])
def test_at_larger_sizes_it_is_farther_than_the_seam(inpaint: UnCLIPInpaintPipeline, side: int) -> None:
    picture = torch.rand(3, side, side, generator=seeded(2))
    mask = torch.zeros(side, side)
    quarter = side // 4
    mask[quarter : 2 * quarter, quarter : 2 * quarter] = 1
    latent = run(inpaint, PROMPTS[0], picture, mask, size=side, output_type="latent")[0]
    near = slice(quarter - side // SEAM, 2 * quarter + side // SEAM)
    far = torch.ones(3, side, side, dtype=torch.bool)
    far[:, near, near] = False
    assert torch.equal(latent[far], (picture * 2 - 1)[far])
    assert (latent - (picture * 2 - 1)).abs()[:, mask.bool()].mean() > 0.05


def test_what_lies_in_the_hole_has_no_effect(
    inpaint: UnCLIPInpaintPipeline, pictures: list[Tensor], masks: list[Tensor]
) -> None:
    hidden = torch.where(masks[0].bool(), 1 - pictures[0], pictures[0])
    made = run(inpaint, PROMPTS[0], pictures[0], masks[0])
    assert_close(run(inpaint, PROMPTS[0], hidden, masks[0]), made, rtol=0, atol=0)


def test_transparency_is_a_mask(
    inpaint: UnCLIPInpaintPipeline, pictures: list[Tensor], masks: list[Tensor]
) -> None:
    clear = torch.cat([pictures[0], 1 - masks[0][None]])
    expected = run(inpaint, PROMPTS[0], pictures[0], masks[0])
    assert_close(run(inpaint, PROMPTS[0], clear), expected, rtol=0, atol=0)


def test_outpainting(inpaint: UnCLIPInpaintPipeline, pictures: list[Tensor]) -> None:
    small = torch.rand(3, 8, 8, generator=seeded(3))
    latent = run(inpaint, PROMPTS[0], small, outpaint=0.5, output_type="latent")[0]
    assert torch.equal(latent[:, 4:12, 4:12], small * 2 - 1)
    around = torch.ones(16, 16, dtype=torch.bool)
    around[4:12, 4:12] = False
    other = run(inpaint, PROMPTS[0], small, outpaint=0.5, output_type="latent", generator=seeded(1))[0]
    assert ((other - latent).abs()[:, around] > 0).float().mean() > 0.98
    assert run(inpaint, PROMPTS[0], pictures, outpaint=0.3).shape == (3, 3, 16, 16)


def test_a_hole_is_filled_as_its_surroundings_ask(
    inpaint: UnCLIPInpaintPipeline, masks: list[Tensor]
) -> None:
    """A decoder for which every pixel is the mean of its picture fills a hole with the mean of what is around."""
    from unclip.diffusion import Denoiser, make_schedule

    def even(x: Tensor, t: Tensor) -> Tensor:
        """The best network of pictures of one colour each, N(0, 1), in flat noise: x_0 from the mean of x_t."""
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in make_schedule("flow").alpha_sigma(t))
        mean, pixels = x.mean(dim=(2, 3), keepdim=True), x.shape[2] * x.shape[3]
        return (alpha * mean / (alpha**2 + sigma**2 / pixels)).expand_as(x)

    inpaint.denoiser = lambda *_: (Denoiser(even, make_schedule("flow"), "sample"), {})  # type: ignore[method-assign,assignment]
    colours = torch.tensor([[0.3, 0.6, 0.8], [0.7, 0.2, 0.4]])
    pictures = list(colours[:, :, None, None].expand(-1, -1, 16, 16))
    options = {"decoder_num_inference_steps": 20, "num_resamplings": 8}
    made = run(inpaint, "a", pictures, masks[1], **options)
    assert_close(made, torch.stack(pictures), rtol=0, atol=0.05)
    once = run(inpaint, "a", pictures, masks[1], **{**options, "num_resamplings": 1})
    assert (made - torch.stack(pictures)).abs().mean() < (once - torch.stack(pictures)).abs().mean()


@pytest.mark.parametrize("resamplings", [1, 3])
def test_the_progress_bar_ends(
    inpaint: UnCLIPInpaintPipeline,
    pictures: list[Tensor],
    masks: list[Tensor],
    resamplings: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inpaint.set_progress_bar_config(disable=False)
    run(inpaint, PROMPTS[0], pictures[0], masks[0], num_resamplings=resamplings)
    steps = resamplings * 4 + 1
    assert f"{steps}/{steps}" in capsys.readouterr().err


# ---- wrong arguments ---------------------------------------------------------------------------------------------

BOTH: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": ["a", "b"]}, "got 2 prompts for 1 pictures: give one for each, or a single one"),
    ({"negative_prompt": ["a", "b"]}, "got 2 negative prompts for 1"),
    ({"negative_prompt": 3}, "negative_prompt must be a string or a list of strings, got int"),
    ({"image_weight": 1.5}, "image_weight must lie between 0 and 1, got 1.5"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number"),
    ({"fit": "shrink"}, "unknown fit 'shrink'"),
    ({"image": "nowhere.png"}, "no picture at nowhere"),
    ({"generator": [seeded(), seeded()]}, "2 generators for 1 pictures"),
    ({"guidance_scale": 3}, "unknown argument 'guidance_scale'"),
]
IMG2IMG: list[tuple[dict[str, Any], str]] = [
    ({"strength": 0}, "strength 0 leaves the picture as it is"),
    ({"strength": 1.1}, "strength must lie between 0 and 1, got 1.1"),
]
INPAINT: list[tuple[dict[str, Any], str]] = [
    ({"mask_image": None}, "there is nothing to fill"),
    ({"mask_image": torch.zeros(16, 16)}, "the mask marks nothing"),
    ({"mask_image": torch.ones(8, 8)}, "the mask has 8 x 8 pixels and its picture 16 x 16"),
    ({"mask_image": [torch.ones(16, 16)] * 2}, "got 2 masks for 1 pictures"),
    ({"outpaint": 1}, "outpaint must be below 1"),
    ({"num_resamplings": 0}, "num_resamplings must be a whole number of at least 1"),
]
WRONG = [
    *(("img2img", *case) for case in BOTH + IMG2IMG),
    *(("inpaint", *case) for case in BOTH + INPAINT),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG, ids=[f"{a}: {c}" for a, _, c in WRONG])
def test_wrong_arguments(
    request: pytest.FixtureRequest,
    pictures: list[Tensor],
    masks: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: dict[str, Any],
    message: str,
) -> None:
    pipe = request.getfixturevalue(name)
    for network in ("encode_text", "encode_image"):
        monkeypatch.setattr(pipe.clip, network, lambda *_, **__: pytest.fail("a network ran"))
    given = {"prompt": PROMPTS[0], "image": pictures[0]}
    if name == "inpaint":
        given["mask_image"] = masks[0]
    with pytest.raises(UserError, match=message) as error:
        pipe(**{**given, **arguments})
    assert "\n" not in str(error.value)


def test_an_idle_negative_prompt_is_told_where_the_call_stands(img2img: Any, pictures: list[Tensor]) -> None:
    unguided = {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0, "size": 16}
    with pytest.warns(UserWarning, match="negative_prompt has no effect without guidance") as told:
        img2img("a red apple", pictures[0], negative_prompt="a house", **unguided)
    assert told[0].filename == __file__
