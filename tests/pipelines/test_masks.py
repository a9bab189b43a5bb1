"""Holes: from masks, transparency and outpainting, at every size; and how the rest is put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines.manipulation import read
from unclip.pipelines.masks import SEAM, holes, paste


def box(side: int, top: int, left: int, size: int) -> Tensor:
    """[side, side], 1 in a square."""
    mask = torch.zeros(side, side)
    mask[top : top + size, left : left + size] = 1
    return mask


def picture(height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))


# ---- where a hole is ---------------------------------------------------------------------------------------------


def test_at_its_own_size_a_hole_is_its_mask() -> None:
    mask = box(32, 5, 9, 11)
    given, hole_at = holes(read(picture(), "pad"), mask, 0.0, 32)
    assert torch.equal(hole_at(32)[0, 0], mask)
    assert_close(given.at(32)[0], picture() * 2 - 1)


@pytest.mark.parametrize("size", [8, 16, 64, 128])
def test_at_other_sizes_it_covers_all_that_the_mask_touches(size: int) -> None:
    mask = box(32, 5, 9, 11)
    _, hole_at = holes(read(picture(), "pad"), mask, 0.0, 32)
    hole = hole_at(size)[0, 0]
    assert set(hole.unique().tolist()) == {0, 1}
    # Pixel k lies over [k, k + 1] · 32 / size of the mask.
    edges = torch.arange(size + 1) * 32 / size
    touched = (edges[:-1, None] < 16) & (edges[1:, None] > 5) & (edges[:-1] < 20) & (edges[1:] > 9)
    assert bool(hole[touched].all())
    # The triangle filter reaches one pixel farther, of the coarser of both.
    reach = max(1, size // 32)
    near = torch.nn.functional.max_pool2d(touched[None, None].float(), 2 * reach + 1, 1, reach)[0, 0]
    assert not bool(hole[near == 0].any())


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_hole_lies_as_its_picture_does(fit: Any) -> None:
    mask = torch.zeros(16, 32)
    mask[4:10, 12:18] = 1
    shown, hole_at = holes(read(1 - mask.expand(3, -1, -1), fit), mask, 0.0, 32)  # black where the hole is
    rgb, hole = shown.at(32)[0, 0], hole_at(32)[0, 0]
    if fit == "pad":
        expected = torch.zeros(32, 32)
        expected[12:18, 12:18] = 1
        assert torch.equal(hole, expected)
    assert bool(hole[rgb < 0].all())
    assert hole.sum() < 2.2 * (rgb < 0).sum()


def test_a_mask_is_as_large_as_a_large_picture_was_given() -> None:
    """Of which less is kept; the hole still covers all that it touches."""
    given = read(picture(1500, 3000), "pad")
    assert given.pictures[0].size == (1024, 2048)
    mask = torch.zeros(1500, 3000)
    mask[596:604, 996:1004] = 1
    _, hole_at = holes(given, mask, 0.0, 32)
    marked = hole_at(64)[0, 0].nonzero()
    assert len(marked) in (1, 2, 4)
    assert (marked.float().mean(0) - torch.tensor([16 + 600 / 3000 * 64, 1000 / 3000 * 64])).abs().max() < 1


def test_without_a_mask_the_hole_is_what_is_transparent() -> None:
    rgba = picture(channels=4)
    rgba[3] = 1 - box(32, 3, 4, 9) * 0.7  # 0.3 in the box, less than half
    rgba[3, 20:, 20:] = 0.8  # a shadow, not a hole
    _, hole_at = holes(read(rgba, "pad"), None, 0.0, 32)
    assert torch.equal(hole_at(32)[0, 0], box(32, 3, 4, 9))
    mask = box(32, 20, 20, 5)  # a mask is taken in its place
    assert torch.equal(holes(read(rgba, "pad"), mask, 0.0, 32)[1](32)[0, 0], mask)


def test_several_pictures_and_masks() -> None:
    sources = [picture(), picture(48, 48, seed=1)]
    masks = [box(32, 1, 1, 9), box(48, 20, 20, 9)]
    _, hole_at = holes(read(sources, "pad"), masks, 0.0, 32)
    assert hole_at(16).shape == (2, 1, 16, 16)
    for i in range(2):
        alone = holes(read(sources[i], "pad"), masks[i], 0.0, 32)[1](16)
        assert torch.equal(hole_at(16)[i], alone[0])
    _, shared = holes(read([picture(), picture(seed=1)], "pad"), masks[0], 0.0, 32)
    assert torch.equal(shared(32), masks[0].expand(2, 1, -1, -1))


# ---- outpainting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_outpainting_leaves_the_picture_in_the_middle(share: float) -> None:
    given, hole_at = holes(read(picture(), "pad"), None, share, 32)
    side = round(32 / (1 - share) / 2) * 2
    border = (side - 32) // 2
    inside = slice(border, border + 32)
    hole = hole_at(side)[0, 0]
    assert not bool(hole[inside, inside].any())
    assert hole.sum() == side**2 - 32**2
    assert_close(given.at(side)[0, :, inside, inside], picture() * 2 - 1)
    assert abs(border * 2 / side - share) < 0.02


@pytest.mark.parametrize("share", [0.1, 0.99, 1 - 1e-9])
def test_however_long_a_picture_its_frame_is_no_larger_than_a_result(share: float) -> None:
    given, hole_at = holes(read(torch.zeros(3, 1, 20_000), "pad"), None, share, 32)
    assert max(given.pictures[0].size) <= 1026
    assert hole_at(32).any()


def test_outpainting_goes_on_beside_a_wide_picture_too() -> None:
    """What is added to make it square is filled as what is around it."""
    _, hole_at = holes(read(picture(16, 32), "pad"), None, 0.5, 32)
    expected = torch.ones(64, 64)
    expected[24:40, 16:48] = 0
    assert torch.equal(hole_at(64)[0, 0], expected)


def test_outpainting_keeps_a_hole_too() -> None:
    mask = box(32, 8, 8, 10)
    _, hole_at = holes(read(picture(), "pad"), mask, 0.5, 32)
    hole = hole_at(64)[0, 0]
    assert torch.equal(hole[16:48, 16:48], mask)
    assert hole.sum() == 64**2 - 32**2 + 100


# ---- what there is no hole in ------------------------------------------------------------------------------------

NOTHING = "there is nothing to fill: give a mask, a picture with transparent parts, or outpaint above 0"


def test_nothing_to_fill() -> None:
    with pytest.raises(UserError, match=NOTHING):
        holes(read(picture(), "pad"), None, 0.0, 32)
    with pytest.raises(UserError, match=NOTHING):
        holes(read(torch.full((4, 9, 9), 0.6), "pad"), None, 0.0, 32)  # not transparent enough
    wide = torch.zeros(16, 64)
    wide[:, 60:] = 1
    with pytest.raises(UserError, match=NOTHING):  # cut away
        holes(read(picture(16, 64), "crop"), wide, 0.0, 32)
    clear = picture(channels=4)
    clear[3] = box(32, 0, 0, 16)
    with pytest.raises(UserError, match=NOTHING):  # in one of two
        holes(read([clear, picture()], "pad"), None, 0.0, 32)


def test_a_dot_is_a_hole_at_the_decoders_size() -> None:
    _, hole_at = holes(read(picture(512, 512), "pad"), box(512, 100, 100, 3), 0.0, 32)
    assert hole_at(32).any()


def test_too_narrow_a_border_is_no_hole_at_the_decoders_size() -> None:
    with pytest.raises(UserError, match=r"outpaint 0\.0001 adds less than a pixel at 32 px: give more"):
        holes(read(picture(2000, 2000), "pad"), None, 1e-4, 32)


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="the mask marks nothing"):
        holes(read(picture(), "pad"), torch.zeros(32, 32), 0.0, 32)
    with pytest.raises(UserError, match="the mask has 16 x 16 pixels and its picture 32 x 32"):
        holes(read(picture(), "pad"), box(16, 1, 1, 4), 0.0, 32)
    with pytest.raises(UserError, match="got 3 masks for 2 pictures: give one for each, or a single one"):
        holes(read([picture(), picture()], "pad"), [box(32, 1, 1, 4)] * 3, 0.0, 32)
    for share, message in (
        (1, "outpaint must be below 1"),
        (1.5, "outpaint must lie"),
        (-0.1, "outpaint must lie"),
    ):
        with pytest.raises(UserError, match=message):
            holes(read(picture(), "pad"), None, share, 32)


# ---- pasting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 64, 256])
def test_pasting(side: int) -> None:
    """Made in the hole, given farther than the seam, and fading evenly between."""
    made, own = torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side)
    middle = side // 2
    hole = torch.zeros(1, 1, side, side)
    hole[..., :middle] = 1
    pasted = paste(made, own, hole)[0, 0, 0]
    radius = max(1, side // SEAM)
    assert torch.equal(pasted[:middle], torch.ones(middle))
    assert torch.equal(pasted[middle + radius - 1 :], torch.zeros(side - middle - radius + 1))
    fading = torch.cat([torch.ones(1), pasted[middle : middle + radius - 1], torch.zeros(1)])
    assert_close(fading.diff(), torch.full((radius,), -1 / radius))


def test_pasting_is_exact_where_nothing_is_made() -> None:
    generator = np.random.default_rng(0)
    made, own = (torch.from_numpy(generator.random((2, 3, 64, 64), np.float32)) for _ in range(2))
    hole = torch.zeros(2, 1, 64, 64)
    hole[0, :, 10:20, 10:20] = 1
    pasted = paste(made, own, hole)
    assert torch.equal(pasted[1], own[1])
    assert torch.equal(pasted[0, :, 10:20, 10:20], made[0, :, 10:20, 10:20])
    assert torch.equal(pasted[0, :, 22:], own[0, :, 22:])
