"""Making the pictures of an evaluation: in batches, each kept at once, so that a run cut short goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip.data.progress import track
from unclip.eval.choice import Asked
from unclip.files import atomic_path

# Prompts and one seed for each -> as many RGB pictures; a picture may not depend on the others in the call.
Generate = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]

STAMP = "unclip-eval"  # PNG text chunk that says how the picture was made


def draw_pictures(
    asked: Sequence[Asked],
    generate: Generate,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> list[np.ndarray]:
    """Draw what is asked, as FOLDER/SPLIT-KEY.png -> uint8 [S,S,3] each.

    A picture that is there already and was made from the same prompt, seed and settings is used again.
    """
    stamps = [json.dumps({**settings, "prompt": a.prompt, "seed": a.seed}, sort_keys=True) for a in asked]
    paths = [folder / f"{a.split}-{a.key}.png" for a in asked]
    missing = [i for i in range(len(asked)) if not _is_made(paths[i], stamps[i])]
    done = len(asked) - len(missing)
    batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    total = len(batches) + -(-done // batch_size)
    for batch in track(batches, "draw", total=total, done=total - len(batches), show=progress):
        pictures = generate([asked[i].prompt for i in batch], [asked[i].seed for i in batch])
        for i, picture in zip(batch, pictures, strict=True):
            _save(picture, paths[i], stamps[i])
    return [_load(path) for path in paths]


def _is_made(path: Path, stamp: str) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get(STAMP) == stamp
    except (OSError, SyntaxError):  # absent, or damaged
        return False


def _save(picture: Image.Image, path: Path, stamp: str) -> None:
    info = PngInfo()
    info.add_itxt(STAMP, stamp)
    with atomic_path(path) as temporary:
        picture.convert("RGB").save(temporary, pnginfo=info)


def _load(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
