"""`unclip eval emoji`, `unclip eval card` and the benchmark, on tiny components."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from unclip.errors import UserError
from unclip.eval import features
from unclip.eval.card import Facts, Run, card_text, find_runs, read_report, train_command, write_card
from unclip.eval.choice import Pictures
from unclip.eval.cli import app
from unclip.eval.emoji import evaluate
from unclip.eval.features import FeatureNet
from unclip.eval.memorisation import Options as MemorisationOptions
from unclip.eval.memorisation import evaluate_memorisation
from unclip.eval.model import Model, Options

# The tiny CLIP reads 16 tokens.
pytestmark = pytest.mark.filterwarnings("ignore:text longer than")

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "emoji-fixture.tar"


@pytest.fixture
def stand_in_judge(pixel_net: FeatureNet, monkeypatch: pytest.MonkeyPatch) -> None:
    another = FeatureNet("Others", pixel_net.network)
    monkeypatch.setitem(features.FEATURE_NETS, "mobilenet_v2", lambda device: pixel_net)
    monkeypatch.setitem(features.FEATURE_NETS, "efficientnet_lite0", lambda device: another)


@pytest.mark.usefixtures("stand_in_judge")
def test_emoji_on_the_fixture(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "--data",
        FIXTURE,
        "--model",
        tiny_model,
        "--out",
        out,
        "--prompts",
        6,
        "--size",
        16,
        "--grid",
        1,
        "--relations",
        3,
    ]
    arguments += ["--prior-steps", 1, "--decoder-steps", 1, "--seed", 3]
    result = CliRunner().invoke(app, ["emoji", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert report["settings"]["decoder_num_inference_steps"] == 1
    assert report["settings"]["upsampler_num_inference_steps"] == 2  # the model's own
    assert list(report["generated"]) == ["Pixels", "Others"]
    assert report["generated"]["Others"]["verdicts"]["all"]["generated"]["subject"]["n"] == 6
    assert report["diversity"]["seeds"] == 4
    assert report["relations"]["generated"]["relation"]["n"] == 3
    assert "# Evaluation" in (out / "report.md").read_text()
    drawn = sorted((out / "images").glob("*.png"))
    assert Image.open(drawn[0]).size == (16, 16)
    times = [path.stat().st_mtime_ns for path in drawn]
    shown = CliRunner().invoke(app, ["emoji", *map(str, arguments)], catch_exceptions=False)
    assert "Generated pictures" in shown.stdout
    assert [path.stat().st_mtime_ns for path in drawn] == times  # used again
    assert json.loads((out / "report.json").read_text()) == report


@pytest.mark.usefixtures("stand_in_judge")
def test_memorisation_on_the_fixture(tiny_model: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    options = {"--data": FIXTURE, "--model": tiny_model, "--output": out, "--images": images, "--prompts": 6}
    options |= {"--size": 16, "--top": 2, "--setting": "decoder_num_inference_steps=1"}
    arguments = [str(each) for pair in options.items() for each in pair]
    result = CliRunner().invoke(app, ["memorisation", *arguments, "--json"], catch_exceptions=False)
    report = json.loads((out / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert report["settings"]["decoder_num_inference_steps"] == 1
    assert report["measures"]["pixels"]["splits"]["all"]["generated"]["copies"]["n"] == 6
    assert (out / "most-similar.png").is_file()
    times = [path.stat().st_mtime_ns for path in sorted(images.glob("*.png"))]
    shown = CliRunner().invoke(app, ["memorisation", *arguments], catch_exceptions=False)
    assert "Nearest training picture by pixels" in shown.stdout
    assert [path.stat().st_mtime_ns for path in sorted(images.glob("*.png"))] == times  # used again


@pytest.mark.usefixtures("stand_in_judge")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "unclip data build emoji --out nowhere"),
        (["--prompts", "0"], "prompts must be at least 1"),
        (["--setting", "steps"], "--setting takes key=number"),
        (["--setting", "steps=3"], "unknown setting 'steps'"),
        (["--judge", "inception"], "expected one of: mobilenet_v2"),
    ],
)
def test_mistakes_of_memorisation_are_found_before_the_work(
    arguments: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    given = {
        "--data": FIXTURE,
        "--model": tiny_model,
        "--output": tmp_path / "out",
        "--images": tmp_path / "out",
    }
    words = [str(each) for pair in given.items() for each in pair]
    result = CliRunner().invoke(app, ["memorisation", *words, "--size", "16", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("stand_in_judge")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "unclip data build emoji --out nowhere"),
        (["--size", "100"], "size 100 is not offered by this model; choose one of: 16, 64, 256"),
        (["--judge", "inception"], "expected one of: mobilenet_v2"),
        (["--prompts", "-1"], "prompts must be at least 0, got -1"),
        (["--decoder-steps", "0"], "decoder_num_inference_steps"),
        (["--device", "abacus"], "no device 'abacus' here"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    given = [
        "emoji",
        "--data",
        str(FIXTURE),
        "--model",
        str(tiny_model),
        "--out",
        str(tmp_path / "out"),
        *arguments,
    ]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def a_run(tmp_path: Path, name: str, stage: str) -> Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    config = (
        f"stage: {stage}\npreset: tiny\nbatch_size: 16\nsteps: 20\ndata: /somewhere/else/emoji\nseed: 0\n"
    )
    config += "learning_rate: 0.001\nmodel:\n  width: 32\n"
    (folder / "config.yaml").write_text(config)
    lines = [
        {"step": 10, "time": 0, "loss": 0.5, "samples_per_second": 2.0},
        {"step": 10, "time": 0, "validation/cosine": 0.6},
        {"step": 20, "time": 99999, "loss": 0.25, "samples_per_second": 4.0},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    return folder


def test_runs_are_read_in_the_order_of_the_cascade(tmp_path: Path) -> None:
    for name, stage in (("a", "decoder"), ("b", "prior"), ("c", "clip")):
        a_run(tmp_path, name, stage)
    runs = find_runs(tmp_path / "runs")
    assert [run.config["stage"] for run in runs] == ["clip", "prior", "decoder"]
    run = runs[0]
    assert (run.steps, run.samples) == (20, 320)
    assert run.hours == pytest.approx((160 / 2 + 160 / 4) / 3600)
    assert run.last("loss") == {"loss": 0.25}
    assert run.last("validation/") == {"validation/cosine": 0.6}
    with pytest.raises(UserError, match="no training runs under"):
        find_runs(tmp_path / "nothing")
    for damaged in ("steps: [", "- a list", "steps: 3"):
        (tmp_path / "runs" / "b" / "config.yaml").write_text(damaged)
        with pytest.raises(UserError, match=r"b/config.yaml is no training configuration"):
            find_runs(tmp_path / "runs")


def test_the_command_says_what_differs_from_the_preset() -> None:
    preset: dict[str, Any] = {
        "stage": "prior",
        "preset": "emoji",
        "steps": 9,
        "cache": None,
        "model": {"width": 8},
    }
    config = preset | {
        "steps": 7,
        "cache": "/far/away/cache",
        "data": "/far/away/emoji",
        "model": {"width": 16},
    }
    expected = "unclip train prior --preset emoji --data away/emoji steps=7 cache=away/cache model.width=16"
    assert train_command(config, preset) == expected


def test_card(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    options = Options(prompts=8, size=64, queries=5, prior_queries=5, grid=1, progress=False)
    report = evaluate(drawn, perfect_model, [pixel_net], out, out, options)
    runs = [
        Run("clip", {"stage": "clip", "batch_size": 16, "task": {"image_tower": "efficientnet"}}, ()),
        Run(
            "first", {"stage": "prior", "batch_size": 16}, ({"step": 10, "loss": 0.5},), "unclip train prior"
        ),
    ]
    facts = Facts(
        report=report,
        records=drawn.records,
        runs=runs,
        hardware="an abacus",
        commands=["unclip assemble"],
        notes="- Slow.",
    )
    path = write_card(facts, tiny_model, grids=out)
    text = path.read_text()
    for expected in (
        "license: apache-2.0",
        "on an abacus",
        "@lobehub/fluent-emoji-3d 1.1.0",
        "unclip train prior\nunclip assemble",
        "| prior | first | 10 | 160 |",
        "Generated pictures, judged by Pixels",
        "![Samples: seen](samples-train.webp)",
        "Of CLIP, the image tower from EfficientNet-lite0, which saw ImageNet's photographs.",
        "- Slow.",
    ):
        assert expected in text
    assert text == card_text(facts, tiny_model, [(s, f"samples-{s}.webp") for s in report["grids"]])
    assert (tiny_model / "samples-unseen.webp").is_file()
    assert "## Copies of training pictures" not in text
    few = MemorisationOptions(prompts=8, size=64, progress=False)
    copied = evaluate_memorisation(drawn, perfect_model, pixel_net, out, out / "images", out, few)
    text = card_text(replace(facts, memorisation=copied), tiny_model)
    assert "Of 8 generated pictures are copies of a training picture" in " ".join(text.split())
    assert text.index("Nearest training picture by features") < text.index("## Failures")


@pytest.mark.parametrize(
    ("option", "message"), [("--model", "no model folder at"), ("--notes", "cannot read the notes in")]
)
def test_a_card_needs_what_it_names(option: str, message: str, tiny_model: Path, tmp_path: Path) -> None:
    a_run(tmp_path, "a", "decoder")
    report = tmp_path / "report.json"
    report.write_text('{"settings": {}, "data": {}, "retrieval": {}, "prior": {}}')
    given = {"--runs": tmp_path / "runs", "--report": report, "--data": FIXTURE, "--model": tiny_model}
    given[option] = tmp_path / "nowhere"
    arguments = [str(each) for pair in given.items() for each in pair]
    result = CliRunner().invoke(app, ["card", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "nowhere").exists()


def test_a_report_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report at"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"settings": {}}')
    with pytest.raises(UserError, match="lacks 'data'"):
        read_report(tmp_path / "report.json")


def test_the_benchmark_runs(tiny_model: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_speed", ROOT / "benchmarks" / "speed.py")
    assert spec is not None
    assert spec.loader is not None
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    speed.main(["--model", str(tiny_model), "--repeats", "1", "--out", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    for expected in (
        "prior step, cached prefix",
        "guided decoder step, one batch, 4 pictures",
        "prior-recall, 64 captions",
        "upsampler to 256 px",
    ):
        assert expected in text
