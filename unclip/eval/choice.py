"""Which prompts are asked: stratified over splits, and settled by the seed alone.

Within a split, pictures come in a random order weighted as training weights them (people are many and weigh
less), so asking for more prompts keeps those asked before, and a run that was cut short can go on.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unclip.data.splits import SPLITS
from unclip.errors import UserError

Record = Mapping[str, Any]


class Pictures(Protocol):
    """What evaluation asks of a data set; `unclip.data.CaptionedImages` has it."""

    records: list[dict[str, Any]]

    def __len__(self) -> int: ...

    def rgb(self, i: int, size: int) -> np.ndarray:
        """uint8 [size,size,3] on white."""

    def fingerprint(self) -> str:
        """Changes whenever a picture or caption does."""


@dataclass(frozen=True)
class Asked:
    """One prompt, the real picture that it describes (row `index` of the data), and the seed to draw it."""

    index: int
    key: str
    split: str
    subject: str
    concept: str
    style: str
    prompt: str
    seed: int

    @property
    def label(self) -> tuple[str, str]:
        """What a right picture shows."""
        return self.concept, self.style


def choose(records: Sequence[Record], split: str, count: int, seed: int) -> list[Asked]:
    """Draw up to `count` pictures of a split without repetition, each with a caption that names its style."""
    rows = [i for i, record in enumerate(records) if record["split"] == split]
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    # Efraimidis & Spirakis 2006: the largest u^(1/w) are a weighted sample without replacement.
    order = {i: np.log(rng.random()) / max(float(records[i]["weight"]), 1e-9) for i in rows}
    chosen = sorted(rows, key=lambda i: -order[i])[:count]
    return [_ask(i, records[i], seed) for i in chosen]


def choose_stratified(records: Sequence[Record], count: int, seed: int) -> dict[str, list[Asked]]:
    """Draw `count` pictures in all, as evenly over the splits as their sizes allow -> {split: prompts}."""
    sizes = {split: sum(record["split"] == split for record in records) for split in SPLITS}
    shares = _even_shares({split: size for split, size in sizes.items() if size}, count)
    return {split: choose(records, split, share, seed) for split, share in shares.items() if share}


def captions_naming_style(record: Record, wanted: bool) -> list[str]:
    """The captions of a sample that do (or do not) say which style; forms that do are named `style…`."""
    forms = record["captions"].items()
    return list(dict.fromkeys(text for form, text in forms if form.startswith("style") is wanted))


def draw_caption(record: Record, seed: int, naming_style: bool) -> str:
    """One caption of the wanted sort, settled by the seed and the sample's key.

    Raises:
        UserError: the sample has none of that sort.
    """
    captions = captions_naming_style(record, naming_style)
    if not captions:
        sort = "with a style" if naming_style else "without a style"
        raise UserError(
            f"sample {record['key']} has no caption {sort}; build the data again: unclip data build emoji"
        )
    return captions[zlib.crc32(f"{seed}|caption|{record['key']}".encode()) % len(captions)]


def _ask(index: int, record: Record, seed: int) -> Asked:
    return Asked(
        index=index,
        key=record["key"],
        split=record["split"],
        subject=record["subject"],
        concept=record["concept"],
        style=record["style"],
        prompt=draw_caption(record, seed, naming_style=True),
        # By key, not by position: a prompt's picture stays the same when more prompts are asked.
        seed=zlib.crc32(f"{seed}|picture|{record['key']}".encode()),
    )


def _even_shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Deal `count` out one by one, passing over the splits that are used up."""
    shares = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        for split in sizes:
            if left and shares[split] < sizes[split]:
                shares[split] += 1
                left -= 1
    return shares
