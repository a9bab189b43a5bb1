"""The upsampler: any size, crops equal the whole, residual over the enlarged picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import Upsampler

# Reach of the tiny network: 6 convolutions at 4 px, 2 at 8 px, 1 at 1 px, rounded up to the coarse grid.
REACH = 48


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 40), (20, 36)])
def test_any_multiple_of_the_factor(upsampler, height, width):
    x, low_res = torch.randn(2, 3, height, width), torch.randn(2, 3, height // 4, width // 4)
    output = upsampler(x, torch.rand(2), low_res=low_res, noise_level=torch.rand(2))
    assert output.shape == x.shape


@torch.no_grad()
def test_inside_of_a_crop_equals_the_whole(upsampler):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, 192, 176, generator=generator)
    low_res = torch.randn(1, 3, 48, 44, generator=generator)
    t = level = torch.tensor([0.4])
    top, left, side = 32, 24, 136
    whole = upsampler(x, t, low_res=low_res, noise_level=level)[:, :, top : top + side, left : left + side]
    crop = upsampler(
        x[:, :, top : top + side, left : left + side],
        t,
        low_res=low_res[:, :, top // 4 : (top + side) // 4, left // 4 : (left + side) // 4],
        noise_level=level,
    )
    inside = (..., slice(REACH, side - REACH), slice(REACH, side - REACH))
    assert_close(crop[inside], whole[inside], atol=1e-5, rtol=1e-5)
    assert (crop - whole).abs().amax() > 1e-3  # the border does differ


@torch.no_grad()
def test_every_input_matters(upsampler):
    inputs = {
        "x": torch.randn(2, 3, 32, 32),
        "t": torch.tensor([0.2, 0.8]),
        "low_res": torch.randn(2, 3, 8, 8),
        "noise_level": torch.tensor([0.1, 0.6]),
    }
    output = upsampler(**inputs)
    for name, value in inputs.items():
        changed = upsampler(**{**inputs, name: value.flip(0)})
        assert ((changed - output).abs().flatten(1).amax(dim=1) > 1e-4).all(), name


def test_starts_as_the_enlarged_picture():
    fresh = Upsampler(channels=(8, 12, 16), blocks=1, embed_channels=16, skin_channels=4)
    low_res = torch.rand(1, 3, 8, 8) * 2 - 1
    output = fresh(torch.randn(1, 3, 32, 32), torch.rand(1), low_res=low_res, noise_level=torch.zeros(1))
    assert_close(output, F.interpolate(low_res, scale_factor=4, mode="bicubic", align_corners=False))


def test_wrong_inputs_are_explained(upsampler):
    with pytest.raises(UserError, match="1/4 the size"):
        upsampler(
            torch.zeros(1, 3, 32, 32),
            torch.zeros(1),
            low_res=torch.zeros(1, 3, 16, 16),
            noise_level=torch.zeros(1),
        )
    with pytest.raises(UserError, match="at least one level"):
        Upsampler(channels=())
