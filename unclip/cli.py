"""The command line: `unclip generate`, `train`, `data`, `eval`, `assemble`, `demo`, `info`.

Nothing heavy is imported before a command needs it, so that `unclip --help` answers at once. A user's
mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import unclip
from unclip.data.cli import app as data_app
from unclip.errors import UserError, mistakes_end_the_program, one_line
from unclip.eval.cli import app as eval_app

if TYPE_CHECKING:
    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.gallery import Drawn

app = typer.Typer(
    name="unclip",
    help="Run, train and explore unCLIP (DALL·E 2-style) text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and no option is cut short
)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")

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
GuidanceScale = Annotated[Number, typer.Option(min=0, help="1 = no guidance.")]


def print_version(wanted: bool) -> None:
    """Answer --version."""
    if wanted:
        typer.echo(f"unclip {unclip.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
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
    steps: Annotated[Whole, typer.Option(help="Steps of the decoder.")] = None,
    prior_steps: Annotated[Whole, typer.Option(help="Steps of the prior.")] = None,
    upsampler_steps: Annotated[Whole, typer.Option(help="Steps of each upsampler.")] = None,
    decoder_guidance_scale: GuidanceScale = None,
    prior_guidance_scale: GuidanceScale = None,
    candidates: Annotated[Whole, typer.Option(help="Embeddings that the prior chooses from.")] = None,
    noise_level: Annotated[Number, typer.Option(help="0 to 1: more variety, less likeness.")] = None,
    upsampler_noise_level: Annotated[Number, typer.Option(help="0 to 1: more repair.")] = None,
    plain_words: PlainWords = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Made at once; no picture depends on it.")] = 16,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = "float32",
    progress: Progress = True,
) -> None:
    """Draw pictures from text. The PNG files hold prompt, seed, model and settings."""
    texts = read_prompts(prompts or [], prompts_file)
    pipe = load_pipeline(model, device, dtype, progress)
    from unclip.pipelines.gallery import draw, draw_grid

    tell_understood(pipe, [*texts, negative_prompt or ""], plain_words)
    facts = picture_facts(negative_prompt, model, plain_words)
    settings = pipe.settings(
        decoder_num_inference_steps=steps,
        prior_num_inference_steps=prior_steps,
        upsampler_num_inference_steps=upsampler_steps,
        decoder_guidance_scale=decoder_guidance_scale,
        prior_guidance_scale=prior_guidance_scale,
        num_prior_candidates=candidates,
        noise_level=noise_level,
        upsampler_noise_level=upsampler_noise_level,
    )
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
        report=(lambda each: None) if as_json else (lambda each: typer.echo(each.path)),
    )
    sheet = str(draw_grid(drawn, output, num_images, facts)) if grid else None
    if as_json:
        print_json(drawn, {**facts, "settings": asdict(settings)}, sheet)
    elif sheet is not None:
        typer.echo(sheet)


@app.command()
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


# What follows is handed to the trainer's own parser, which `python -m unclip.train` uses as well.
@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def train(context: typer.Context) -> None:
    """Train a stage of a model. `unclip train --help` tells how."""
    from unclip.train.cli import main as train_main

    raise typer.Exit(train_main(context.args))


@app.command()
def assemble(
    clip: Annotated[Path, typer.Option(help="Output of `unclip train clip`, or a component folder.")],
    prior: Annotated[Path, typer.Option(help="Output of `unclip train prior`.")],
    decoder: Annotated[Path, typer.Option(help="Output of `unclip train decoder`.")],
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Pipeline folder to write or replace.")
    ],
    upsampler_256: Annotated[
        Path | None, typer.Option("--upsampler-256", help="Output of `unclip train upsampler-256`.")
    ] = None,
    upsampler_1024: Annotated[
        Path | None, typer.Option("--upsampler-1024", help="Output of `unclip train upsampler-1024`.")
    ] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Output of `unclip data lexicon`.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights on disk: float16, bfloat16 or float32.")
    ] = "float16",
    default: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Default of a call, e.g. decoder_guidance_scale=3."),
    ] = None,
    word_pieces: Annotated[
        Whole,
        typer.Option(
            min=1, help="Keep only so many of CLIP's, the commonest, and those in captions of --data."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Pictures whose captions have to stay as they are.")
    ] = None,
) -> None:
    """Make a model of trained networks. `generate --model` and `from_pretrained` load it."""
    defaults = dict(read_number(each) for each in default or [])
    from unclip.pipelines.assemble import assemble as put_together

    folder = put_together(
        clip=clip,
        prior=prior,
        decoder=decoder,
        upsampler_256=upsampler_256,
        upsampler_1024=upsampler_1024,
        out=output,
        dtype=torch_dtype(dtype),
        defaults=defaults,
        lexicon=lexicon,
        word_pieces=word_pieces,
        data=data,
    )
    typer.echo(folder)


@app.command()
def info(model: Model = None, as_json: AsJson = False) -> None:
    """Show versions, and what a model consists of."""
    from unclip.pipelines.info import model_info

    facts = model_info(model)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    typer.echo(f"unclip {facts['unclip']}, Python {facts['python']}, {versions}\nmodel {facts['model']}")
    for name, part in [*facts["components"].items(), ("in all", {"class": "", **facts})]:
        size = f"{part['parameters'] / 1e6:8.2f} M {part['bytes'] / 1e6:8.1f} MB" if "bytes" in part else ""
        typer.echo(f"  {name:25} {part['class']:32}{size}".rstrip())
    typer.echo(f"sizes    {', '.join(map(str, facts['sizes']))} px")
    typer.echo(f"defaults {', '.join(f'{name} {value}' for name, value in facts['defaults'].items())}")


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of the command line, then those of a file; UserError if there is none."""
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompts in {file}: {error}") from error
        prompts = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not prompts:
        raise UserError("no prompt: say what to draw, e.g. unclip generate 'a red apple, 3D'")
    return prompts


def print_json(drawn: Sequence[Drawn], facts: dict[str, Any], sheet: str | None) -> None:
    """What --json prints of a call."""
    images = [{"path": str(d.path), "prompt": d.prompt, "seed": d.seed, "size": d.size} for d in drawn]
    typer.echo(json.dumps({**facts, "images": images, "grid": sheet}))


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
    logging.disable_progress_bar()  # of loading; the stages have their own
    place = choose_device(device)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(place, wanted)
    pipe.set_progress_bar_config(disable=None if progress else True, leave=False)  # None: not into a file
    return pipe


def model_name(model: str | None) -> str:
    """A model as pictures name it: a hub id or the name of a folder, never a path of this machine."""
    if model is None:
        return f"emoji of unclip {unclip.__version__}"
    return Path(model).resolve().name if Path(model).is_dir() else model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a user's mistake, 130 interrupted."""
    # Libraries warn their developers; what unclip says to its user is a UserWarning and worth one line.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module="unclip")
    warnings.showwarning = lambda message, *_: print(f"warning: {one_line(message)}", file=sys.stderr)
    with mistakes_end_the_program():
        try:
            app(None if arguments is None else list(arguments))
        except SystemExit as end:  # typer's own way to end on Ctrl-C
            if end.code == 130:
                print("interrupted", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
