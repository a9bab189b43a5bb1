"""Blends: their ends are the inputs' own pictures, weights are means on the sphere, inputs of all kinds mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import (
    UnCLIPInterpolationPipeline,
    UnCLIPTextToImagePipeline,
    UnCLIPVariationPipeline,
)
from unclip.pipelines.interpolation import check_weights, path_weights
from unclip.pipelines.sphere import slerp, spherical_mean

PROMPT = "a red apple"


@pytest.fixture
def pipe(made_from: Callable[[Any], Any]) -> UnCLIPInterpolationPipeline:
    return made_from(UnCLIPInterpolationPipeline)


@pytest.fixture
def mixed(pictures: list[Tensor]) -> list[Any]:
    """A picture, a prompt and an embedding, of no unit length."""
    return [pictures[0], f"prompt:{PROMPT}", torch.linspace(-1, 2, 12)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blend(pipe: Any, inputs: list[Any], **options: Any) -> Any:
    given = {"size": 16, "decoder_num_inference_steps": 4, "generator": seeded(), "output_type": "pt"}
    return pipe(inputs, **{**given, **options})


# ---- ends --------------------------------------------------------------------------------------------------------


def test_the_ends_of_a_way_are_the_pictures_themselves(
    pipe: UnCLIPInterpolationPipeline, made_from: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    vary = made_from(UnCLIPVariationPipeline)
    way = blend(pipe, pictures, num_frames=5)  # 0, 1/2, 1, 3/2, 2
    own = vary(pictures, eta=0.0, size=16, decoder_num_inference_steps=4, output_type="pt")
    for frame, picture in ((0, 0), (2, 1), (4, 2)):
        assert_close(way.images[frame], own.images[picture], rtol=0, atol=1e-4)
        assert_close(way.image_embeds[frame], own.image_embeds[picture], rtol=0, atol=1e-5)
    between = slerp(own.image_embeds[0], own.image_embeds[1], 0.5)
    assert_close(way.image_embeds[1], between / between.norm(), rtol=0, atol=1e-5)
    assert (way.images[1] - way.images[0]).abs().max() > 0.01


def test_where_the_decoder_allows_it_the_ends_are_what_was_given(
    pipe: UnCLIPInterpolationPipeline, analytic: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    way = blend(analytic(pipe), pictures[:2], num_frames=3, decoder_num_inference_steps=25).images
    assert_close(way[0], pictures[0], rtol=0, atol=2e-3)
    assert_close(way[2], pictures[1], rtol=0, atol=2e-3)
    # This decoder is linear, so half-way it shows the mean of both along the arc between their x_T.
    a, b = (each.flatten() - 0.5 for each in pictures[:2])
    assert_close(way[1].flatten() - 0.5, slerp(a, b, 0.5), rtol=0, atol=0.02)


def test_the_end_of_a_prompt_is_its_own_picture(
    pipe: UnCLIPInterpolationPipeline, tiny_pipeline: UnCLIPTextToImagePipeline, pictures: list[Tensor]
) -> None:
    """Its z_i is what the prior makes of it, its x_T that of the call's first seed."""
    whole = blend(pipe, [f"prompt:{PROMPT}", pictures[0]], weights=[1.0, 0.0])
    drawn = tiny_pipeline(PROMPT, size=16, generator=seeded(), output_type="pt")
    assert_close(whole.image_embeds, drawn.image_embeds, rtol=0, atol=1e-5)
    tiny_pipeline.decoder_scheduler = pipe.ddim_scheduler
    decoded = tiny_pipeline(
        image_embeds=drawn.image_embeds, decoder_num_inference_steps=4, size=16, generator=seeded(),
        output_type="pt",
    )  # fmt: skip
    assert_close(whole.images, decoded.images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("noise", ["slerp", "fixed", "fresh"])
def test_all_the_weight_on_one_input_is_that_input(
    pipe: UnCLIPInterpolationPipeline, mixed: list[Any], noise: str
) -> None:
    options = {"noise": noise, "decoder_num_inference_steps": 3}
    ones = blend(pipe, mixed, weights=torch.eye(3).tolist(), **options)
    for i in range(3):
        alone = blend(pipe, [mixed[i], mixed[i - 1]], weights=[3, 0], **options).image_embeds[0]
        if i != 1:  # a prompt's z_i depends on its place, which its seed is of
            assert_close(ones.image_embeds[i], alone, rtol=0, atol=1e-5)
    assert_close(ones.image_embeds[2], mixed[2] / mixed[2].norm())
    assert_close(ones.image_embeds.norm(dim=-1), torch.ones(3))


# ---- weights -----------------------------------------------------------------------------------------------------


def test_weights_are_means_on_the_sphere(pipe: UnCLIPInterpolationPipeline, mixed: list[Any]) -> None:
    ends = blend(pipe, mixed, weights=torch.eye(3).tolist()).image_embeds
    weights = [[0.2, 0.3, 0.5], [2, 0, 2], [1, 1, 1]]
    made = blend(pipe, mixed, weights=weights).image_embeds
    expected = spherical_mean(ends.expand(3, -1, -1), torch.tensor(weights))
    assert_close(made, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    even = blend(pipe, mixed)  # without weights: all alike
    assert_close(even.image_embeds, made[2:], rtol=0, atol=1e-5)


def test_path_weights() -> None:
    assert_close(path_weights(1, 4), torch.full((1, 4), 0.25))
    assert_close(path_weights(2, 2), torch.eye(2))
    assert_close(path_weights(3, 3), torch.eye(3))
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
    assert_close(path_weights(5, 3), expected)
    assert_close(path_weights(7, 4).sum(1), torch.ones(7))


def test_scale_of_weights_does_not_matter() -> None:
    assert_close(check_weights([1, 3], None, 2), torch.tensor([[0.25, 0.75]]))
    assert_close(check_weights([[1, 0], [2, 2]], None, 2), torch.tensor([[1, 0], [0.5, 0.5]]))


WRONG_WEIGHTS: list[tuple[Any, Any, str]] = [
    ([0, 0], None, "weights sum to zero"),
    ([[1, 0], [0, 0]], None, "weights sum to zero"),
    ([1, -0.5], None, "weights must be 0 or more, .*: to take something away use a text diff"),
    ([1, float("nan")], None, "weights must be 0 or more"),
    ([1, 2, 3], None, r"got weights of shape \(1, 3\) for 2 inputs: give one weight for each"),
    ([[1], [2]], None, r"shape \(2, 1\) for 2 inputs"),
    ([], None, r"shape \(1, 0\) for 2 inputs"),
    ([[1, 2], [3]], None, "weights must be numbers"),
    (["much", "little"], None, "weights must be numbers"),
    ([1, 1], 3, "give weights or num_frames, not both"),
    (None, 0, "num_frames must be a whole number of at least 1, got 0"),
    (None, 2.5, "num_frames must be a whole number"),
]


@pytest.mark.parametrize(("weights", "frames", "message"), WRONG_WEIGHTS)
def test_wrong_weights(
    pipe: UnCLIPInterpolationPipeline, pictures: list[Tensor], weights: Any, frames: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pipe(pictures[:2], weights=weights, num_frames=frames)


# ---- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["slerp", "fixed", "fresh"])
def test_the_order_of_inputs_does_not_matter(
    pipe: UnCLIPInterpolationPipeline, pictures: list[Tensor], noise: str
) -> None:
    options = {"noise": noise, "decoder_num_inference_steps": 3}
    one = blend(pipe, pictures, weights=[0.5, 0.3, 0.2], **options)
    other = blend(pipe, [pictures[2], pictures[0], pictures[1]], weights=[0.2, 0.5, 0.3], **options)
    assert_close(one.image_embeds, other.image_embeds, rtol=0, atol=1e-5)
    assert_close(one.images, other.images, rtol=0, atol=1e-4)


def test_fixed_and_fresh_noise(pipe: UnCLIPInterpolationPipeline, mixed: list[Any]) -> None:
    same = [[1, 1, 1]] * 3
    fixed = blend(pipe, mixed, weights=same, noise="fixed").images
    assert_close(fixed, fixed[:1].expand(3, -1, -1, -1), rtol=0, atol=1e-5)
    fresh = blend(pipe, mixed, weights=same, noise="fresh").images
    assert_close(fresh[0], fixed[0], rtol=0, atol=1e-5)
    assert (fresh[0] - fresh[1]).abs().max() > 0.01


def test_a_generator_for_each_frame(pipe: UnCLIPInterpolationPipeline, mixed: list[Any]) -> None:
    """However many inputs there are."""
    for noise in ("slerp", "fresh"):
        seeds = [seeded(k) for k in range(4)]
        assert blend(pipe, mixed, num_frames=4, noise=noise, generator=seeds).images.shape[0] == 4
    one = blend(pipe, mixed, generator=[seeded(3)]).images
    assert_close(blend(pipe, mixed, generator=[seeded(3)]).images, one, rtol=0, atol=0)


WRONG_INPUTS: list[tuple[Any, str]] = [
    (["prompt:a red apple"], "a list of two inputs or more"),
    ("prompt:a red apple", "a list of two inputs or more"),
    (torch.zeros(2, 3, 16, 16), "a list of two inputs or more"),
    (["prompt:a red apple", "prompt: "], "prompt is empty"),
    (["prompt:a red apple", "nowhere.png"], "no picture at nowhere.png"),
    ([torch.ones(12), torch.ones(5)], r"tensor \[N, 12\], got \(1, 5\)"),
    ([torch.ones(12), torch.zeros(12)], "zero or not finite"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG_INPUTS, ids=[message for _, message in WRONG_INPUTS])
def test_wrong_inputs(
    pipe: UnCLIPInterpolationPipeline, monkeypatch: pytest.MonkeyPatch, inputs: Any, message: str
) -> None:
    for name in ("encode_text", "encode_image"):
        monkeypatch.setattr(pipe.clip, name, lambda *_, **__: pytest.fail("a network ran"))
    with pytest.raises(UserError, match=message):
        pipe(inputs)


def test_wrong_words(pipe: UnCLIPInterpolationPipeline, pictures: list[Tensor]) -> None:
    with pytest.raises(UserError, match="noise must be one of slerp, fixed, fresh, got 'inverted'"):
        pipe(pictures, noise="inverted")
    with pytest.raises(UserError, match="unknown fit 'shrink'"):
        pipe(pictures, fit="shrink")
    with pytest.raises(UserError, match="1 generators for 4 pictures"):
        pipe(pictures, num_frames=4, generator=[seeded()])


def test_equal_ends_are_equal_frames_after_the_upsampler_too(
    made_from: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    """Else a film flickers."""
    pipe = made_from(UnCLIPInterpolationPipeline)
    options = {"num_frames": 3, "size": 64, "decoder_num_inference_steps": 2, "output_type": "pt"}
    for noise in ("slerp", "fixed"):
        frames = pipe([pictures[0], pictures[0]], noise=noise, generator=seeded(), **options).images
        assert_close(frames, frames[:1].expand_as(frames), rtol=0, atol=1e-4)
