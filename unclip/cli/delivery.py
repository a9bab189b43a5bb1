"""What commands do with the pictures that they make: written as files, told by their paths or as one JSON object."""

from __future__ import annotations

import hashlib
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
    as_json: AsJson = False

    def first_seed(self) -> int:
        """The seed of the first picture."""
        return int.from_bytes(os.urandom(4), "little") if self.seed is None else self.seed

    def delivery(self, **common: Any) -> Delivery:
        """Of the pictures of a command, whose files all hold `common`; made before the work, lest it be for nothing.

        Raises:
            OSError: nothing can be written there.
        """
        from unclip.files import check_writable

        check_writable(self.output)
        return Delivery(self, common if self.size is None else {**common, "size": self.size})


@dataclass
class Delivery:
    """Writes pictures as they come; `end` prints them all if JSON is asked for, else each is told at once."""

    wanted: Wanted
    common: Facts
    images: list[Facts] = field(default_factory=list)
    more: dict[str, list[str]] = field(default_factory=lambda: {"grids": [], "gifs": []})
    _taken: set[Path] = field(default_factory=set)

    def add(
        self,
        images: Sequence[Image.Image],
        name: str,
        seeds: Sequence[int],
        facts: Facts,
        *,
        numbers: Sequence[int] | None = None,
        captions: Sequence[str] = (),
        sheet: bool = False,
        columns: int | None = None,
        film: bool = False,
    ) -> None:
        """Write pictures of one input, and a sheet and a film of them where they are wanted.

        Args:
            name: in the files' names. numbers: of the pictures, if the name is not of one alone.
            facts: what the files hold besides seed, number and what is common.
            captions: below the pictures on the sheet.
            film: whether the pictures are frames of a GIF, there and back.
        """
        from unclip.pipelines.pictures import grid, save_png

        paths = []
        for k, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            number = {} if numbers is None else {"number": numbers[k]}
            of_this = {**self.common, **facts, **number, "seed": seed}
            paths.append(self._path(name, seed, of_this, number.get("number")))
            save_png(image, paths[-1], of_this)
            size = {"width": image.width, "height": image.height}
            self.images.append({"path": str(paths[-1]), **size, "seed": seed, **number, **facts})
            self._tell(paths[-1])
        if sheet:
            of_all = {**self.common, **facts, "seeds": list(seeds)}
            where = self._path(f"sheet {name}", seeds[0], of_all)
            save_png(grid(images, captions or [name] * len(images), columns), where, of_all)
            self._tell(where, "grids")
        if film:
            self._tell(_save_film(images, (where if sheet else paths[0]).with_suffix(".gif")), "gifs")

    def end(self) -> None:
        """All is made."""
        if self.wanted.as_json:
            typer.echo(json.dumps({**self.common, "images": self.images, **self.more}))

    def _path(self, name: str, seed: int, facts: Facts, number: int | None = None) -> Path:
        """A file of a readable name that is no other picture's, of this command or before."""
        from unclip.pipelines.pictures import file_for

        path = file_for(self.wanted.output, name, seed, facts, number=number, taken=self._taken)
        self._taken.add(path)
        return path

    def _tell(self, path: Path, kind: str | None = None) -> None:
        if kind is not None:
            self.more[kind].append(str(path))
        if not self.wanted.as_json:
            typer.echo(path)


def source_facts(path: str) -> Facts:
    """What names a picture or a latent: its file's name, and a digest, since others may have the same name."""
    digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return {"image": Path(path).name, "image_sha256": digest[:16]}


def _save_film(images: Sequence[Image.Image], path: Path) -> Path:
    """Frames there and back, a fifth of a second each."""
    from unclip.files import atomic_path

    loop = [*images, *images[-2:0:-1]]
    with atomic_path(path) as temporary:
        loop[0].save(temporary, format="GIF", save_all=True, append_images=loop[1:], duration=200, loop=0)
    return path
