"""The public unCLIP networks (Karlo) beside diffusers' deprecated pipeline, in one process, on random weights.

    python -m benchmarks.karlo --size tiny|small|full [--steps 25 25 7] [--json] [--out FILE]
    python -m benchmarks.karlo --size full --low-memory   # one picture, each network read when its stage begins

Both pipelines work on the same tensors, so what differs is how, and the pictures can be compared. Where not all steps
of a stage are run (`--steps`), its time is scaled to the pipeline's 25, 25 and 7; what a stage does once counts once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import karlo_checkpoint
from benchmarks.speed import machine, milliseconds, table
from unclip.files import atomic_path
from unclip.pipelines import UnCLIPTextToImagePipeline

STAGES = ("prior", "decoder", "upsampler")
WHOLE = (25, 25, 7)  # steps of each stage
STEPS = {"tiny": WHOLE, "small": WHOLE, "full": (25, 3, 2)}
PROMPT = "a big red apple on a blue house"
GIGABYTE = 2**30


class Peak:
    """The most memory that the process held since it was last asked, in bytes; 0 where the system does not tell."""

    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def begin(self) -> int:
        """Forget the peak so far -> what is held now."""
        if not self.reset.exists():
            return 0
        self.reset.write_text("5")
        return self._read("VmRSS")

    def end(self) -> int:
        """The peak."""
        return self._read("VmHWM") if self.status.exists() else 0

    def _read(self, name: str) -> int:
        lines = self.status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Clock:
    """Seconds and memory of each stage of a run, begun by `stage`; the first of them began with the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self._peak, self._name = Peak(), ""

    def stage(self, name: str) -> None:
        """What comes next belongs to this stage."""
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = now - self._began
            self.memory[self._name] = self._peak.end() - self._held
        self._name, self._held, self._began = name, self._peak.begin(), time.perf_counter()


@contextmanager
def watched(scheduler: Any, clock: Clock, name: str) -> Iterator[None]:
    """A stage of diffusers' pipeline begins when it sets its scheduler's timesteps."""
    original = scheduler.set_timesteps

    def set_timesteps(*arguments: Any, **options: Any) -> None:
        clock.stage(name)
        original(*arguments, **options)

    scheduler.set_timesteps = set_timesteps
    try:
        yield
    finally:
        del scheduler.set_timesteps


def run_theirs(pipe: Any, call: dict[str, Any]) -> tuple[torch.Tensor, Clock]:
    """A picture of diffusers' pipeline."""
    clock = Clock()
    schedulers = (pipe.prior_scheduler, pipe.decoder_scheduler, pipe.super_res_scheduler)
    first, second, third = (
        watched(scheduler, clock, name) for scheduler, name in zip(schedulers, STAGES, strict=True)
    )
    with first, second, third:
        images = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    clock.stage("")
    return torch.as_tensor(images), clock


