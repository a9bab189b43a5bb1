"""Features of the whole data set, computed once and kept as safetensors beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unclip.data.progress import track
from unclip.eval.choice import Pictures
from unclip.files import atomic_path

BATCH = 32
READERS = 2  # threads that decode pictures ahead of the networks


@dataclass(frozen=True)
class Features:
    """What is to be computed of every picture.

    Attributes:
        file: its name in the cache. fingerprint: of all that the features depend on besides the pictures.
        of_batch: pictures, each uint8 [H,W,3] -> [B,F].
    """

    file: str
    fingerprint: str
    of_batch: Callable[[Sequence[np.ndarray]], Tensor]


def features_of_all(
    data: Pictures, wanted: Sequence[Features], cache: Path, size: int, progress: bool = True
) -> list[Tensor]:
    """Features [N,F] of all pictures, `size` pixels large; what the folder `cache` holds already is read.

    The others are computed in one pass: each picture is decoded once for all of them.
    """
    marks = [f"{each.fingerprint} {data.fingerprint()} {size}" for each in wanted]
    paths = [cache / each.file for each in wanted]
    found = [_read(path, mark) for path, mark in zip(paths, marks, strict=True)]
    missing = [i for i, features in enumerate(found) if features is None]
    if missing:
        parts: dict[int, list[Tensor]] = {i: [] for i in missing}
        for pictures in _batches(data, size, progress):
            for i in missing:
                parts[i].append(wanted[i].of_batch(pictures).cpu())
        for i in missing:
            found[i] = torch.cat(parts[i])
            with atomic_path(paths[i]) as temporary:
                save_file({"features": found[i]}, str(temporary), metadata={"fingerprint": marks[i]})
    return [features for features in found if features is not None]


def _batches(data: Pictures, size: int, progress: bool) -> Iterator[list[np.ndarray]]:
    starts = range(0, len(data), BATCH)
    with ThreadPoolExecutor(READERS) as readers:
        # A batch or two ahead, so that decoding and networks overlap and memory stays small.
        order = iter(range(len(data)))
        ahead = [readers.submit(data.rgb, i, size) for i in islice(order, 2 * BATCH)]
        for _ in track(starts, "features of the real pictures", total=len(starts), show=progress):
            batch, ahead = ahead[:BATCH], ahead[BATCH:]
            ahead += [readers.submit(data.rgb, i, size) for i in islice(order, BATCH)]
            yield [each.result() for each in batch]


def _read(path: Path, mark: str) -> Tensor | None:
    """The features in a file if they are of that fingerprint."""
    try:
        with safe_open(str(path), "pt") as file:
            if (file.metadata() or {}).get("fingerprint") == mark:
                return file.get_tensor("features")
    except (OSError, SafetensorError):  # absent, or damaged
        pass
    return None


def cache_folder(data: Path, out: Path) -> Path:
    """DATA/cache for a data folder that can be written to, else OUT/cache."""
    root = data.parent if data.name == "shards" else data
    return root / "cache" if root.is_dir() and os.access(root, os.W_OK) else out / "cache"
