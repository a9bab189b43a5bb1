"""Any picture that a user brings, as tensors: upright, on a plain background and, where asked for, square.

    read_picture    a file, PIL picture, array or tensor -> Picture as large as it came
    square          a Picture of any shape -> S x S
    read_pictures   both, for several: the batch that a pipeline works on
    read_mask       what is to be made anew in a picture

What is transparent is laid on the background before anything is resized. Both are linear, so the result is that of
resizing premultiplied colours: what lies hidden under alpha 0 cannot bleed in.

Shapes: C channels (1 grey, 3 RGB, 4 RGBA with straight alpha), H x W as it came, S side asked for, B pictures.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from unclip.errors import UserError

Source: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Fit = Literal["pad", "crop", "stretch"]

MAX_PIXELS = 64_000_000  # of one picture: up to 1.8 GB while it is read
WHITE = (255, 255, 255)

_KINDS = "a path, a PIL picture, a numpy array [H, W, 3] or a tensor [3, H, W]"
_FULL = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}  # the brightest value; floats lie in [0, 1]
_BY_OTHER_PROGRAMS = {"EPS"}  # Pillow starts Ghostscript for these
_JPEG_SCALES = (1, 2, 4, 8)  # a JPEG can be decoded so many times smaller
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright
_opening = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """One picture, or a batch of them with B in front.

    Attributes:
        rgb: [3, H, W] in [-1, 1], on the background. alpha: [1, H, W] in [0, 1], 1 = opaque.
        background: (red, green, blue) in 0..255.
        given_size: (H, W) as it was read, if it was made smaller since.
    """

    rgb: Tensor
    alpha: Tensor
    background: tuple[int, int, int] = WHITE
    given_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.rgb.shape[-2:]
        return height, width


def read_picture(source: Source, *, background: tuple[int, int, int] = WHITE) -> Picture:
    """One picture as large as it is, upright; of an animation the first frame.

    Args:
        source: a file that Pillow reads, a PIL picture, an array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W];
            a batch of one counts as its picture. Arrays and tensors hold 0..255 as uint8, 0..65535 as uint16, or
            floats in [0, 1]. A JPEG file of more than MAX_PIXELS is decoded 2, 4 or 8 times smaller.

    Raises:
        UserError: it is missing, no picture, damaged, too large, or an array of another kind.
    """
    levels = _levels(source, "the picture")
    if len(levels) == 4:
        below = torch.tensor(background, dtype=torch.float32)[:, None, None] / 255
        alpha = levels[3:]
        rgb = torch.lerp(below, levels[:3], alpha).mul_(2).sub_(1)
    else:
        alpha = levels.new_ones(1, 1, 1).expand_as(levels[:1])
        rgb = levels.mul(2).sub_(1).expand(3, -1, -1)
    return Picture(rgb, alpha, background)


def square(picture: Picture, size: int, fit: Fit = "pad", bars: float = 1.0) -> Picture:
    """The picture, or the batch, with sides of `size` pixels.

    Args:
        fit: "pad" keeps all of it between bars of the background, "crop" keeps the middle, "stretch" distorts.
        bars: alpha of the bars.

    Raises:
        UserError: an unknown fit.
    """
    empty = [2 * value / 255 - 1 for value in picture.background]
    # Channel by channel, since each has a padding of its own.
    bands = [
        _fitted(band, size, fit, "bicubic", fill)
        for band, fill in zip(picture.rgb.split(1, dim=-3), empty, strict=True)
    ]
    alpha = _fitted(picture.alpha, size, fit, "bilinear", bars)  # without overshoot: it says where holes are
    return Picture(torch.cat(bands, dim=-3).clamp(-1, 1), alpha.clamp(0, 1), picture.background)


def shrunk(picture: Picture, side: int) -> Picture:
    """The picture with a shorter side of at most `side` pixels; of one that is smaller nothing changes."""
    scale = side / min(picture.size)
    if scale >= 1:
        return picture
    height, width = (round(length * scale) for length in picture.size)
    rgb = resized(picture.rgb, height, width, "bicubic").clamp(-1, 1)
    alpha = resized(picture.alpha, height, width, "bilinear").clamp(0, 1)
    return replace(picture, rgb=rgb, alpha=alpha, given_size=picture.size)


def read_pictures(
    sources: Source | Sequence[Source],
    size: int,
    fit: Fit = "pad",
    *,
    background: tuple[int, int, int] = WHITE,
) -> Picture:
    """One or several sources, or a batch as one array or tensor -> rgb [B, 3, S, S], alpha [B, 1, S, S].

    Raises:
        UserError: there is none, or one of them cannot be read.
    """
    squares = [square(read_picture(each, background=background), size, fit) for each in source_list(sources)]
    return Picture(
        torch.stack([each.rgb for each in squares]), torch.stack([each.alpha for each in squares]), background
    )


def read_mask(source: Source, *, like: tuple[int, int]) -> Tensor:
    """What is to be made anew in a picture [1, H, W]: 1 where the mask is white, 0 where it is black.

    Args:
        source: as for a picture. What is darker than middle grey, or transparent, is kept.
        like: (H, W) of the picture it belongs to, as it was read.

    Raises:
        UserError: it cannot be read, has another size than its picture, or marks nothing.
    """
    levels = _levels(source, "the mask")
    if (have := tuple(levels.shape[-2:])) != tuple(like):
        raise UserError(
            f"the mask has {_pixels(*have)} pixels and its picture {_pixels(*like)}: give a mask of the same size"
        )
    if len(levels) == 4:
        levels = levels[:3] * levels[3:]
    marked = (levels.mean(0, keepdim=True) > 0.5).float()
    if not bool(marked.any()):
        raise UserError(
            "the mask marks nothing: paint white what is to be made anew, black what is to be kept"
        )
    return marked


def source_list(sources: Source | Sequence[Source]) -> list[Source]:
    """One or several sources as a list; an array or tensor of four dimensions is a batch.

    Raises:
        UserError: there is none.
    """
    if isinstance(sources, (np.ndarray, Tensor)) and sources.ndim == 4:
        found: list[Source] = list(sources)
    else:
        found = list(sources) if isinstance(sources, (list, tuple)) else [sources]  # type: ignore[list-item]
    if not found:
        raise UserError("there is no picture in an empty list: give at least one")
    return found


# ---- from a source to levels ------------------------------------------------------------------------------------


def _levels(source: Source, name: str) -> Tensor:
    """Any source as levels [C, H, W] in [0, 1]; `name` stands in messages for what has no path."""
    if isinstance(source, (str, Path)):
        return _file_levels(Path(source).expanduser())
    if isinstance(source, Image.Image):
        _check_size(source.height, source.width, name)
        with _mistakes(name):
            array = _as_array(source)
        return _array_levels(array, name)
    if isinstance(source, np.ndarray):
        return _array_levels(source, name)
    if isinstance(source, Tensor):
        return _tensor_levels(source, name)
    raise UserError(f"{name} is of type {type(source).__name__}: give {_KINDS}")


def _file_levels(path: Path) -> Tensor:
    name = str(path)
    with _mistakes(name):
        if path.is_dir():
            raise UserError(f"{name} is a folder: name a picture in it")
        if not path.is_file():
            raise UserError(f"no picture at {name}: give the path of a file")
        if path.stat().st_size == 0:
            raise UserError(f"{name} is empty (0 bytes): copy or save the picture again")
        with _open(path) as image:
            _draft(image)
            _check_size(image.height, image.width, name)
            array = _as_array(image)
    return _array_levels(array, name)


@contextmanager
def _mistakes(name: str) -> Iterator[None]:
    """Whatever a decoder stumbles on is one line that names the picture; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is no picture that can be read: give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{name} cannot be read ({error}): copy or save the picture again") from error


