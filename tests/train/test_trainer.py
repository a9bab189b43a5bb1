"""The loop: resuming, accumulation, averaging, checkpoints, signals."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.train import checkpoint as checkpoint_module
from unclip.train.ema import EMA
from unclip.train.optim import learning_rate_at, make_optimizer
from unclip.train.trainer import Trainer


def run(toy: ModuleType, output: Path, resume: bool = False, **changes: Any) -> Trainer:
    config = toy.toy_config(output, **changes)
    trainer = Trainer(config, toy.ToyTask(config))
    trainer.run(resume)
    return trainer


def checkpoint_tensors(output: Path, step: int) -> dict[str, torch.Tensor]:
    folder = output / "checkpoints" / f"step-{step:08d}"
    names = ("model", "ema", "optimizer")
    return {f"{n}.{k}": v for n in names for k, v in load_file(folder / f"{n}.safetensors").items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    toy: ModuleType, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(toy, whole)
    changes = {"checkpoint_every_steps": 5}
    command = [sys.executable, str(Path(toy.__file__)), str(broken), "8", json.dumps(changes)]
    process = subprocess.run(command, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["step-00000005"]
    (broken / "checkpoints" / ".step-00000009-abc").mkdir()  # as a kill during a write leaves behind

    run(toy, broken, resume=True, **changes)

    assert_same(checkpoint_tensors(whole, 10), checkpoint_tensors(broken, 10))
    assert_same(load_file(whole / "model/model.safetensors"), load_file(broken / "model/model.safetensors"))
    steps = [json.loads(line)["step"] for line in (broken / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 10, 10]  # each line once, although steps 6 and 7 ran twice
    assert not list((broken / "checkpoints").glob(".step-*"))


def test_workers_draw_the_same_batches(toy: ModuleType, tmp_path: Path) -> None:
    run(toy, tmp_path / "here", steps=4)
    run(toy, tmp_path / "workers", steps=4, num_workers=1)
    assert_same(checkpoint_tensors(tmp_path / "here", 4), checkpoint_tensors(tmp_path / "workers", 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_found_while_drawing_is_one_line(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def draw(task: object, n: int, rng: object) -> None:
        raise UserError("no art: give some")

    monkeypatch.setattr(toy.ToyTask, "draw", draw)
    with pytest.raises(UserError) as caught:
        run(toy, tmp_path / "run", num_workers=workers)
    assert str(caught.value) == "no art: give some"
    config = toy.toy_config(tmp_path / "dry")
    with pytest.raises(UserError, match="no art"):
        Trainer(config, toy.ToyTask(config)).seconds_per_step(1)


def test_accumulation_equals_the_whole_batch(toy: ModuleType, tmp_path: Path) -> None:
    whole = toy.toy_config(tmp_path / "whole")
    parts = toy.toy_config(tmp_path / "parts", accumulation=4)
    for config in (whole, parts):
        Trainer(config, toy.ToyTask(config, noise=0.0)).run()
    expected, got = checkpoint_tensors(tmp_path / "whole", 10), checkpoint_tensors(tmp_path / "parts", 10)
    for key in (key for key in expected if key.startswith("model.") and "calls" not in key):
        assert_close(got[key], expected[key], rtol=1e-4, atol=1e-5)


def test_a_run_does_not_go_on_with_other_data(toy: ModuleType, tmp_path: Path) -> None:
    run(toy, tmp_path / "run")
    config = toy.toy_config(tmp_path / "run", steps=12)
    task = toy.ToyTask(config)
    task.describe = lambda: {"pictures": 7}
    with pytest.raises(UserError, match=r"the data was .*, got \{'pictures': 7\}"):
        Trainer(config, task).run(resume=True)


def test_resume_with_more_steps_extends_a_finished_run(toy: ModuleType, tmp_path: Path) -> None:
    run(toy, tmp_path / "run")
    with pytest.raises(UserError, match="extend it with steps=N"):
        run(toy, tmp_path / "run", resume=True)
    run(toy, tmp_path / "run", resume=True, steps=12)
    assert (tmp_path / "run/checkpoints/step-00000012").is_dir()


def test_taken_and_missing_folders(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(UserError, match="--resume"):
        run(toy, tmp_path / "taken")
    with pytest.raises(UserError, match="leave out --resume"):
        run(toy, tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()


def test_what_a_run_writes(toy: ModuleType, tmp_path: Path) -> None:
    trainer = run(toy, tmp_path, checkpoint_every_steps=3, keep_checkpoints=2, validate_every_steps=4)
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["step-00000009", "step-00000010"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        f"step-{s:08d}.png" for s in (4, 8, 10)
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0].keys() >= {"step", "loss", "first", "grad_norm", "learning_rate", "samples_per_second"}
    assert [line["validation/training"] for line in lines if "validation/training" in line] == [0.0] * 3
    assert_same(load_file(tmp_path / "model/model.safetensors"), dict(trainer.ema.model.state_dict()))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_a_full_disk_leaves_the_previous_checkpoint(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    real = checkpoint_module.save_file
    monkeypatch.setattr(checkpoint_module, "save_file", save_file)
    with pytest.raises(UserError, match="no space left") as caught:
        run(toy, tmp_path, checkpoint_every_steps=4)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    run(toy, tmp_path, resume=True)
    assert (tmp_path / "checkpoints/step-00000010").is_dir()


def test_a_damaged_checkpoint_is_named(toy: ModuleType, tmp_path: Path) -> None:
    run(toy, tmp_path)
    (tmp_path / "checkpoints/step-00000010/ema.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot resume from .*step-00000010"):
        run(toy, tmp_path, resume=True, steps=12)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(
    toy: ModuleType, tmp_path: Path, number: int, workers: int
) -> None:
    config = toy.toy_config(tmp_path, steps=100, num_workers=workers)
    task = toy.ToyTask(config)
    original = task.loss
    survived: list[bool] = []

    def loss(*arguments: Any) -> Any:
        if task.count == 3:
            for child in multiprocessing.active_children():  # as when the whole process group gets it
                os.kill(child.pid or 0, number)
                child.join(0.5)
                survived.append(child.is_alive())
            os.kill(os.getpid(), number)
        return original(*arguments)

    task.loss = loss
    before = signal.getsignal(number)
    outcome = Trainer(config, task).run()
    assert (outcome.step, outcome.interrupted) == (4, True)
    assert survived == [True] * workers
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert signal.getsignal(number) is before


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(toy: ModuleType, tmp_path: Path) -> None:
    config = toy.toy_config(tmp_path, max_skipped=3)
    task = toy.ToyTask(config)
    trainer = Trainer(config, task)
    batch = {"x": torch.full((8, 4), torch.nan), "y": torch.zeros(8, 2)}
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert trainer.train_step(0, batch) == {}
    assert trainer.train_step(1, batch) == {}
    assert_close(list(task.model.parameters()), before, rtol=0, atol=0)
    with pytest.raises(UserError, match="not finite in 3 steps in a row"):
        trainer.train_step(2, batch)
    assert trainer.skipped == 3


def test_a_good_step_ends_a_row_of_bad_ones(toy: ModuleType, tmp_path: Path) -> None:
    config = toy.toy_config(tmp_path, max_skipped=2)
    trainer = Trainer(config, toy.ToyTask(config))
    bad = {"x": torch.full((8, 4), torch.nan), "y": torch.zeros(8, 2)}
    good = {"x": torch.ones(8, 4), "y": torch.zeros(8, 2)}
    for step, batch in enumerate([bad, good, bad, good]):
        trainer.train_step(step, batch)
    assert trainer.skipped == 2


def test_ema_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    model.register_parameter("frozen", frozen)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = EMA(model, decay=0.3)
    expected = 0.0
    for step, decay in enumerate(
        [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]
    ):  # (1 + s) / (10 + s) until it reaches .3
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
            frozen.fill_(step)
        ema.update(step)
        expected = decay * expected + (1 - decay) * (step + 1.0)
        assert_close(ema.model.weight.item(), expected)
        assert ema.model.frozen.item() == step
    assert not ema.model.weight.requires_grad


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 1.0, 0.5]),
        ("cosine", [0.5, 1.0, 1.0, 1.0, 0.5]),
    ],
)
def test_learning_rate(toy: ModuleType, decay: str, expected: list[float]) -> None:
    config = toy.toy_config("x", steps=5, warmup_steps=2, learning_rate=1.0, decay=decay, decay_fraction=0.4)
    assert_close([learning_rate_at(config, step) for step in range(5)], expected)


def test_weight_decay_spares_vectors_and_rates_scale_by_name(toy: ModuleType) -> None:
    config = toy.toy_config("x")
    model = toy.ToyTask(config).model
    optimizer = make_optimizer(
        model, config, torch.device("cpu"), lambda name: 0.1 if name.startswith("0.") else 1.0
    )
    found = {
        (group["weight_decay"], group["scale"], p.ndim)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {(0.1, 0.1, 2), (0.0, 0.1, 1), (0.1, 1.0, 2), (0.0, 1.0, 1)}
