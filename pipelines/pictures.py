"""From tensors to files: pictures of every output type, PNGs that say how they were made, captioned grids."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import unclip
from unclip.files import atomic_path

NAME_LENGTH = 60  # characters of a prompt in a file name
SOFTWARE = f"unclip {unclip.__version__}"


def to_output(pictures: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Pictures [B, 3, S, S] around [-1, 1] in one of the forms that UnCLIPPipelineOutput names."""
    if output_type == "latent":
        return pictures
    unit = (pictures.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    array = unit.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype(np.uint8)]


def save_png(picture: Image.Image, path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG, whole or not at all, with `facts` as text chunks; what is no string becomes JSON."""
    info = PngInfo()
    for name, text in as_text(facts).items():
        info.add_itxt(name, text)
    with atomic_path(path) as temporary:
        picture.save(temporary, pnginfo=info)


def read_png(path: Path) -> dict[str, str]:
    """The text chunks of a PNG."""
    with Image.open(path) as picture:
        return {name: str(text) for name, text in getattr(picture, "text", {}).items()}


def as_text(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as a PNG holds them, with the program that wrote it."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in facts.items()
        if value is not None
    }
    return {**texts, "Software": SOFTWARE}


def file_for(
    folder: Path,
    prompt: str | None,
    seed: int,
    facts: dict[str, Any],
    *,
    number: int | None = None,
    taken: Collection[Path] = (),
) -> Path:
    """A readable name that takes no other picture's place, nor those `taken`; what is the same gets the same."""
    stem = "-".join(
        [slug(prompt or "") or "picture", *([] if number is None else [str(number)]), f"seed{seed}"]
    )
    wanted, path, count = as_text(facts), folder / f"{stem}.png", 1
    while path in taken or (path.exists() and not _holds(path, wanted)):
        count += 1
        path = folder / f"{stem}-{count}.png"
    return path


def _holds(path: Path, wanted: dict[str, str]) -> bool:
    try:
        return read_png(path) == wanted
    except OSError:  # not a picture: not ours to overwrite
        return False


def slug(prompt: str) -> str:
    """A prompt as part of a file name: plain letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:NAME_LENGTH].strip("-")


def grid(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Pictures of one size side by side on white, each with its caption below; a square by default."""
    side = pictures[0].width
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    margin = max(2, side // 16)
    font = ImageFont.load_default(size=max(8, side // 15))
    blocks = [_wrap(caption, font, side, 3) for caption in captions]
    line = math.ceil(sum(font.getmetrics()) * 1.05) if isinstance(font, ImageFont.FreeTypeFont) else 12
    cell_width, cell_height = side + margin, side + margin + line * max(len(block) for block in blocks)
    sheet = Image.new(
        "RGB",
        (columns * cell_width + margin, math.ceil(len(pictures) / columns) * cell_height + margin),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, (picture, block) in enumerate(zip(pictures, blocks, strict=True)):
        left, top = margin + i % columns * cell_width, margin + i // columns * cell_height
        sheet.paste(picture, (left, top))
        for row, text in enumerate(block):
            draw.text(
                (left + side / 2, top + side + row * line), text, fill=(40, 40, 40), font=font, anchor="ma"
            )
    return sheet


def _wrap(caption: str, font: Any, width: int, most: int) -> list[str]:
    """The caption in at most `most` lines of `width` pixels; what does not fit becomes an ellipsis."""
    lines: list[str] = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]}…"]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: Any, width: int) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = f"{line[:-2]}…"
    return line
