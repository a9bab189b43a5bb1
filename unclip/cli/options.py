"""Options that several commands share, and what is done with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import unclip
from unclip.errors import UserError, one_line

if TYPE_CHECKING:
    from unclip.pipelines import UnCLIPTextToImagePipeline

Whole = int | None
Number = float | None
Text = str | None
Model = Annotated[Text, typer.Option(help="Pipeline folder or hub id; by default the embedded emoji model.")]
Device = Annotated[Text, typer.Option(help="cpu, cuda, mps; by default the best there is.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16; on a CPU stay with float32.")]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")]
Output = Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder to write into.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[
    Whole,
    typer.Option(min=0, max=2**62, help="Of a prompt's first picture, the next has seed + 1; else random."),
]
PlainWords = Annotated[
    bool | None,
    typer.Option(
        "--plain-words/--no-plain-words",
        help="Put prompts into the words that the model knows, or leave them; by default as the model has it.",
    ),
]
Prior = Annotated[
    Text,
    typer.Option(
        help="Another prior of the model: diffusion, ar, regression, linear or none, as it has them."
    ),
]
FitOption = Annotated[
    str, typer.Option("--fit", help="How a picture is made square: pad (on white), crop or stretch.")
]
GuidanceScale = Annotated[Number, typer.Option(min=0, help="1 = no guidance.")]


def picture_facts(negative_prompt: str | None, model: str | None, plain_words: bool | None) -> dict[str, Any]:
    """What a picture's file holds besides prompt, seed, size and settings."""
    facts: dict[str, Any] = {"negative_prompt": negative_prompt, "model": model_name(model)}
    return facts if plain_words is None else facts | {"plain_words": plain_words}


def tell_understood(pipe: UnCLIPTextToImagePipeline, prompts: list[str], plain_words: bool | None) -> None:
    """On stderr, one line for each prompt that was understood differently or has words that nothing knows."""
    wanted = pipe.config.plain_words if plain_words is None else plain_words
    lexicon = pipe.lexicon if wanted else None
    if lexicon is None:
        return
    for each in pipe.understand(list(dict.fromkeys(filter(None, prompts)))):
        parts = []
        if each.changed:
            language = f" ({each.language})" if each.language else ""
            parts.append(f'understood "{each.prompt}"{language} as "{each.text}"')
        elif each.unknown:
            parts.append(f'"{each.prompt}"')
        for word in each.unknown:
            near = ", ".join(lexicon.nearest(word)) if word.isascii() else ""
            parts.append(f"unknown: '{word}'" + (f" (nearest known: {near})" if near else ""))
        if parts:
            print(one_line("; ".join(parts)), file=sys.stderr)


def read_number(assignment: str, option: str = "--default") -> tuple[str, float]:
    """`key=3` as (key, 3)."""
    key, _, value = assignment.partition("=")
    try:
        return key, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError as error:
        raise UserError(f"{option} takes key=number, got {assignment!r}") from error


def read_numbers(text: str, option: str, whole: bool = False) -> list[Any]:
    """`1,2.5` as numbers."""
    try:
        return [int(each) if whole else float(each) for each in text.split(",")]
    except ValueError as error:
        kind, example = ("whole numbers", "1,4,16") if whole else ("numbers", "1,2.5")
        raise UserError(
            f"{option} takes {kind} with commas between them, such as {example}, got {text!r}"
        ) from error


def read_named(assignment: str, option: str) -> tuple[str, str]:
    """`name=folder` as (name, folder)."""
    name, equals, folder = assignment.partition("=")
    if not (name.isidentifier() and equals and folder):
        raise UserError(f"{option} takes NAME=FOLDER, got {assignment!r}")
    return name, folder


def torch_dtype(name: str) -> Any:
    """The torch.dtype of a name."""
    known = ("float32", "float16", "bfloat16")
    if name not in known:
        raise UserError(f"unknown dtype {name!r}: choose one of {', '.join(known)}")
    import torch

    return getattr(torch, name)


def load_pipeline(
    model: str | None, device: str | None, dtype: str, progress: bool
) -> UnCLIPTextToImagePipeline:
    """A pipeline on its device.

    Raises:
        UserError: no such model, dtype or device.
    """
    wanted = torch_dtype(dtype)
    from diffusers.utils import logging

    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.loading import choose_device

    logging.set_verbosity_error()
    place = choose_device(device)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of loading; the stages have their own
    try:
        pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(place, wanted)
    finally:
        if shown:
            logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=None if progress else True, leave=False)  # None: not into a file
    return pipe


def model_name(model: str | None) -> str:
    """A model as pictures name it: a hub id or the name of a folder, never a path of this machine."""
    if model is None:
        return f"emoji of unclip {unclip.__version__}"
    return Path(model).resolve().name if Path(model).is_dir() else model
