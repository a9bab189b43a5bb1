"""The command line. Nothing heavy is imported before a command needs it, so that `unclip --help` answers at once.

A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

import unclip
from unclip.cli import build, convert, draw, edit
from unclip.cli.options import read_number, torch_dtype
from unclip.data.cli import app as data_app
from unclip.errors import mistakes_end_the_program, one_line
from unclip.eval.cli import app as eval_app

__all__ = ["app", "main", "read_number", "torch_dtype"]

app = typer.Typer(
    name="unclip",
    help="Run, train and explore unCLIP (DALL·E 2-style) text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and no option is cut short
)
for command in (draw.generate, edit.vary, edit.blend, edit.diff, edit.edit, edit.upscale):
    app.command()(command)
for command in (edit.describe, edit.invert, draw.demo):
    app.command()(command)
# What follows is handed to the trainer's own parser, which `python -m unclip.train` uses as well.
app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(build.train)
for command in (build.assemble, convert.convert, build.info):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")


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
