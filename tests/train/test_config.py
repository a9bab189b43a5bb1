"""Presets, overrides and their errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from unclip.errors import UserError
from unclip.train.cli import configure
from unclip.train.config import TrainConfig
from unclip.train.presets import PRESETS, preset


@pytest.mark.parametrize(("stage", "name"), sorted(PRESETS))
def test_every_preset_resolves_and_survives_its_file(stage: str, name: str, tmp_path: Path) -> None:
    config = configure(stage, name, [], {"output": "x"}, resume=False)
    assert (config.stage, config.preset) == (stage, name)
    config.save(tmp_path / "config.yaml")
    loaded = TrainConfig.load(tmp_path / "config.yaml")
    for field in fields(TrainConfig):
        if field.name not in ("model", "task"):
            assert getattr(loaded, field.name) == getattr(config, field.name), field.name
    from unclip.train.tasks import task_class

    assert task_class(stage).resolve(loaded) == config
    documentation = PRESETS[stage, name].__doc__ or ""
    assert f"unclip train {stage} --preset {name}" in documentation


def test_overrides() -> None:
    config = configure(
        "decoder",
        "tiny",
        [
            "steps=7",
            "learning_rate=1e-4",
            "betas=[0.8,0.9]",
            "model.width=64",
            "task.drop_text=0.25",
            "data=set",
        ],
        {"seed": 3},
        resume=False,
    )
    assert (config.steps, config.learning_rate, config.betas, config.seed) == (7, 1e-4, (0.8, 0.9), 3)
    assert (config.model["width"], config.model["layers"]) == (64, 2)
    assert (config.task["drop_text"], config.task["drop_image"]) == (0.25, 0.1)
    assert preset("decoder", "tiny").override(["clip=null"]).clip is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.widht=128", r"unknown key model\.widht: did you mean model\.width\?"),
        ("lerning_rate=1", r"unknown key lerning_rate: did you mean learning_rate\?"),
        ("task.droptext=1", r"unknown key task\.droptext: did you mean task\.drop_text\?"),
        ("model.embed_dim=3", r"unknown key model\.embed_dim"),
        ("steps=many", r"steps: expected int, got 'many' \(str\)"),
        ("steps=1.5", r"steps: expected int, got 1\.5"),
        ("betas=0.9", r"betas: expected tuple\[float, float\], got 0\.9"),
        ("model=3", r"model: expected dict"),
        ("model.width=wide", r"model\.width: expected int"),
        ("accumulation=3", r"accumulation: expected a divisor of batch_size, got 3"),
        ("steps=-1", r"steps: expected 0 or more, got -1"),
        ("decay=exp", r"decay: expected none, linear or cosine"),
        ("steps", r"expected key=value, got 'steps'"),
        ("steps=[1", r"cannot read"),
    ],
)
def test_wrong_overrides_are_named(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        configure("decoder", "tiny", [assignment], {}, resume=False)
    assert "\n" not in str(caught.value)


def test_unknown_stage_and_preset() -> None:
    with pytest.raises(UserError, match="unknown stage 'decodr'"):
        configure("decodr", "tiny", [], {}, resume=False)
    with pytest.raises(UserError, match="unknown preset 'big' of stage decoder: expected one of emoji, tiny"):
        configure("decoder", "big", [], {}, resume=False)


def test_a_resumed_run_keeps_what_defines_it(tmp_path: Path) -> None:
    options: dict[str, str | int] = {"output": str(tmp_path), "data": "set"}
    configure("upsampler-256", "tiny", ["steps=9"], options, resume=False).save(tmp_path / "config.yaml")
    only_output: dict[str, str | int] = {"output": str(tmp_path)}
    config = configure("upsampler-256", None, ["learning_rate=1e-4"], only_output, resume=True)
    assert (config.steps, config.data, config.learning_rate, config.preset) == (9, "set", 1e-4, "tiny")
    assert configure("upsampler-256", "tiny", ["steps=20"], only_output, resume=True).steps == 20
    for assignment in ("seed=5", "batch_size=8", "model.blocks=2", "limit=7"):
        with pytest.raises(UserError, match=f"{assignment.split('=')[0].split('.')[0]} cannot change"):
            configure("upsampler-256", None, [assignment], only_output, resume=True)
    with pytest.raises(UserError, match="holds a run of stage upsampler-256"):
        configure("decoder", None, [], only_output, resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        configure("decoder", None, [], {"output": str(tmp_path / "none")}, resume=True)


@pytest.mark.parametrize("content", ["steps: [1", "- steps", "\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml is no training config"):
        TrainConfig.load(tmp_path / "config.yaml")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, unclip.train.cli; print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
