"""`unclip convert`: public checkpoints as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unclip.cli.options import Text, torch_dtype


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the pickled checkpoint.")],
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Pipeline folder to write or replace.")
    ],
    clip: Annotated[
        Path | None,
        typer.Option(help="For Karlo's own files: openai/clip-vit-large-patch14, a folder of transformers."),
    ] = None,
    variations: Annotated[
        bool, typer.Option("--variations", help="For Karlo's own files: make the pipeline of variations.")
    ] = False,
    dtype: Annotated[
        Text, typer.Option(help="Of the weights: float16, bfloat16 or float32; by default as they are.")
    ] = None,
) -> None:
    """Write a pickled unCLIP checkpoint (Karlo) as safetensors, which this program reads. No pickled code is run."""
    wanted = None if dtype is None else torch_dtype(dtype)
    from unclip.pipelines.convert import convert as rewrite

    typer.echo(rewrite(source, output, clip=clip, variations=variations, dtype=wanted))
