"""What the documentation says exists: linked files, commands and their options, Python that parses."""

from __future__ import annotations

import ast
import io
import re
import shlex
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unclip.cli import app
from unclip.train.cli import main as train_main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    *("generate", "demo", "train", "assemble", "info", "convert", "data build emoji", "data lexicon"),
    *("vary", "blend", "diff", "edit", "upscale", "invert", "describe"),
    *("eval emoji", "eval card", "eval memorisation", "eval gallery", "eval words"),
    *("eval claims", "eval manipulations", "eval pca"),
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def command_lines() -> list[list[str]]:
    """The words of every `unclip …` in a shell block, comments left out and continued lines joined."""
    shell = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in shell.splitlines())
    return [words[1:] for words in lines if words[:1] == ["unclip"]]


@cache
def help_of(command: str) -> str:
    """What `unclip COMMAND --help` prints."""
    if command == "train":
        with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
            train_main(["--help"])
        return printed.getvalue()
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_parses(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_commands_and_options_exist() -> None:
    lines = command_lines()
    assert len(lines) > 10
    for words in lines:
        command = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
        options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        missing = {option for option in options if not re.search(rf"(?<![\w-]){option}\b", help_of(command))}
        assert not missing, f"unclip {command} has no {missing}"
