"""What manipulations.sh made, in one picture for each section of manipulations.md: python docs/sheets.py OUT FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

SIDE, GAP = 128, 8
NAMES = ["a-red-apple-3d-seed0", "alpha", "wide", "grey16", "star"]


def made(name: str, *parts: str) -> list[str]:
    return [f"{name}-{part}.png" for part in parts]


def rows(out: Path) -> dict[str, list[list[str]]]:
    """Section -> rows of files in OUT."""
    blend = "-".join(["a-red-apple-3d-seed0", *NAMES[1:], "blend"])
    apple, alpha = NAMES[0], NAMES[1]
    return {
        "vary": [made(name, *(f"vary-seed{k}" for k in range(3))) for name in NAMES],
        "blend": [
            [f"{blend}-{k}-seed0.png" for k in range(9)],
            [f"star-a-blue-heart-flat-blend-{k}-seed0.png" for k in range(7)],
            made(apple, "star-a-blue-heart-flat-blend-seed0"),
        ],
        "diff": [
            made("an-airplane-flat-seed0", *(f"diff-an-airplane-3d-{k}-seed0" for k in range(7))),
            made(apple, *(f"diff-a-green-apple-{k}-seed0-3" for k in range(4)))
            + made(apple, *(f"diff-a-green-apple-{k}-seed0" for k in range(4, 7))),
            *([made(name, *(f"diff-a-green-apple-{k}-seed0" for k in range(4))) for name in NAMES]),
        ],
        "redraw": [
            made("smiling-face-3d-seed0", *(f"diff-crying-face-{k}-seed0" for k in range(7))),
            *([made(name, *(f"diff-a-green-apple-{k}-seed0-2" for k in range(4))) for name in NAMES]),
        ],
        "edit": [
            made(alpha, "edit-a-red-balloon-flat-seed0", "edit-a-red-balloon-flat-seed0-2"),
            *(
                [
                    made(name, "edit-a-yellow-star-flat-seed0", "edit-a-green-apple-flat-seed0")
                    for name in NAMES
                ]
            ),
        ],
        "upscale": [[f"{name}-upscale-seed0.png" for name in NAMES]],
    }


def opened(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return cell


def main() -> None:
    out, folder = (Path(each) for each in sys.argv[1:3])
    for section, files in rows(out).items():
        cells = [[opened(out / name) for name in row] for row in files]
        step = SIDE + GAP
        sheet = Image.new("RGB", (max(map(len, cells)) * step + GAP, len(cells) * step + GAP), "white")
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                sheet.paste(cell, (x * step + GAP, y * step + GAP))
        sheet.save(folder / f"{section}.webp", quality=85, method=6)


if __name__ == "__main__":
    main()
