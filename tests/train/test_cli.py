"""The command on the shard of real samples."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unclip.train.cli import configure, main


def arguments(stage: str, data: str, output: Path, *more: str) -> list[str]:
    return [stage, "--preset", "tiny", "--data", data, "--output", str(output), *more]


def test_decoder_killed_and_resumed_equals_an_uninterrupted_run(emoji_fixture: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ["steps=10", "checkpoint_every_steps=5", "log_every_steps=5"]
    assert main(arguments("decoder", emoji_fixture, whole, *settings)) == 0
    script = str(Path(__file__).with_name("kill_run.py"))
    command = [sys.executable, script, "7", *arguments("decoder", emoji_fixture, broken, *settings)]
    process = subprocess.run(command, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (broken / "model").exists()

    assert main(["decoder", "--output", str(broken), "--resume"]) == 0

    for name in ("model", "ema", "optimizer"):
        expected, got = (
            load_file(run / f"checkpoints/step-00000010/{name}.safetensors") for run in (whole, broken)
        )
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)
    losses = [
        [
            line["loss"]
            for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stage", ["decoder", "prior"])
def test_the_loss_falls(
    stage: str, emoji_fixture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(stage, emoji_fixture, tmp_path / "run", "steps=60")) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/run/model"
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stage", ["upsampler-256", "upsampler-1024"])
def test_upsamplers_train(stage: str, emoji_fixture: str, tmp_path: Path) -> None:
    assert main(arguments(stage, emoji_fixture, tmp_path / "run", "steps=3", "num_workers=1")) == 0
    assert (tmp_path / "run/model/diffusion_pytorch_model.safetensors").is_file()
    assert list((tmp_path / "run/samples").glob("*.png"))


def test_a_dry_run_writes_nothing(
    emoji_fixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(Path(emoji_fixture).parent.rglob("*"))
    assert main(arguments("decoder", emoji_fixture, tmp_path / "run", "--dry-run", "steps=1000")) == 0
    output = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert sorted(Path(emoji_fixture).parent.rglob("*")) == before
    assert "steps: 1000" in output
    assert "  width: 32" in output
    assert "parameters: " in output
    assert "samples/s" in output
    assert "hours for 1000 steps" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["model.widht=3"], "did you mean model.width?"),
        (["clip=null"], "give cache=DIR"),
        (["cache=nowhere", "clip=null"], "no embeddings at nowhere"),
        (["--data", "nowhere"], "nowhere"),
        (["--resume"], "nothing to resume"),
        (["--device", "nonsense"], "device"),
        (["task.held_out=100000"], "task.held_out"),
        (["initial=nowhere"], "initial=nowhere"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    change: list[str], message: str, emoji_fixture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments("decoder", emoji_fixture, tmp_path / "run", *change))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_refused_before_its_data_is_loaded(
    emoji_fixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"data": emoji_fixture, "output": str(tmp_path)}
    configure("decoder", "tiny", ["steps=20"], options, resume=False).save(tmp_path / "config.yaml")
    (tmp_path / "checkpoints" / "step-00000020").mkdir(parents=True)
    monkeypatch.setattr("unclip.train.cli.make_task", lambda config: pytest.fail("data is loaded"))
    with pytest.raises(SystemExit) as end:
        main(["decoder", "--output", str(tmp_path), "--resume"])
    assert end.value.code == 2
    assert "at step 20 already: extend it with steps=N" in capsys.readouterr().err


def test_an_interrupted_run_stops_what_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for finished, code in ((True, 0), (False, 130)):
        monkeypatch.setattr("unclip.train.cli.train", lambda *args, finished=finished, **options: finished)
        assert main(["decoder"]) == code
