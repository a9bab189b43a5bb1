"""A gallery of which nothing is picked: a fixed list of prompts (gallery.json), each drawn with the same few seeds.

Sections are what a model may be asked for: what it has seen, each kind of held-out combination, relations of two
objects, natural words, other languages. Where a section names a split of the data, each prompt is a caption of the
picture `key` in that split.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from unclip.errors import UserError
from unclip.eval.choice import Asked, Record
from unclip.eval.drawing import draw_pictures
from unclip.eval.grids import save_rows
from unclip.eval.model import Model
from unclip.files import write_text


@dataclass(frozen=True)
class Prompt:
    """A prompt, the picture of the data that it describes ("" for none), a note such as its meaning in English."""

    text: str
    key: str = ""
    note: str = ""

    @property
    def caption(self) -> str:
        """As the page lists it."""
        return f"{self.text}  ({self.note})" if self.note else self.text

    @property
    def grid_caption(self) -> str:
        """As the grid shows it: its font has no letters but English ones, so that the note stands for other texts."""
        return self.caption if self.caption.isascii() else self.note


@dataclass(frozen=True)
class Section:
    """Prompts of one kind; all from `split` of the data if that is not empty."""

    name: str
    title: str
    split: str
    prompts: tuple[Prompt, ...]


def sections(names: Sequence[str] | None = None) -> list[Section]:
    """The fixed list, or some sections of it, in its order.

    Raises:
        UserError: there is no section of that name.
    """
    content: list[dict[str, Any]] = json.loads(
        (files("unclip.eval") / "gallery.json").read_text(encoding="utf-8")
    )
    known = [
        Section(
            name=each["name"],
            title=each["title"],
            split=each.get("split", ""),
            prompts=tuple(Prompt(p["prompt"], p.get("key", ""), p.get("note", "")) for p in each["prompts"]),
        )
        for each in content
    ]
    if missing := [name for name in names or [] if name not in [section.name for section in known]]:
        offered = ", ".join(section.name for section in known)
        raise UserError(f"no section {missing[0]!r} in the gallery; choose from: {offered}")
    return [section for section in known if not names or section.name in names]


def read_seeds(text: str) -> list[int]:
    """Seeds parted by blanks or commas.

    Raises:
        UserError: none, one twice, or something else than whole numbers from 0.
    """
    parts = text.replace(",", " ").split()
    seeds = [int(part) for part in parts if part.isascii() and part.isdigit() and int(part) < 2**62]
    if not parts or len(seeds) != len(parts) or len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds takes different whole numbers from 0, e.g. '0 1 2 3'; got {text!r}")
    return seeds


def check_splits(chosen: Sequence[Section], records: Sequence[Record]) -> None:
    """See that each prompt of a section with a split is a caption of its picture, and that picture in that split.

    Raises:
        UserError: naming the first prompt that is not.
    """
    by_key = {record["key"]: record for record in records}
    for section in (each for each in chosen if each.split):
        for prompt in section.prompts:
            record = by_key.get(prompt.key)
            if record is None:
                raise UserError(
                    f"the data has no picture {prompt.key!r} of the gallery's {prompt.text!r}; "
                    "leave out --data, or give the whole data set"
                )
            if record["split"] != section.split or prompt.text not in record["captions"].values():
                raise UserError(
                    f"the gallery says that {prompt.text!r} is a caption of {prompt.key} in split {section.split}, but "
                    f"this data has that picture in split {record['split']}, captioned "
                    f"{list(record['captions'].values())}"
                )


def draw_gallery(
    chosen: Sequence[Section],
    seeds: Sequence[int],
    model: Model,
    out: Path,
    size: int,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> Path:
    """Draw all prompts with all seeds; writes OUT/NAME.webp for each section, and OUT/gallery.md, whose path it gives.

    Pictures are kept in OUT/images; those made by the same model and settings are not drawn again.
    """
    asked = [
        _ask(section, prompt, seed) for section in chosen for prompt in section.prompts for seed in seeds
    ]
    drawn = draw_pictures(
        asked, model.generate, out / "images", model.stamp(size), batch_size=batch_size, progress=progress
    )
    pictures = iter([Image.fromarray(picture) for picture in drawn])
    for section in chosen:
        rows = [(prompt.grid_caption, [next(pictures) for _ in seeds]) for prompt in section.prompts]
        save_rows(rows, [f"seed {seed}" for seed in seeds], out / f"{section.name}.webp")
    write_text(out / "gallery.md", page(chosen, seeds, model.stamp(size)))
    return out / "gallery.md"


def page(chosen: Sequence[Section], seeds: Sequence[int], stamp: Mapping[str, Any]) -> str:
    """The gallery as Markdown; `stamp` says what the pictures were made with."""
    made = ", ".join(f"{name} {value}" for name, value in stamp.items())
    parts = [
        "# Gallery",
        f"Nothing here was picked: the prompts are a fixed list, and every picture of every seed "
        f"({', '.join(map(str, seeds))}) is shown, good or bad. A row is a prompt, a column a seed.",
        f"Made by `unclip eval gallery` with {made}.",
    ]
    for section in chosen:
        parts += [f"## {section.title}", f"![{section.title}]({section.name}.webp)"]
        parts.append("\n".join(f"- {prompt.caption}" for prompt in section.prompts))
    return "\n\n".join(parts) + "\n"


def _ask(section: Section, prompt: Prompt, seed: int) -> Asked:
    """A prompt of the gallery as `draw_pictures` takes it; the file's name is settled by prompt and seed."""
    name = f"{zlib.crc32(prompt.text.encode()):08x}-seed{seed}"
    return Asked(
        index=-1,
        key=name,
        split=section.name,
        subject="",
        concept="",
        style="",
        prompt=prompt.text,
        seed=seed,
    )
