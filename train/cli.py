"""The command: `unclip train STAGE …`, the same as `python -m unclip.train STAGE …` (and under accelerate launch).

Imports nothing heavy until it has a configuration that is right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unclip.errors import UserError, mistakes_end_the_program

from .config import TrainConfig
from .presets import preset

if TYPE_CHECKING:
    from .tasks.base import Task

# What a resumed run may not change: the weights, the samples or the noise would no longer be those of one run.
FIXED = ("stage", "preset", "model", "batch_size", "seed", "limit")


def train(
    stage: str,
    overrides: Sequence[str] = (),
    *,
    preset_name: str | None = None,
    data: str | None = None,
    output: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    seed: int | None = None,
    device: str | None = None,
) -> bool:
    """Train a stage, or with `dry_run` tell what would be done; whether it was finished, not interrupted.

    Raises:
        UserError: unknown stage, preset or key, a taken output folder, missing data; before anything is written.
    """
    given = {"data": data, "output": output, "seed": seed, "device": device}
    options = {key: value for key, value in given.items() if value is not None}
    config = configure(stage, preset_name, overrides, options, resume)
    if dry_run:
        print(plan(config))
        return True
    if config.output is None:
        raise UserError("no output folder: give --output DIR")
    from .trainer import Trainer, check_output

    # Before the data is loaded, which may take minutes.
    check_output(Path(config.output), resume, config.steps)
    task = make_task(config)
    outcome = Trainer(config, task).run(resume)
    if outcome.interrupted:
        print(
            f"stopped at step {outcome.step} of {config.steps}; continue with: "
            f"unclip train {stage} --output {config.output} --resume",
            file=sys.stderr,
        )
    else:
        print(f"{config.output}/model")
    return not outcome.interrupted


def configure(
    stage: str,
    preset_name: str | None,
    overrides: Sequence[str],
    options: dict[str, str | int],
    resume: bool,
) -> TrainConfig:
    """The resolved configuration: the preset's (or, resuming, the run's own) with the user's changes.

    Raises:
        UserError: unknown stage, preset or key, wrong type, or a change that a resumed run cannot take.
    """
    from .tasks import task_class

    task = task_class(stage)
    saved: TrainConfig | None = None
    if resume:
        if "output" not in options:
            raise UserError("nothing to resume: give --output DIR of the run")
        folder = Path(str(options["output"]))
        if not (folder / "config.yaml").is_file():
            raise UserError(f"nothing to resume in {folder}: leave out --resume to start a run there")
        saved = TrainConfig.load(folder / "config.yaml")
        if saved.stage != stage or preset_name not in (None, saved.preset):
            raise UserError(
                f"{folder} holds a run of stage {saved.stage}, preset {saved.preset}; got {stage}, {preset_name}"
            )
        saved = task.resolve(saved)
    start = saved or preset(stage, preset_name or "emoji")
    config = task.resolve(start.override(overrides).updated(options))
    for key in FIXED if saved else ():
        before, after = getattr(saved, key), getattr(config, key)
        if before != after:
            raise UserError(f"{key} cannot change when a run is resumed: it was {before!r}, got {after!r}")
    return config


def make_task(config: TrainConfig) -> Task:
    """The task of a configuration, its network initialised from the seed (or from `config.initial`)."""
    import torch

    from .tasks import task_class

    # Zero-initialised layers make denormals, which cost a factor of ten on a CPU. Threads inherit this when they are
    # born, so it stands before the first computation.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    task = task_class(config.stage)(config)
    if config.initial is not None:
        task.load(Path(config.initial))
    return task


def plan(config: TrainConfig, measured_steps: int = 3) -> str:
    """What a run would do: its configuration, sizes, and the time it would take, measured. Writes nothing."""
    from .tasks import task_class
    from .trainer import Trainer

    small = replace(task_class(config.stage).to_measure(config), output=config.output or "unused")
    task = make_task(small)
    trainer = Trainer(small, task)
    parameters = sum(p.numel() for p in task.model.parameters())
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    facts = (
        f"{config.to_yaml()}\nparameters: {parameters:,} ({trained:,} trained)\ndevice: {trainer.device}\n"
    )
    if config.steps == 0:
        return f"{facts}estimated: no step, validation not counted\n"
    seconds = trainer.seconds_per_step(measured_steps)
    rate = config.batch_size / seconds
    return (
        f"{facts}estimated: {seconds:.3f} s a step, {rate:.1f} samples/s, "
        f"{config.steps * seconds / 3600:.2f} hours for {config.steps} steps "
        f"({config.steps * config.batch_size:,} samples), validation not counted\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    from .tasks import STAGES

    parser = argparse.ArgumentParser(prog="unclip train", description="Train a stage of an unCLIP model.")
    parser.add_argument("stage", help=", ".join(STAGES))
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change the preset, e.g. model.width=128"
    )
    parser.add_argument("--preset", help="emoji (default) or tiny")
    parser.add_argument("--data", help="folder made by `unclip data build`, or a .tar shard")
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, sizes and time; write nothing"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", help="cpu, cuda, mps; default: the best there is")
    options = parser.parse_intermixed_args(arguments)
    with mistakes_end_the_program():
        finished = train(
            options.stage,
            options.overrides,
            preset_name=options.preset,
            data=options.data,
            output=options.output,
            resume=options.resume,
            dry_run=options.dry_run,
            seed=options.seed,
            device=options.device,
        )
    return 0 if finished else 130  # as after Ctrl-C, so that what follows with && waits
