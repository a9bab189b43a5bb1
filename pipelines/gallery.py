"""Drawing lists of prompts into a folder of PNG files, for the command line and for scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unclip.errors import UserError
from unclip.files import check_writable

from .inputs import Settings, choose_size, prompt_list
from .pictures import file_for, grid, save_png
from .stages import generators
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
    prior: Any = None,
    image_embeds: Tensor | None = None,
) -> list[Drawn]:
    """Draw each prompt `images_per_prompt` times, with seeds from `seed` upwards; each is written at once.

    Args:
        image_embeds: [P, D] to draw in place of what the prior makes; then there may be no prompts.
        facts: "model" and "negative_prompt"; they join prompt, seed, size and settings in the PNG files.
        plain_words, prior: as in a call of the pipeline.
        report: called for each picture when its file is there.

    Raises:
        UserError: a prompt is empty or the size not offered; before anything is drawn.
    """
    size = choose_size(list(pipe.sizes), size, None, None)
    check_writable(folder)
    inputs = _inputs(prompts, image_embeds)
    jobs = [(i, seed + k) for i in range(len(inputs)) for k in range(images_per_prompt)]
    drawn: list[Drawn] = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        embeds = [inputs[i][1] for i, _ in batch]
        output = pipe(
            [inputs[i][0] for i, _ in batch] if prompts else None,
            facts.get("negative_prompt"),
            image_embeds=None if image_embeds is None else torch.stack(embeds),  # type: ignore[arg-type]
            size=size,
            generator=generators([number for _, number in batch]),
            plain_words=plain_words,
            prior=prior,
            **asdict(settings),
        )
        for (i, number), picture in zip(batch, output.images, strict=True):
            prompt = inputs[i][0]
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


def _inputs(prompts: Sequence[str], image_embeds: Tensor | None) -> list[tuple[str, Tensor | None]]:
    """(prompt, embedding or None) of each picture asked for; without a prompt its name is its number."""
    if image_embeds is None:
        return [(prompt, None) for prompt in prompt_list(prompts)]
    if not prompts:
        return [(f"embedding {i}", each) for i, each in enumerate(image_embeds)]
    if len(image_embeds) not in (1, len(prompts)):
        raise UserError(
            f"got {len(image_embeds)} image_embeds for {len(prompts)} prompts: give one for each, or a single one"
        )
    return list(zip(prompt_list(prompts), image_embeds.expand(len(prompts), -1), strict=True))


def draw_grid(drawn: Sequence[Drawn], folder: Path, images_per_prompt: int, facts: dict[str, Any]) -> Path:
    """Write all pictures side by side with their captions: a row for each prompt when it has several."""
    columns = images_per_prompt if images_per_prompt > 1 else None
    sheet = grid([each.picture for each in drawn], [each.prompt for each in drawn], columns)
    all_facts = {**facts, "prompts": [each.prompt for each in drawn], "seeds": [each.seed for each in drawn]}
    path = file_for(folder, f"grid {drawn[0].prompt}", drawn[0].seed, all_facts)
    save_png(sheet, path, all_facts)
    return path
