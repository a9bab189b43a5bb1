"""Sample grids: what was asked, what was drawn, the nearest real picture, the real picture that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unclip.files import atomic_path

SIDE = 128  # pixels of a picture
GAP = 8
CAPTION = 18  # height of a line of text
COLUMNS = 2  # cells in a row
RIGHT, WRONG = (46, 125, 50), (198, 40, 40)
HEADINGS = ("generated", "nearest real", "asked (real)")


@dataclass(frozen=True)
class Cell:
    """A prompt, one picture for each heading, whether the second (or what was made) is right."""

    caption: str
    pictures: tuple[Image.Image, ...]
    right: bool


def save_grid(cells: Sequence[Cell], path: Path, headings: Sequence[str] = HEADINGS) -> None:
    """Write a PNG of all cells; their second picture is framed green if they are right, else red."""
    width, height = len(headings) * (SIDE + GAP) + 2 * GAP, CAPTION + SIDE + 2 * GAP
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (width * COLUMNS, CAPTION + GAP + height * rows), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column in range(COLUMNS):
        for i, heading in enumerate(headings):
            draw.text(
                (column * width + GAP + i * (SIDE + GAP), GAP), heading, fill=(120, 120, 120), font=font
            )
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        _paste(sheet, cell, column * width + GAP, CAPTION + GAP + row * height)
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def _paste(sheet: Image.Image, cell: Cell, left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text(
        (left, top + 2),
        _shortened(cell.caption, font, len(cell.pictures) * (SIDE + GAP) - GAP),
        fill="black",
        font=font,
    )
    for i, picture in enumerate(cell.pictures):
        x, y = left + i * (SIDE + GAP), top + CAPTION + 2
        sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        colour = (RIGHT if cell.right else WRONG) if i == 1 else (220, 220, 220)
        draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=colour, width=2 if i == 1 else 1)


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def save_pairs(
    pairs: Sequence[tuple[str, Image.Image, Image.Image]], heading: str, path: Path, columns: int = 4
) -> None:
    """Write a PNG of (caption, generated, nearest training picture), with a heading above all."""
    width, height = 2 * (SIDE + GAP) + GAP, CAPTION + SIDE + 2 * GAP
    columns = max(1, min(columns, len(pairs)))
    top = CAPTION + 2 * GAP
    font = ImageFont.load_default(13)
    wide = max(width * columns, round(font.getlength(heading)) + 2 * GAP)
    sheet = Image.new("RGB", (wide, top + height * -(-len(pairs) // columns)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), heading, fill=(120, 120, 120), font=font)
    for number, (caption, *pictures) in enumerate(pairs):
        left, upper = GAP + number % columns * width, top + number // columns * height
        draw.text((left, upper + 2), _shortened(caption, font, 2 * SIDE + GAP), fill="black", font=font)
        for i, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + i * (SIDE + GAP), upper + CAPTION + 2))
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def save_rows(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], headings: Sequence[str], path: Path, quality: int = 85
) -> None:
    """Write a picture (WebP by its name) with a row for each caption, which stands above its pictures."""
    width, height = len(headings) * (SIDE + GAP) + GAP, CAPTION + SIDE + GAP
    sheet = Image.new("RGB", (width, CAPTION + GAP + height * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, heading in enumerate(headings):
        draw.text((GAP + i * (SIDE + GAP), GAP), heading, fill=(120, 120, 120), font=font)
    for row, (caption, pictures) in enumerate(rows):
        upper = CAPTION + GAP + row * height
        draw.text((GAP, upper + 2), _shortened(caption, font, width - 2 * GAP), fill="black", font=font)
        for i, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (GAP + i * (SIDE + GAP), upper + CAPTION))
    with atomic_path(path) as temporary:
        sheet.save(temporary, quality=quality, method=6)
