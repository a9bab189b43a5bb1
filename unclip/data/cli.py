"""`unclip data …`. Only typer is imported at the top, so that `unclip --help` stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Build and inspect captioned art.", no_args_is_help=True)
build_app = typer.Typer(help="Build a data set.", no_args_is_help=True)
app.add_typer(build_app, name="build")


@build_app.command("emoji")
def build_emoji_command(
    out: Annotated[str, typer.Option(help="Folder for shards and manifest.")],
    limit: Annotated[int | None, typer.Option(help="Choose about this many pictures, of all groups.")] = None,
    sources: Annotated[
        str | None,
        typer.Option(help="Styles, separated by commas; all permissively licensed ones by default."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    cache: Annotated[str | None, typer.Option(help="Folder of fetched packages.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that render.")] = 2,
) -> None:
    """Fetch openly licensed emoji art (needs npm), render it, caption it and write webdataset shards."""
    from unclip.data.build import build_emoji

    styles = [part.strip() for part in sources.split(",") if part.strip()] if sources else None
    manifest = build_emoji(out, limit=limit, sources=styles, seed=seed, cache=cache, processes=processes)
    counts = ", ".join(f"{split} {count}" for split, count in manifest["splits"].items())
    typer.echo(f"{manifest['samples']} pictures in {len(manifest['shards'])} shards under {out}: {counts}")
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items())
    typer.echo(f"left out: {left_out}, {len(manifest['failures'])} that cannot be drawn")


@app.command("lexicon")
def lexicon_command(
    data: Annotated[str, typer.Option(help="Folder made by `unclip data build emoji`.")],
    output: Annotated[str, typer.Option("--output", "--out", "-o", help="File to write: lexicon.json.gz.")],
    cache: Annotated[str | None, typer.Option(help="Folder of fetched packages.")] = None,
) -> None:
    """Make the lexicon by which a model understands plain words and other languages (fetches a package with npm)."""
    from pathlib import Path

    from unclip.data.lexicon import build_lexicon
    from unclip.files import check_writable

    check_writable(Path(output).parent)
    lexicon = build_lexicon(data, cache)
    lexicon.save(output)
    size = Path(output).stat().st_size
    typer.echo(
        f"{len(lexicon.words)} words, {len(lexicon.languages)} languages, "
        f"{len(lexicon.keep)} captions kept as they are, {size / 1e3:.0f} kB: {output}"
    )
