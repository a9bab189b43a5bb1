"""A progress bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 15.0


def track(items: Iterable[Item], label: str, total: int, done: int = 0, show: bool = True) -> Iterator[Item]:
    """Yield the items while showing how far they are; `done` of `total` were finished before."""
    if not show:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, label, total, done)
    else:
        yield from _lines(items, label, total, done)


def _bar(items: Iterable[Item], label: str, total: int, done: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[Item], label: str, total: int, done: int) -> Iterator[Item]:
    start = last = time.monotonic()
    first = done
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            left = (now - start) / (done - first) * (total - done)
            print(f"{label} {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
