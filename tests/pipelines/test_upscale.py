"""Upscaling: shapes, which upsamplers run, batches, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline, UnCLIPUpscalePipeline
from unclip.pipelines.pictures import to_output


@pytest.fixture
def pipe(made_from: Callable[[Any], Any]) -> UnCLIPUpscalePipeline:
    """16 -> 64 -> 256 px."""
    return made_from(UnCLIPUpscalePipeline)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def enlarge(pipe: Any, image: Any, size: int = 64, **options: Any) -> Tensor:
    return pipe(image, size=size, output_type="pt", **{"generator": seeded(), **options}).images


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- sizes -------------------------------------------------------------------------------------------------------

# (height, width) as it came, size asked for -> shape, stages that ran. 16 px become 4·16 = 64, and so on.
SHAPES: list[tuple[tuple[int, int], int, tuple[int, int], list[str]]] = [
    ((16, 16), 64, (64, 64), ["upsampler_256"]),
    ((16, 16), 256, (256, 256), ["upsampler_256", "upsampler_1024"]),
    ((8, 16), 64, (32, 64), ["upsampler_256"]),
    ((64, 24), 256, (256, 96), ["upsampler_1024"]),  # large enough for the second upsampler alone
    ((50, 30), 256, (256, 160), ["upsampler_256", "upsampler_1024"]),  # first 16 x 10
    ((200, 100), 256, (256, 128), ["upsampler_1024"]),  # first made smaller
    ((300, 300), 64, (64, 64), ["upsampler_256"]),
    ((4, 4), 64, (64, 64), ["upsampler_256"]),  # first made larger
    ((1, 400), 64, (4, 64), ["upsampler_256"]),
]


@pytest.mark.parametrize(("given", "size", "shape", "ran"), SHAPES)
def test_shapes(
    pipe: UnCLIPUpscalePipeline, given: tuple[int, int], size: int, shape: tuple[int, int], ran: list[str]
) -> None:
    stages: dict[str, int] = {}

    def watch(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stages[pipe.stage] = stages.get(pipe.stage, 0) + 1
        return {}

    made = enlarge(pipe, picture(*given), size, callback_on_step_end=watch)
    assert made.shape == (1, 3, *shape)
    assert made.isfinite().all()
    assert stages == dict.fromkeys(ran, 2)


def test_by_default_as_large_as_it_can(pipe: UnCLIPUpscalePipeline) -> None:
    (made,) = pipe(picture(16, 12), generator=seeded()).images
    assert made.size == (192, 256)
    pipe.upsampler_1024 = None
    (made,) = pipe(picture(16, 12), generator=seeded()).images
    assert made.size == (48, 64)


# ---- what is made ------------------------------------------------------------------------------------------------


def test_it_is_what_the_upsamplers_make_of_the_decoders_picture(
    pipe: UnCLIPUpscalePipeline, tiny_pipeline: UnCLIPTextToImagePipeline
) -> None:
    options = {"generator": seeded(), "output_type": "pt"}
    small = tiny_pipeline("a red apple", size=16, **{**options, "generator": seeded()}).images
    large = tiny_pipeline("a red apple", size=256, **{**options, "generator": seeded()}).images
    assert_close(enlarge(pipe, small[0], 256), large, rtol=0, atol=1e-3)


def test_batches_are_their_pictures(pipe: UnCLIPUpscalePipeline) -> None:
    pictures = [picture(16, 10), picture(12, 16, seed=1), picture(40, 20, seed=2)]
    made = pipe(pictures, size=64, generator=[seeded(k) for k in range(3)]).images
    assert [each.size for each in made] == [(40, 64), (64, 48), (32, 64)]
    for k, each in enumerate(made):
        (alone,) = pipe(pictures[k], size=64, generator=seeded(k)).images
        assert np.array_equal(np.asarray(each), np.asarray(alone))
    other = pipe(pictures[0], size=64, generator=seeded(9)).images[0]
    assert not np.array_equal(np.asarray(made[0]), np.asarray(other))


def test_forms_of_output(pipe: UnCLIPUpscalePipeline) -> None:
    pictures = torch.stack([picture(16, 8, seed=k) for k in range(2)])
    latent = pipe(pictures, size=64, generator=seeded(), output_type="latent").images
    assert latent.shape == (2, 3, 64, 32)
    for form in ("pt", "np"):
        made = pipe(pictures, size=64, generator=seeded(), output_type=form).images
        assert_close(torch.as_tensor(made), torch.as_tensor(to_output(latent, form)))
    made = pipe(pictures, size=64, generator=seeded()).images
    assert [type(each) for each in made] == [Image.Image] * 2
    with pytest.raises(UserError, match="pictures of several shapes make no np: ask for output_type 'pil'"):
        pipe([picture(16, 8), picture(8, 16)], size=64, output_type="np")


def test_transparent_parts_are_white(pipe: UnCLIPUpscalePipeline) -> None:
    clear = torch.cat([picture(16, 16), torch.zeros(1, 16, 16)])
    white = torch.ones(3, 16, 16)
    assert_close(enlarge(pipe, clear), enlarge(pipe, white))


def test_options_reach_the_upsamplers(pipe: UnCLIPUpscalePipeline) -> None:
    plain = enlarge(pipe, picture(16, 16))
    assert torch.equal(enlarge(pipe, picture(16, 16)), plain)
    for change in ({"upsampler_num_inference_steps": 5}, {"upsampler_noise_level": 0.9}):
        assert not torch.equal(enlarge(pipe, picture(16, 16), **change), plain)


def test_a_prior_may_be_named_though_none_is_asked(pipe: UnCLIPUpscalePipeline) -> None:
    assert_close(enlarge(pipe, picture(16, 16), prior="none"), enlarge(pipe, picture(16, 16)))


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_done(pipe: UnCLIPUpscalePipeline) -> None:
    with pytest.raises(UserError, match="size 16 is what the decoder makes: choose of 64, 256"):
        enlarge(pipe, picture(16, 16), 16)
    with pytest.raises(UserError, match="size 128 is not offered"):
        enlarge(pipe, picture(16, 16), 128)
    with pytest.raises(UserError, match="2 generators for 1 pictures"):
        enlarge(pipe, picture(16, 16), generator=[seeded(), seeded()])
    with pytest.raises(UserError, match=r"no picture at nowhere\.png"):
        enlarge(pipe, "nowhere.png")
    pipe.upsampler_256 = pipe.upsampler_1024 = None
    with pytest.raises(UserError, match="this model has no upsamplers"):
        enlarge(pipe, picture(16, 16))


def test_shapes_that_are_alike_when_enlarged_make_one_tensor(pipe: UnCLIPUpscalePipeline) -> None:
    made = pipe([picture(16, 8), picture(32, 16)], size=64, output_type="pt", generator=seeded())
    assert made.images.shape == (2, 3, 64, 32)
    assert made.image_embeds is None
    assert len(pipe(picture(16, 8), size=64, return_dict=False)) == 2
