"""What a run tells: a progress line, log.jsonl, pictures and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from PIL import Image
from tqdm import tqdm

from unclip.files import atomic_path, disk_full_is_a_user_error


class RunLog:
    """Averages the values of each step and reports them; silent in all but the main process."""

    def __init__(self, accelerator: Accelerator, output: Path, first_step: int, steps: int) -> None:
        self.accelerator, self.output, self.steps = accelerator, output, steps
        self.main = accelerator.is_main_process
        self._values: dict[str, list[float]] = {}
        self._step, self._steps, self._seconds, self._samples = first_step, 0, 0.0, 0
        self._bar: tqdm[Any] | None = None
        if self.main:
            self._forget_after(first_step)
            if sys.stderr.isatty():
                self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)
        if is_tensorboard_available():
            accelerator.init_trackers(
                "tensorboard", init_kwargs={"tensorboard": {"purge_step": first_step + 1}}
            )

    def step(self, values: dict[str, float], samples: int, seconds: float) -> None:
        """Take in one step's values, the samples it used and how long it took."""
        for key, value in values.items():
            self._values.setdefault(key, []).append(value)
        self._step += 1
        self._steps += 1
        self._samples += samples
        self._seconds += seconds
        if self._bar is not None:
            self._bar.update()

    def report(self, **facts: float) -> dict[str, float]:
        """Write the means since the last report, with `facts` beside them; returns them."""
        rate = self._samples / max(self._seconds, 1e-9)
        values = {key: sum(items) / len(items) for key, items in sorted(self._values.items())}
        values |= {"samples_per_second": rate, **facts}
        left = timedelta(seconds=round((self.steps - self._step) * self._seconds / max(1, self._steps)))
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        self.say(f"step {self._step}/{self.steps}  {shown}  left {left}")
        self._write({"step": self._step, "time": round(time.time(), 1), **values})
        self._values, self._steps, self._seconds, self._samples = {}, 0, 0.0, 0
        return values

    def validation(self, results: dict[str, float | Image.Image]) -> None:
        """Write figures of a validation and keep its pictures under OUTPUT/samples."""
        figures = {f"validation/{k}": float(v) for k, v in results.items() if not isinstance(v, Image.Image)}
        pictures = {k: v for k, v in results.items() if isinstance(v, Image.Image)}
        if figures:
            self.say(
                f"step {self._step}  " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            )
            self._write({"step": self._step, "time": round(time.time(), 1), **figures})
        for name, picture in pictures.items():
            suffix = "" if len(pictures) == 1 else f"-{name}"
            with atomic_path(self.output / "samples" / f"step-{self._step:08d}{suffix}.png") as temporary:
                picture.save(temporary)
            pixels = np.asarray(picture.convert("RGB"))[None]
            for tracker in self.accelerator.trackers:
                tracker.log_images({name: pixels}, step=self._step, dataformats="NHWC")

    def say(self, line: str) -> None:
        """Print a line without breaking the progress bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self.main:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the progress bar and the trackers."""
        if self._bar is not None:
            self._bar.close()
        self.accelerator.end_training()

    def _write(self, values: dict[str, float]) -> None:
        if self.main:
            path = self.output / "log.jsonl"
            with disk_full_is_a_user_error(path), path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        numbers = {key: value for key, value in values.items() if key not in ("step", "time")}
        self.accelerator.log(numbers, step=int(values["step"]))

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run took after its last checkpoint: they are about to come again."""
        path = self.output / "log.jsonl"
        if path.is_file():
            # A line cut short by the kill is the last one, hence of a step to forget.
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))