def run_ours(pipe: Any, call: dict[str, Any]) -> tuple[torch.Tensor, Clock]:
    """A picture of this package's pipeline."""
    clock = Clock()
    names = {"embeds_of": "prior", "decode": "decoder", "upsample": "upsampler"}

    def timed(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            clock.stage(name)
            return original(*arguments, **options)

        return run

    for method, name in names.items():
        setattr(pipe, method, timed(getattr(pipe, method), name))
    try:
        images = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    finally:
        for method in names:
            delattr(pipe, method)
    clock.stage("")
    return torch.as_tensor(images), clock


def flops_of_a_step(parts: dict[str, Any], size: karlo_checkpoint.Size) -> dict[str, float]:
    """Floating-point operations of one step of each stage of diffusers' pipeline, with guidance."""
    L, D = 77, size.embed
    x = {"sample": torch.zeros(2, 3, size.side, size.side), "timestep": 500}
    context = torch.zeros(2, L + 4, size.context)
    added = torch.zeros(2, 4 * size.channels[0])
    large = torch.zeros(1, 6, size.factor * size.side, size.factor * size.side)
    steps: dict[str, Callable[[], Any]] = {
        "prior": lambda: parts["prior"](
            torch.zeros(2, D),
            500,
            torch.zeros(2, D),
            torch.zeros(2, L, D),
            torch.ones(2, L, dtype=torch.bool),
        ),
        "decoder": lambda: parts["decoder"](**x, encoder_hidden_states=context, class_labels=added),
        "upsampler": lambda: parts["super_res_first"](large, 500),
    }
    found = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        found[name] = float(counter.get_total_flops())
    return found


def gemm_peak(side: int = 2048) -> float:
    """FLOP/s of the fastest of a few matrix products in float32."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def scaled(seconds: float, steps: int, whole: int) -> float:
    """The time of all steps from that of a few."""
    return seconds * whole / steps


@torch.no_grad()
def compare(size: str, steps: Sequence[int], with_flops: bool = True) -> dict[str, Any]:
    """Run both pipelines in turn: times, memory above what was held before, operations, difference of the pictures."""
    parts = karlo_checkpoint.networks(size)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = karlo_checkpoint.write_tokenizer(Path(folder) / "tokenizer")
        theirs = karlo_checkpoint.deprecated_pipeline(tokenizer.parent, parts=parts)
    ours = UnCLIPTextToImagePipeline.from_diffusers(theirs)
    ours.set_progress_bar_config(disable=True)
    flops = flops_of_a_step(parts, karlo_checkpoint.SIZES[size]) if with_flops else {}
    names = ("prior_num_inference_steps", "decoder_num_inference_steps", "super_res_num_inference_steps")
    call = {"prompt": PROMPT, **dict(zip(names, steps, strict=True))}
    warm = {**call, **dict.fromkeys(names, 2)}
    if size != "full":
        run_theirs(theirs, warm), run_ours(ours, warm)
    made = {"diffusers": run_theirs(theirs, call), "unclip": run_ours(ours, call)}
    difference = (made["diffusers"][0] - made["unclip"][0]).abs()
    rows = []
    for stage, done, whole in zip(STAGES, steps, WHOLE, strict=True):
        seconds = {name: scaled(clock.seconds[stage], done, whole) for name, (_, clock) in made.items()}
        rows.append(
            {
                "stage": stage,
                "steps run": done,
                **{f"{name} seconds": value for name, value in seconds.items()},
                "times faster": seconds["diffusers"] / seconds["unclip"],
                **{f"{name} bytes": clock.memory[stage] for name, (_, clock) in made.items()},
                "flops": flops.get(stage, 0) * whole,
            }
        )
    return {
        "size": size,
        "parameters": sum(p.numel() for part in parts.values() for p in part.parameters()),
        "machine": machine(),
        "gemm flops per second": gemm_peak(),
        "stages": rows,
        "largest difference": float(difference.max()) * 255,
        "share beyond one level": float((difference > 1 / 255).float().mean()),
    }


def report(found: dict[str, Any]) -> str:
    """As Markdown."""
    peak = found["gemm flops per second"]
    rows = [("stage", "diffusers", "unclip", "", "memory", "FLOP of diffusers' way", "share of GEMM peak")]
    rows.append(("---",) * len(rows[0]))
    total = {name: sum(row[f"{name} seconds"] for row in found["stages"]) for name in ("diffusers", "unclip")}
    for row in found["stages"]:
        share = [row["flops"] / row[f"{name} seconds"] / peak for name in ("diffusers", "unclip")]
        memory = [f"{row[f'{name} bytes'] / GIGABYTE:.2f}" for name in ("diffusers", "unclip")]
        rows.append(
            (
                f"{row['stage']}, {row['steps run']} steps run",
                milliseconds(row["diffusers seconds"]),
                milliseconds(row["unclip seconds"]),
                f"{row['times faster']:.2f} × faster",
                " → ".join(memory) + " GB",
                f"{row['flops'] / 1e12:.3g} T",
                " → ".join(f"{each:.0%}" for each in share),
            )
        )
    ratio = f"**{total['diffusers'] / total['unclip']:.2f} × faster**"
    rows.append(
        ("whole picture", milliseconds(total["diffusers"]), milliseconds(total["unclip"]), ratio, "", "", "")
    )
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"{found['size']}, {found['parameters'] / 1e9:.2f}B parameters, one picture. {found['machine']}; matrix "
        f"products reach {peak / 1e9:.0f} GFLOP/s.\n\n{lines}\n\nLargest difference of the pictures: "
        f"{found['largest difference']:.3f} of 255 levels; more than one level: "
        f"{found['share beyond one level']:.2g} of the values."
    )


@torch.no_grad()
def low_memory(size: str, folder: Path | None, steps: Sequence[int]) -> str:
    """One whole picture from a checkpoint on disk, each network in memory only while it works."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = folder or Path(temporary) / "karlo"
        if not checkpoint.is_dir():
            karlo_checkpoint.write_checkpoint(checkpoint, size=size)
        peak = Peak()
        held = peak.begin()
        start = time.perf_counter()
        pipe = UnCLIPTextToImagePipeline.from_pretrained(checkpoint, low_memory=True)
        result = pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(0),
            **dict(
                zip(
                    (
                        "prior_num_inference_steps",
                        "decoder_num_inference_steps",
                        "upsampler_num_inference_steps",
                    ),
                    steps,
                    strict=True,
                )
            ),
        )
        seconds = time.perf_counter() - start
    picture = result.images[0]
    return table(
        ("one picture, low_memory", ""),
        [
            ("size", f"{picture.width} px, {size} networks, steps {tuple(steps)}"),
            ("time, reading included", milliseconds(seconds)),
            ("peak memory of the process", f"{peak.end() / GIGABYTE:.2f} GB"),
            ("held before", f"{held / GIGABYTE:.2f} GB"),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(karlo_checkpoint.SIZES), default="tiny")
    parser.add_argument("--steps", type=int, nargs=3, metavar=("PRIOR", "DECODER", "UPSAMPLER"))
    parser.add_argument(
        "--low-memory", action="store_true", help="measure one picture of low_memory=True instead"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="of --low-memory: kept there, and read if it is there"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="file to write; printed when left out")
    options = parser.parse_args(arguments)
    if options.low_memory:
        text = low_memory(options.size, options.checkpoint, options.steps or WHOLE)
    else:
        found = compare(options.size, options.steps or STEPS[options.size])
        text = json.dumps(found, indent=2) if options.json else report(found)
    if options.out is None:
        print(text)
    else:
        with atomic_path(options.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(options.out)


if __name__ == "__main__":
    main()
