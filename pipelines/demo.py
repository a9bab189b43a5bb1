"""What `unclip demo` draws: prompts written down before the model was trained, always with seed 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from unclip.files import atomic_path, check_writable

from .pictures import grid, save_png
from .text_to_image import UnCLIPTextToImagePipeline

PROMPTS = (
    "a red apple, 3D",
    "a slice of pizza, flat",
    "a smiling face with sunglasses, noto",
    "a blue heart, glossy",
    "a dog, noto",
    "a cat face, blob",
    "a rocket, 3D",
    "a house with a garden, flat",
    "a hot beverage, twemoji",
    "a spouting whale, 3D",
    "a birthday cake, noto",
    "a rainbow",
    "a firefighter, flat",
    "a green book, 3D",
    "a robot, twemoji",
    "a mushroom, glossy",
)
SIZE = 256
SEED = 0


def draw_demo(pipe: UnCLIPTextToImagePipeline, folder: Path, say: Callable[[str], object]) -> list[Path]:
    """Write a captioned grid of PROMPTS, and the first of them in the largest size, into `folder`; tell the times."""
    check_writable(folder)
    started = time.perf_counter()
    size = SIZE if SIZE in pipe.sizes else min(pipe.sizes)
    pictures = pipe(list(PROMPTS), size=size, generator=torch.Generator().manual_seed(SEED)).images
    overview = folder / "demo.png"
    with atomic_path(overview) as temporary:
        grid(pictures, PROMPTS).save(temporary)
    say(f"{overview}: {len(PROMPTS)} pictures of {size} px in {time.perf_counter() - started:.0f} s")

    started = time.perf_counter()
    size = max(pipe.sizes)
    large = folder / f"demo-{size}.png"
    picture = pipe(PROMPTS[0], size=size, generator=torch.Generator().manual_seed(SEED)).images[0]
    save_png(picture, large, {"prompt": PROMPTS[0], "seed": SEED})
    say(f"{large}: {PROMPTS[0]!r} in {size} px in {time.perf_counter() - started:.0f} s")
    return [overview, large]
