"""Chance and order of a run: every step's samples and noise follow from (seed, rank, samples seen) alone.

So a run that is resumed at step s draws exactly what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unclip.errors import UserError

from .tasks.base import Batch, Task

_DATA, _NOISE = 0, 1  # independent streams


def _sequence(seed: int, rank: int, samples: int, stream: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, rank, samples, stream])


def noise_seed(seed: int, rank: int, samples: int) -> int:
    """Seed of the loss's noise (and of dropout) in the step that starts after `samples` samples."""
    return int(
        _sequence(seed, rank, samples, _NOISE).generate_state(1, np.uint64)[0] >> 1
    )  # torch wants 63 bits


class Steps(Dataset["Batch | UserError"]):
    """Steps `start` to `stop` of a run as a dataset: item i is the batch of step start + i."""

    def __init__(self, task: Task, batch_size: int, start: int, stop: int, seed: int, rank: int) -> None:
        self.task, self.batch_size = task, batch_size
        self.start, self.stop = start, stop
        self.seed, self.rank = seed, rank

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Batch | UserError:
        samples = (self.start + index) * self.batch_size
        rng = np.random.default_rng(_sequence(self.seed, self.rank, samples, _DATA))
        try:
            return self.task.draw(self.batch_size, rng)
        except UserError as error:  # raised in a worker, DataLoader would hide it in a traceback
            return error

    def batches(self, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
        """Batches in order, drawn ahead by `num_workers` processes.

        Raises:
            UserError: what `draw` raised.
        """
        loader: DataLoader[Batch | UserError] = DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_parent,
            prefetch_factor=4 if num_workers else None,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes: a worker must live on while the trainer finishes its step.

    It ends when the trainer closes the loader, or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in equal parts along the first dimension."""
    if parts == 1:
        return [batch]
    pieces = {key: tensor.chunk(parts) for key, tensor in batch.items()}
    return [{key: chunks[i] for key, chunks in pieces.items()} for i in range(parts)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All tensors on `device`."""
    options: dict[str, Any] = {"non_blocking": True} if device.type == "cuda" else {}
    return {key: tensor.to(device, **options) for key, tensor in batch.items()}
