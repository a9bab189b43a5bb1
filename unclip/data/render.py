"""SVG or webp to 256 px RGBA, and the coarse picture by which duplicates are found."""

from __future__ import annotations

import importlib.util
import io
import re

import numpy as np
from PIL import Image

from unclip.errors import UserError

FINGERPRINT_SIDE = 16
_VIEW_BOX = re.compile(r'viewBox="([^"]+)"')
_BLANK_STD = 3.0  # a picture on white with less contrast than this shows nothing


def render_svg(svg: str, size: int, crop: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> np.ndarray:
    """Draw a square SVG, or a square part of it, at any resolution.

    Args:
        svg: a document whose viewBox is a square, as the shards hold it.
        size: pixels of the result's side.
        crop: (left, top, side) of the part to draw, each in 0..1 of the whole; drawing a part costs no more than
            the part, so a 256 px crop of a 1024 px picture is `render_svg(svg, 256, (x, y, 0.25))`.

    Returns:
        uint8 [size, size, 4], RGBA with straight alpha.

    Raises:
        ValueError: no renderer can draw it, or it has no viewBox.
    """
    match = _VIEW_BOX.search(svg)
    if match is None:
        raise ValueError('expected an SVG with a viewBox, got one without; add viewBox="0 0 W H" to its root')
    if crop != (0.0, 0.0, 1.0):
        left, top, width, height = (float(part) for part in match[1].replace(",", " ").split())
        x, y, side = crop
        box = f'viewBox="{left + x * width:g} {top + y * height:g} {side * width:g} {side * height:g}"'
        svg = svg[: match.start()] + box + svg[match.end() :]
    image = Image.open(io.BytesIO(_to_png(svg, size))).convert("RGBA")
    if image.size != (size, size):
        image = resize_rgba(image, size)
    return np.asarray(image)


def require_renderer() -> None:
    """Raise a UserError with the remedy where resvg is not installed."""
    if importlib.util.find_spec("resvg_py") is None:
        raise UserError(
            "drawing SVG needs resvg-py, which is not installed; run `pip install 'unclip[data]'`"
        )


def _to_png(svg: str, size: int) -> bytes:
    require_renderer()
    import resvg_py

    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    except ValueError as error:  # what resvg refuses, cairo often draws
        try:
            import cairosvg

            return cairosvg.svg2png(bytestring=svg.encode(), output_width=size, output_height=size)
        except Exception:
            raise ValueError(f"neither resvg nor cairo can draw this SVG: {error}") from error


def render(svg: str | None, webp: bytes | None, size: int) -> tuple[bytes, np.ndarray]:
    """One artwork as (webp bytes, fingerprint): RGBA at `size` px, lossless; a webp of that size is kept as it is.

    Raises:
        ValueError: it cannot be drawn, or is blank on white.
    """
    if webp is not None:
        image = Image.open(io.BytesIO(webp)).convert("RGBA")
    else:
        assert svg is not None
        image = Image.fromarray(render_svg(svg, size))
    coarse = fingerprint(image)
    if coarse.std() < _BLANK_STD:
        raise ValueError("expected a picture, got a blank one")
    if webp is not None and image.size == (size, size):
        return webp, coarse
    return encode_webp(resize_rgba(image, size)), coarse


def encode_webp(image: Image.Image) -> bytes:
    """Lossless webp; the settings trade 5 % in size for half the time of the default."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=50, method=2)
    return buffer.getvalue()


def resize_rgba(image: Image.Image, size: int) -> Image.Image:
    """Square resize with premultiplied alpha, so that colours of invisible pixels do not bleed in."""
    if image.size == (size, size):
        return image
    side = max(image.size)
    if image.width != image.height:
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")


def fingerprint(image: Image.Image) -> np.ndarray:
    """uint8 [768]: the picture on white as 16x16 RGB block means."""
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(flat.resize((FINGERPRINT_SIDE,) * 2, Image.Resampling.BOX)).reshape(-1)
