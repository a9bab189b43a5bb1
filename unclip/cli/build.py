"""`unclip train`, `unclip assemble` and `unclip info`: models and what they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unclip.cli.options import AsJson, Model, Whole, read_named, read_number, torch_dtype


# What follows is handed to the trainer's own parser, which `python -m unclip.train` uses as well.
def train(context: typer.Context) -> None:
    """Train a stage of a model. `unclip train --help` tells how."""
    from unclip.train.cli import main as train_main

    raise typer.Exit(train_main(context.args))


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
    other_prior: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RUN", help="A further prior, for `--prior NAME`; repeat for more."),
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
    others = dict(read_named(each, "--other-prior") for each in other_prior or [])
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
        priors=others,
    )
    typer.echo(folder)


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
