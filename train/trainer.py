"""The training loop: one for every stage. It never asks which task it has."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from unclip.errors import UserError
from unclip.files import atomic_dir

from .checkpoint import CHECKPOINTS, CheckpointIO, latest_step
from .config import TrainConfig
from .ema import EMA
from .optim import learning_rate_at, make_optimizer, set_learning_rate
from .runlog import RunLog
from .steps import Steps, noise_seed, split, to_device
from .tasks.base import Batch, Task


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the step it reached, whether it was asked to stop early, the last logged means."""

    step: int
    interrupted: bool
    values: dict[str, float]


class Trainer:
    """Trains `task.model` as `config` says and writes everything under `config.output`."""

    def __init__(self, config: TrainConfig, task: Task) -> None:
        """Place model and optimizer on the device; nothing is written yet."""
        torch.set_flush_denormal(
            True
        )  # zero-initialised layers make denormals, which cost a factor of ten on a CPU
        if config.output is None:
            raise UserError("no output folder: give --output DIR")
        self.config, self.task = config, task
        self.output = Path(config.output)
        self.accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                config.accumulation, sync_with_dataloader=False
            ),
            log_with="tensorboard",
            project_dir=self.output,
        )
        self.device = self.accelerator.device
        if config.device not in (None, self.device.type):
            raise UserError(
                f"device: expected {self.device.type}, the device that is here, got {config.device}"
            )
        if config.mixed_precision != "no" and self.device.type == "cpu":
            raise UserError("mixed_precision=bf16 is hundreds of times slower on a CPU: leave it out")
        optimizer = make_optimizer(task.model, config, self.device, task.learning_rate_scale)
        self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
        self.ema = EMA(task.model, config.ema_decay)
        self.checkpoints = CheckpointIO(
            self.output / CHECKPOINTS,
            config.keep_checkpoints,
            model=task.model,
            ema=self.ema,
            data=task.describe(),
            optimizer=self.optimizer.optimizer,
        )
        self.generator = torch.Generator(self.device)
        self.skipped = self.skipped_in_a_row = 0
        self.last_checkpoint = 0.0, 0  # when, at which step

    def run(self, resume: bool = False) -> Outcome:
        """Train until `config.steps`, or until SIGINT or SIGTERM; both leave a checkpoint to resume from.

        Of no steps at all, what the task has prepared is validated and saved.

        Raises:
            UserError: the output folder is taken, the loss stays not finite, the disk is full.
        """
        # 1. Take up the newest checkpoint, or start afresh.
        step = self._begin(resume)
        log = RunLog(self.accelerator, self.output, step, self.config.steps)
        log.say("  ".join(f"{key} {value}" for key, value in self.task.describe().items()))
        values: dict[str, float] = {}
        # 2. Draw batches ahead, from this step on.
        steps = Steps(
            self.task,
            self.config.batch_size,
            step,
            self.config.steps,
            self.config.seed,
            self.accelerator.process_index,
        )
        batches = steps.batches(self.config.num_workers, pin_memory=self.device.type == "cuda")
        stopped = False
        with _signals() as asked_to_stop:
            self.last_checkpoint = time.monotonic(), step
            began = time.perf_counter()
            for batch in batches:
                # 3. One optimiser step, and the average of the weights behind it.
                result = self.train_step(step, batch)
                step += 1
                log.step(result, self._samples_per_step, time.perf_counter() - began)
                # 4. Tell.
                last = step == self.config.steps
                if last or step % self.config.log_every_steps == 0:
                    values = log.report(
                        learning_rate=learning_rate_at(self.config, step - 1), skipped=self.skipped
                    )
                # 5. Look at the averaged model, keep it where others can use it.
                if last or _due(step, self.config.validate_every_steps):
                    self.validate(log)
                # 6. Checkpoint.
                stopped, minutes_due = self._agree(bool(asked_to_stop), self._minutes_due())
                if last or stopped or minutes_due or _due(step, self.config.checkpoint_every_steps):
                    self.checkpoint(step)
                if stopped:
                    break
                began = time.perf_counter()
        if self.config.steps == 0:
            self.validate(log)
        log.close()
        return Outcome(step, stopped and step < self.config.steps, values)

    def train_step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimiser step (0-based) on `batch`; a step whose loss or gradient is not finite changes nothing.

        Returns: the means over the batch of the task's values (of "loss" over all processes) and the gradient's norm.
        """
        seed = noise_seed(self.config.seed, self.accelerator.process_index, step * self.config.batch_size)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        set_learning_rate(self.optimizer.optimizer, learning_rate_at(self.config, step))
        self.model.train()
        parts = split(to_device(batch, self.device), self.config.accumulation)
        values: dict[str, list[Tensor]] = {}
        norm = torch.zeros((), device=self.device)
        for part in parts:
            with self.accelerator.accumulate(self.model):
                losses = self.task.loss(self.model, part, self.generator)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
            for key, value in losses.items():
                values.setdefault(key, []).append(value.detach().float())
        means = {key: torch.stack(items).mean() for key, items in values.items()} | {"grad_norm": norm}
        # Only the loss is sure to be there in every process; it decides, so all must see the same.
        means["loss"] = self.accelerator.reduce(means["loss"], "mean")
        result = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        if math.isfinite(result["loss"]) and math.isfinite(result["grad_norm"]):
            self.optimizer.step()
            self.ema.update(step)
            self.skipped_in_a_row = 0
        else:
            self._skip(step)
            result = {}  # a single nan would spoil the means of the log
        self.optimizer.zero_grad()
        return result

    def seconds_per_step(self, count: int) -> float:
        """How long a step takes, measured over `count` real ones after a first; nothing is written."""
        times = []
        steps = Steps(self.task, self.config.batch_size, 0, count + 1, self.config.seed, 0)
        batches = steps.batches(num_workers=0, pin_memory=False)
        for step in range(count + 1):
            began = time.perf_counter()
            self.train_step(step, next(batches))
            times.append(time.perf_counter() - began)
        return sum(times[1:]) / count

    def validate(self, log: RunLog) -> None:
        """Let the task judge the averaged model, and write that model to OUTPUT/model."""
        if self.accelerator.is_main_process:
            with torch.no_grad():
                log.validation(self.task.validate(self.ema.model))
            with atomic_dir(self.output / "model") as temporary:
                self.task.save(self.ema.model, temporary)
        self.accelerator.wait_for_everyone()

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint, unless this step has one."""
        if self.last_checkpoint[1] != step and self.accelerator.is_main_process:
            self.checkpoints.save(step, {"skipped": self.skipped, "samples": step * self._samples_per_step})
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = time.monotonic(), step

    @property
    def _samples_per_step(self) -> int:
        return self.config.batch_size * self.accelerator.num_processes

    def _begin(self, resume: bool) -> int:
        """Open the output folder; the step to start at."""
        check_output(self.output, resume, self.config.steps)
        self.accelerator.wait_for_everyone()
        state = self.checkpoints.load_latest() if resume else None
        step = state["step"] if state else 0
        self.skipped = state["skipped"] if state else 0
        if self.accelerator.is_main_process:
            self.config.save(self.output / "config.yaml")
        return step

    def _skip(self, step: int) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise UserError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row, up to {step}: "
                "resume from the last checkpoint with a lower learning_rate or a lower grad_clip"
            )

    def _minutes_due(self) -> bool:
        minutes = self.config.checkpoint_every_minutes
        return minutes > 0 and time.monotonic() - self.last_checkpoint[0] > 60 * minutes

    def _agree(self, *flags: bool) -> list[bool]:
        """Flags raised in any process are raised in all: clocks and signals differ between them."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        total = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device), "sum")
        return (total > 0).tolist()


def check_output(output: Path, resume: bool, steps: int) -> None:
    """Raise a UserError if a new run would write into an old one's folder, or if nothing is left to resume or to do."""
    taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if taken and not resume:
        raise UserError(f"{output} is not empty: continue its run with --resume or choose another --output")
    if resume and not taken:
        raise UserError(f"nothing to resume in {output}: leave out --resume to start a run there")
    if resume and (done := latest_step(output / CHECKPOINTS)) >= steps:
        raise UserError(f"the run in {output} is at step {done} already: extend it with steps=N, N > {done}")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list given, instead of dying; a second one acts as usual."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def catch(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, catch)
        except ValueError:  # not the main thread: signals are not ours to take
            break
    try:
        yield caught
    finally:
        for taken, handler in previous.items():
            signal.signal(taken, handler)
