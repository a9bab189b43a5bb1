"""The command line, on a tiny saved model."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import unclip
from unclip import cli
from unclip.pipelines.pictures import read_png


def call(*arguments: str | Path) -> int:
    """Run the command line as `unclip …` does; the exit code."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_help_answers_at_once() -> None:
    code = (
        "import sys, unclip.cli as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.stdout.splitlines()[-1] == "[]"
    # Processor time, which a busy machine does not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", ["generate", "demo", "assemble", "info", "data", "eval", "train"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_version() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.output == f"unclip {unclip.__version__}\n"


def test_generate(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ("generate", "a red apple", "a cat", "-n", "2", "--seed", "5", "--size", "64", "--steps", "1")
    assert call(*arguments, "--negative-prompt", "blue", "--grid", "-o", out, "--model", tiny_model) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == [
        "a-red-apple-seed5.png", "a-red-apple-seed6.png", "a-cat-seed5.png", "a-cat-seed6.png",
        "grid-a-red-apple-seed5.png",
    ]  # fmt: skip
    assert Image.open(written[0]).size == (64, 64)
    facts = read_png(written[1])
    assert facts.pop("Software") == f"unclip {unclip.__version__}"
    settings = json.loads(facts.pop("settings"))
    assert facts == {
        "prompt": "a red apple", "negative_prompt": "blue", "seed": "6", "size": "64", "model": "tiny"
    }  # fmt: skip
    assert settings["decoder_num_inference_steps"] == 1
    assert settings["prior_num_inference_steps"] == 2  # the model's default


def test_json_and_nothing_else(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n  a red heart \n")
    assert call("generate", "--prompts-file", prompts, "--json", "-o", tmp_path, "--model", tiny_model) == 0
    report = json.loads(capsys.readouterr().out)
    assert [image["prompt"] for image in report["images"]] == ["a cat", "a red heart"]
    assert all(Path(image["path"]).is_file() and image["size"] == 64 for image in report["images"])
    assert report["images"][0]["seed"] == report["images"][1]["seed"]  # random, and told
    assert report["settings"]["num_prior_candidates"] == 2
    assert (report["model"], report["grid"]) == ("tiny", None)


def test_warnings_are_one_line(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a red apple on the left of the green cat on the right of the blue house on the small pear"
    assert call("generate", long, "--size", "16", "-o", tmp_path, "--model", tiny_model, "--no-progress") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: text longer than 16 tokens; these words were cut off:")


def test_demo(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unclip.pipelines.demo.PROMPTS", ("a red apple", "a cat"))
    assert call("demo", "-o", tmp_path / "out", "--model", tiny_model) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo-256.png", "demo.png"]
    assert "s in all" in capsys.readouterr().out


def test_assemble_and_info(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [f"--{name}={tiny_model / name}" for name in ("clip", "prior", "decoder")]
    model = tmp_path / "model"
    assert call("assemble", *parts, "-o", model, "--default", "decoder_num_inference_steps=4") == 0
    assert capsys.readouterr().out.strip() == str(model)
    assert call("info", "--model", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sizes"] == [16]
    assert facts["defaults"]["decoder_num_inference_steps"] == 4
    assert facts["components"]["decoder"]["dtypes"] == ["F16", "F32"]
    assert call("info", "--model", tiny_model) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("torch", "DiffusionPrior", "M", "MB", "16, 64, 256 px"))


def _cut_off(model: Path) -> None:
    weights = model / "decoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


MISTAKES = {
    "empty prompt": (["generate", " "], "prompt is empty"),
    "no prompt": (["generate"], "no prompt"),
    "no prompts file": (["generate", "--prompts-file", "nowhere.txt"], "cannot read the prompts in nowhere.txt"),
    "size": (["generate", "a", "--size", "100"], "size 100 is not offered: this model makes 16, 64, 256"),
    "steps": (["generate", "a", "--steps", "0"], "decoder_num_inference_steps must be"),
    "too many steps": (["generate", "a", "--prior-steps", "5000"], "DDPMScheduler cannot take 5000 steps"),
    "noise level": (["generate", "a", "--noise-level", "2"], "noise_level must lie between"),
    "dtype": (["generate", "a", "--dtype", "int8"], "unknown dtype 'int8': choose one of float32"),
    "device": (["generate", "a", "--device", "abacus"], "no device 'abacus' here"),
    "default": (["assemble", "--clip=a", "--prior=b", "--decoder=c", "-o=d", "--default=x"], "key=number"),
    "output": (["generate", "a", "--size", "16", "-o", "tiny/model_index.json/out"], "tiny/model_index.json"),
    "stage": (["train", "nothing"], "unknown stage 'nothing'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    tiny_model: Path, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    model = ["--model", str(tiny_model)] if arguments[0] == "generate" else []
    assert call(*arguments, *model) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert output.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]  # nothing half-written


def test_missing_and_truncated_models(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("generate", "a", "--model", tmp_path / "nowhere") == 2
    assert "error: no model folder at" in capsys.readouterr().err
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    _cut_off(broken)
    assert call("generate", "a", "--model", broken) == 2
    error = capsys.readouterr().err
    assert "is truncated: expected" in error
    assert len(error.splitlines()) == 1


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("generate", "a", "--seed", "99999999999999999999") == 2
    assert "--seed" in capsys.readouterr().err
    assert call("generate", "a", "--colour", "red") == 2
    assert "--colour" in capsys.readouterr().err
    assert call("nothing") == 2


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.draw, "load_pipeline", interrupted)
    assert call("generate", "a") == 130
    assert capsys.readouterr().err.strip() == "interrupted"
