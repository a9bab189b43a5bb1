"""`unclip generate` and `unclip demo`: pictures from text."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unclip.cli.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Output,
    PlainWords,
    Prior,
    Progress,
    Seed,
    Text,
    Whole,
    load_pipeline,
    picture_facts,
    tell_understood,
)
from unclip.cli.shared import Sampling, with_groups
from unclip.errors import UserError

if TYPE_CHECKING:
    from unclip.pipelines.gallery import Drawn


@with_groups
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    negative_prompt: Annotated[Text, typer.Option(help="What to move away from.")] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="For each prompt.")] = 1,
    seed: Seed = None,
    size: Annotated[Whole, typer.Option(help="Side in pixels: 64, 256 or 1024.")] = None,
    output: Output = Path("out"),
    grid: Annotated[bool, typer.Option("--grid", help="Write a captioned grid of all, too.")] = False,
    as_json: AsJson = False,
    prior: Prior = None,
    image_embeds: Annotated[
        Path | None, typer.Option(help="Draw these embeddings (a file of `unclip invert`), not the prior's.")
    ] = None,
    plain_words: PlainWords = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Made at once; no picture depends on it.")] = 16,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = "float32",
    progress: Progress = True,
    *,
    sampling: Sampling,
) -> None:
    """Draw pictures from text. The PNG files hold prompt, seed, model and settings."""
    from unclip.pipelines.latents import load_embeds

    texts = read_prompts(prompts or [], prompts_file, needed=image_embeds is None)
    if image_embeds is not None and prior is not None:
        raise UserError("--image-embeds takes the place of a prior: leave --prior out, or draw from text")
    embeds = None if image_embeds is None else load_embeds(image_embeds)
    pipe = load_pipeline(model, device, dtype, progress)
    from unclip.pipelines.gallery import draw, draw_grid

    tell_understood(pipe, [*texts, negative_prompt or ""], plain_words)
    facts = picture_facts(negative_prompt, model, plain_words)
    facts |= {"prior": prior} if prior else {}
    facts |= {"image_embeds": image_embeds.name} if image_embeds else {}
    settings = sampling.settings(pipe)
    drawn = draw(
        pipe,
        texts,
        output,
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
        images_per_prompt=num_images,
        size=size,
        settings=settings,
        facts=facts,
        batch_size=batch_size,
        plain_words=plain_words,
        prior=prior,
        image_embeds=embeds,
        report=(lambda each: None) if as_json else (lambda each: typer.echo(each.path)),
    )
    sheet = str(draw_grid(drawn, output, num_images, facts)) if grid else None
    if as_json:
        print_json(drawn, {**facts, "settings": asdict(settings)}, sheet)
    elif sheet is not None:
        typer.echo(sheet)


def demo(
    output: Output = Path("out"), model: Model = None, device: Device = None, progress: Progress = True
) -> None:
    """Draw a fixed list of prompts. Writes demo.png and one picture of the largest size; tells the times."""
    started = time.perf_counter()
    pipe = load_pipeline(model, device, "float32", progress)
    from unclip.pipelines.demo import draw_demo

    typer.echo(f"loaded the model in {time.perf_counter() - started:.0f} s")
    draw_demo(pipe, output, typer.echo)
    typer.echo(f"{time.perf_counter() - started:.0f} s in all")


def read_prompts(prompts: list[str], file: Path | None, needed: bool = True) -> list[str]:
    """The prompts of the command line, then those of a file; UserError if there is none and one is needed."""
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompts in {file}: {error}") from error
        prompts = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not prompts and needed:
        raise UserError("no prompt: say what to draw, e.g. unclip generate 'a red apple, 3D'")
    return prompts


def print_json(drawn: Sequence[Drawn], facts: dict[str, Any], sheet: str | None) -> None:
    """What --json prints of a call."""
    images = [{"path": str(d.path), "prompt": d.prompt, "seed": d.seed, "size": d.size} for d in drawn]
    typer.echo(json.dumps({**facts, "images": images, "grid": sheet}))
