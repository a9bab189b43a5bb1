"""What commands do with the pictures that they make: written as files, told by their paths or as one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unclip.cli.options import AsJson, Output, Whole

if TYPE_CHECKING:
    from PIL import Image

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which pictures are wanted, and where."""

    seed: Annotated[
        Whole,
        typer.Option(min=0, max=2**62, help="Of the first picture, the next has seed + 1; else random."),
    ] = None
    size: Annotated[Whole, typer.Option(help="Side in pixels: 64, 256 or 1024.")] = None
    output: Output = Path("out")
    grid: Annotated[bool, typer.Option("--grid", help="Write a captioned grid of all, too.")] = False
    as_json: AsJson = False

    def first_seed(self) -> int:
        """The seed of the first picture."""
        return int.from_bytes(os.urandom(4), "little") if self.seed is None else self.seed

    def delivery(self, **common: Any) -> Delivery:
        """Of the pictures of a command, whose files all hold `common`."""
        return Delivery(self, common if self.size is None else {**common, "size": self.size})


@dataclass
class Delivery:
    """Writes pictures as they come; `end` prints them all if JSON is asked for, else each is told at once."""

    wanted: Wanted
    common: Facts
    images: list[Facts] = field(default_factory=list)
    more: dict[str, list[str]] = field(default_factory=lambda: {"grids": [], "gifs": []})

    def add(
        self,
        images: Sequence[Image.Image],
        names: Sequence[str],
        seeds: Sequence[int],
        facts: Facts,
        captions: list[str] | None = None,
        columns: int | None = None,
        sheet: bool | None = None,
    ) -> None:
        """Write pictures of one input and, if it is wanted, a sheet of them.

        Args:
            names, captions: of each picture, in its file's name and below it on the sheet.
            facts: what the files hold besides seed and what is common.
            sheet: whether there is one; by default if `--grid` asks for it.
        """
        from unclip.pipelines.pictures import file_for, grid, save_png

        of_these = {**self.common, **facts}
        for image, name, seed in zip(images, names, seeds, strict=True):
            of_this = {**of_these, "seed": seed}
            path = file_for(self.wanted.output, name, seed, of_this)
            save_png(image, path, of_this)
            size = {"width": image.width, "height": image.height}
            self.images.append({"path": str(path), "seed": seed, **size, **facts})
            self._tell(path)
        if self.wanted.grid if sheet is None else sheet:
            where = file_for(self.wanted.output, f"sheet {names[0]}", seeds[0], of_these)
            save_png(grid(images, captions or list(names), columns), where, of_these)
            self._tell(where, "grids")

    def add_film(self, images: Sequence[Image.Image], name: str, seed: int) -> None:
        """Write frames as a GIF, there and back, a fifth of a second each."""
        from unclip.files import atomic_path
        from unclip.pipelines.pictures import slug

        path = self.wanted.output / f"{slug(name)}-seed{seed}.gif"
        loop = [*images, *images[-2:0:-1]]
        with atomic_path(path) as temporary:
            loop[0].save(temporary, format="GIF", save_all=True, append_images=loop[1:], duration=200, loop=0)
        self._tell(path, "gifs")

    def end(self) -> None:
        """All is made."""
        if self.wanted.as_json:
            typer.echo(json.dumps({**self.common, "images": self.images, **self.more}))

    def _tell(self, path: Path, kind: str | None = None) -> None:
        if kind is not None:
            self.more[kind].append(str(path))
        if not self.wanted.as_json:
            typer.echo(path)
