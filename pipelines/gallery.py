"""Drawing lists of prompts into a folder of PNG files, for the command line and for scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unclip.files import check_writable

from .inputs import Settings, choose_size, prompt_list
from .pictures import file_for, grid, save_png
from .text_to_image import UnCLIPTextToImagePipeline


@dataclass(frozen=True)
class Drawn:
    """A picture on disk. The same prompt, seed, size and settings make it again, alone or among others."""

    path: Path
    prompt: str
    seed: int
    size: int
    picture: Image.Image


def draw(
    pipe: UnCLIPTextToImagePipeline,
    prompts: Sequence[str],
    folder: Path,
    *,
    seed: int,
    images_per_prompt: int,
    size: int | None,
    settings: Settings,
    facts: dict[str, Any],
    batch_size: int,
    report: Callable[[Drawn], object],
    plain_words: bool | None = None,
) -> list[Drawn]:
    """Draw each prompt `images_per_prompt` times, with seeds from `seed` upwards; each is written at once.

    Args:
        facts: "model" and "negative_prompt"; they join prompt, seed, size and settings in the PNG files.
        plain_words: as in a call of the pipeline.
        report: called for each picture when its file is there.

    Raises:
        UserError: a prompt is empty or the size not offered; before anything is drawn.
    """
    size = choose_size(list(pipe.sizes), size, None, None)
    check_writable(folder)
    jobs = [(prompt, seed + k) for prompt in prompt_list(prompts) for k in range(images_per_prompt)]
    drawn: list[Drawn] = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        output = pipe(
            [prompt for prompt, _ in batch],
            facts.get("negative_prompt"),
            size=size,
            generator=[torch.Generator().manual_seed(number) for _, number in batch],
            plain_words=plain_words,
            **asdict(settings),
        )
        for (prompt, number), picture in zip(batch, output.images, strict=True):
            all_facts = {
                "prompt": prompt,
                "seed": number,
                "size": size,
                **facts,
                "settings": asdict(settings),
            }
            path = file_for(folder, prompt, number, all_facts)
            save_png(picture, path, all_facts)
            drawn.append(Drawn(path, prompt, number, size, picture))
            report(drawn[-1])
    return drawn


def draw_grid(drawn: Sequence[Drawn], folder: Path, images_per_prompt: int, facts: dict[str, Any]) -> Path:
    """Write all pictures side by side with their captions: a row for each prompt when it has several."""
    columns = images_per_prompt if images_per_prompt > 1 else None
    sheet = grid([each.picture for each in drawn], [each.prompt for each in drawn], columns)
    all_facts = {**facts, "prompts": [each.prompt for each in drawn], "seeds": [each.seed for each in drawn]}
    path = file_for(folder, f"grid {drawn[0].prompt}", drawn[0].seed, all_facts)
    save_png(sheet, path, all_facts)
    return path