def _open(path: Path) -> Image.Image:
    """The header of a file. Its size is for us to judge: Pillow would warn of it, or not tell it."""
    Image.init()
    formats = [name for name in Image.OPEN if name not in _BY_OTHER_PROGRAMS]
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _draft(image: Image.Image) -> None:
    """Have a JPEG that is too large decoded smaller; of a progressive one that would save no memory."""
    if image.info.get("progressive"):
        return
    width, height = image.size
    scale = next((scale for scale in _JPEG_SCALES if width * height <= MAX_PIXELS * scale**2), 1)
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _check_size(height: int, width: int, name: str) -> None:
    if height * width == 0:
        raise UserError(f"{name} has {_pixels(height, width)} pixels: give one that shows something")
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{name} has {_pixels(height, width)} pixels, more than the {MAX_PIXELS // 10**6} megapixels that are "
            "read: make it smaller first, 1024 pixels a side are plenty"
        )


def _pixels(height: int, width: int) -> str:
    return f"{width} x {height}"


def _as_array(image: Image.Image) -> np.ndarray:
    """A PIL picture, upright, as an array that `_array_levels` reads."""
    image.load()
    image = _upright(image)
    if image.mode == "I":  # 16 bits as older Pillows read them; "I;16" is an array of uint16 already
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}, expected 0 to 65535")
        return values.astype(np.uint16)
    if image.mode != "F" and not image.mode.startswith("I;16"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        image = image if image.mode == mode else image.convert(mode)
    return np.asarray(image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged notes beside a sound picture
        return image
    return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def _array_levels(array: np.ndarray, name: str) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise UserError(
            f"{name} is an array of shape {list(array.shape)}: expected [H, W], [H, W, 3] or [H, W, 4]"
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        tensor = torch.tensor(np.ascontiguousarray(native))
    except TypeError:
        raise _wrong_kind(name, array.dtype) from None
    return _tensor_levels(tensor.permute(2, 0, 1), name)


def _tensor_levels(tensor: Tensor, name: str) -> Tensor:
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise UserError(
            f"{name} is a tensor of shape {list(tensor.shape)}: expected [1, H, W], [3, H, W] or [4, H, W]"
        )
    _check_size(tensor.shape[1], tensor.shape[2], name)
    if tensor.dtype not in _FULL and not tensor.dtype.is_floating_point:
        raise _wrong_kind(name, tensor.dtype)
    levels = tensor.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format)
    if tensor.dtype in _FULL:
        return levels.div_(_FULL[tensor.dtype])  # a copy, since the type was another
    low, high = (float(value) for value in levels.aminmax())
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise UserError(
            f"{name} holds values from {low:g} to {high:g}: floats lie in [0, 1], or give uint8 with 0 to 255"
        )
    return levels


def _wrong_kind(name: str, dtype: Any) -> UserError:
    return UserError(f"{name} holds values of type {dtype}: give uint8 with 0 to 255, or floats in [0, 1]")


# ---- from any shape to a square ---------------------------------------------------------------------------------


def _fitted(values: Tensor, size: int, fit: Fit, mode: str, fill: float) -> Tensor:
    """Values [*, C, H, W] -> [*, C, S, S]."""
    if fit not in get_args(Fit):
        raise UserError(f"unknown fit {fit!r}: choose one of {', '.join(get_args(Fit))}")
    height, width = values.shape[-2:]
    if fit == "crop":  # before resizing: the rest of a long strip would fill the memory
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        values = values[..., top : top + side, left : left + side]
    longer = max(height, width)
    inner = [max(1, round(size * side / longer)) if fit == "pad" else size for side in (height, width)]
    fitting = resized(values, inner[0], inner[1], mode)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    return F.pad(fitting, (left, size - inner[1] - left, top, size - inner[0] - top), value=fill)


def resized(values: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Antialiased; what has the size already stays as it is."""
    if values.shape[-2:] == (height, width):
        return values
    flat = values.reshape(-1, 1, *values.shape[-2:])
    made = F.interpolate(flat, (height, width), mode=mode, antialias=True, align_corners=False)
    return made.reshape(*values.shape[:-2], height, width)
