"""Every manipulation in half precision: what no GPU is needed to find out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unclip import pipelines

CALLS: dict[str, Callable[[Any, list[Tensor]], Any]] = {
    "UnCLIPVariationPipeline": lambda pipe, given: pipe(given, size=16),
    "UnCLIPInterpolationPipeline": lambda pipe, given: pipe(
        [*given[:2], "prompt:a red apple"], num_frames=3, size=16
    ),
    "UnCLIPTextDiffPipeline": lambda pipe, given: pipe(
        given, "a red apple", source_prompt="a house", size=16
    ),
    "UnCLIPImg2ImgPipeline": lambda pipe, given: pipe(
        "a red apple", given, image_weight=0.4, prior="none", size=16
    ),
    "UnCLIPInpaintPipeline": lambda pipe, given: pipe("a red apple", given, outpaint=0.3, size=16),
    "UnCLIPUpscalePipeline": lambda pipe, given: pipe(given, size=64),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_made(name: str, dtype: torch.dtype, made_from: Any, pictures: list[Tensor]) -> None:
    pipe = made_from(getattr(pipelines, name)).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    made = CALLS[name](pipe, pictures)
    assert all(torch.isfinite(each.float()).all() for each in (made.image_embeds,) if each is not None)
    assert len(made.images) == 3
    assert len({image.tobytes() for image in made.images}) == 3


def test_redrawing(made_from: Any, pictures: list[Tensor]) -> None:
    pipe = made_from(pipelines.UnCLIPTextDiffPipeline).to(torch.bfloat16)
    assert torch.isfinite(pipe(pictures, "a red apple", size=16).image_embeds.float()).all()
