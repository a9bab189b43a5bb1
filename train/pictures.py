"""Pictures as tensors and back, as the tasks need them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.data import CaptionedImages
from unclip.data.images import on_background


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """Float in [-1, 1] (clipped) -> uint8."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def random_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A colour, or a gradient between two in any direction: [size, size, 3] uint8."""
    first, second = rng.integers(0, 256, (2, 3))
    if rng.random() < 0.5:
        second = first
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    share = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2) + 0.5  # within 0..1
    return (first + share[..., None] * (second - first)).astype(np.uint8)


def load_thumbnails(pictures: CaptionedImages, size: int, limit: int | None) -> np.ndarray:
    """All pictures (the first `limit`) at `size`: [N, size, size, 4] uint8."""
    if limit is None:
        return pictures.thumbnails(size, progress=True)
    # A few are decoded faster than the whole set's file is made, and nothing is written.
    return np.stack([pictures.rgba(i, size) for i in range(min(limit, len(pictures)))])


def thumbnails_on_white(pictures: CaptionedImages, size: int, limit: int | None) -> Tensor:
    """All pictures (the first `limit`) on white: [N, 3, size, size] uint8."""
    rgba = load_thumbnails(pictures, size, limit)
    out = torch.empty((len(rgba), 3, size, size), dtype=torch.uint8)
    for start in range(0, len(rgba), 1024):
        part = on_background(np.asarray(rgba[start : start + 1024]))
        out[start : start + len(part)] = torch.from_numpy(part).permute(0, 3, 1, 2)
    return out


def grid(pictures: Tensor, columns: int) -> Image.Image:
    """[N, 3, H, W] uint8 as one picture; column by column it holds `columns` pictures a row."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    canvas = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    canvas[:count] = pictures.cpu()
    sheet = canvas.view(rows, columns, channels, height, width).permute(
        0, 3, 1, 4, 2
    )  # [rows, H, columns, W, 3]
    return Image.fromarray(sheet.reshape(rows * height, columns * width, channels).numpy())
