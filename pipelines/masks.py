"""What is to be made anew in a picture, and how the rest of it is put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.errors import UserError

from .inputs import check_share
from .manipulation import Given
from .reading import Picture, Source, read_mask, resized, source_list, square

SEAM = 32  # the seam around a hole is 1 / SEAM of the side wide
TOUCHED = 1e-3  # share of a pixel that a hole must cover to take it; less is rounding
OPAQUE = 0.5  # what is less opaque is a hole, where alpha says where it is

FRAME = 1024  # pixels of a side to work on where a picture is continued outwards: no result is larger

HoleAt = Callable[[int], Tensor]  # size -> [P, 1, size, size], 1 wherever the hole touches a pixel


def holes(
    given: Given, mask_image: Source | Sequence[Source] | None, outpaint: float, size: int
) -> tuple[Given, HoleAt]:
    """The pictures, made smaller if they are to be continued outwards, and their holes at any size.

    Args:
        mask_image: one mask, or one for each picture; None for the pictures' own transparency.
        outpaint: share of the side that is added around a picture.
        size: of the decoder's picture, in which there must be a hole.

    Raises:
        UserError: a mask does not fit its picture or marks nothing, or there is no hole.
    """
    if check_share(outpaint, "outpaint") == 1:
        raise UserError("outpaint must be below 1, or nothing of the picture is left")
    masks = [None] * len(given) if mask_image is None else source_list(mask_image)
    if len(masks) not in (1, len(given)):
        raise UserError(
            f"got {len(masks)} masks for {len(given)} pictures: give one for each, or a single one"
        )
    masks = masks * (len(given) // len(masks))
    # A mask travels as the alpha of its picture: what happens to the one happens to the other.
    pictures = [_with_hole(picture, mask) for picture, mask in zip(given.pictures, masks, strict=True)]
    if outpaint:
        pictures = [_smaller(picture, outpaint, given.fit) for picture in pictures]

    def hole_at(size: int) -> Tensor:
        alpha = torch.stack([square(each, size, given.fit).alpha for each in pictures])
        return (alpha < 1 - TOUCHED).float()

    if not bool(hole_at(size).flatten(1).any(dim=1).all()):
        raise UserError(
            f"outpaint {outpaint:g} adds less than a pixel at {size} px: give more"
            if outpaint
            else "there is nothing to fill: give a mask, a picture with transparent parts, or outpaint above 0; to "
            "change all of it, give strength (UnCLIPImg2ImgPipeline)"
        )
    return replace(given, pictures=pictures), hole_at


def _with_hole(picture: Picture, mask: Source | None) -> Picture:
    if mask is None:
        return replace(picture, alpha=(picture.alpha >= OPAQUE).float())
    hole = read_mask(mask, like=picture.given_size or picture.size)
    # A pixel that the hole touches is hole, also where a large picture was made smaller.
    marked = resized(hole, *picture.size, "bilinear") > TOUCHED
    return replace(picture, alpha=1 - marked.float())


def _smaller(picture: Picture, share: float, fit: str) -> Picture:
    """The picture as a square with an empty border, `share` of its new side wide in all; bars are border, too."""
    side = min(max(picture.size), max(1, round(FRAME * (1 - share))))
    inner = square(picture, side, fit, bars=0.0)  # type: ignore[arg-type]
    border = min(round(side * share / (1 - share) / 2), FRAME // 2)
    frame = (border,) * 4
    return replace(inner, rgb=F.pad(inner.rgb, frame, value=1.0), alpha=F.pad(inner.alpha, frame, value=0.0))


def paste(made: Tensor, own: Tensor, hole: Tensor) -> Tensor:
    """The given pictures [B, 3, s, s] over made ones but for their holes [B, 1, s, s], with a soft seam around these.

    Outwards from a hole the made picture fades into the given one over s / SEAM pixels; what lies farther is exactly
    the given picture's.
    """
    radius = max(1, hole.shape[-1] // SEAM)
    # Distance to the hole in steps of one pixel, as far as the seam is wide.
    grown = (hole > 0).float()
    share = grown.clone()
    for step in range(1, radius):
        grown = F.max_pool2d(grown, 3, stride=1, padding=1)
        share = torch.maximum(share, grown * (1 - step / radius))
    return torch.lerp(own, made, share)
