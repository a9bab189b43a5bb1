"""Manipulations by a stand-in that changes pictures at theta >= .3: what is reached and kept is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from unclip.errors import UserError
from unclip.eval import features
from unclip.eval.changes import Changes
from unclip.eval.cli import app
from unclip.eval.features import FeatureNet
from unclip.eval.judge import Judge
from unclip.eval.manipulations import ROUND_TRIPS, Options, best_of, measure_manipulations
from unclip.eval.manipulations_report import best_sentence, manipulations_markdown
from unclip.eval.model import Manipulator

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "emoji-fixture.tar"
STYLES = ("flat", "3D", "noto")
COLOURS = {"red": (230, 20, 20), "blue": (20, 60, 230), "green": (20, 160, 40)}
FACES = {"grinning face": "face-smiling", "crying face": "face-concerned", "winking face": "face-smiling"}
OPTIONS = Options(pictures=12, thetas=(0.2, 0.4), round_trip=2, grid=2, progress=False)


class Emoji:
    """Things in three styles, balls and boxes in three colours, three faces: each picture is of its own numbers."""

    def __init__(self) -> None:
        self.records = [_record(f"thing {i}", style) for i in range(4) for style in STYLES]
        for thing in ("ball", "box"):
            self.records += [
                _record(f"{c} {thing}", style, attributes={"colour": c})
                for c in COLOURS
                for style in STYLES[1:]
            ]
        self.records += [
            _record(name, style, subgroup=group) for name, group in FACES.items() for style in STYLES[1:]
        ]

    def __len__(self) -> int:
        return len(self.records)

    def rgb(self, i: int, size: int) -> np.ndarray:
        record = self.records[i]
        texture = np.random.default_rng(list(record["key"].encode())).random((8, 8, 1))
        colour = COLOURS.get(record["attributes"].get("colour", ""), (255, 220, 80))
        picture = (np.array(colour) * (0.8 + 0.2 * texture)).astype(np.uint8)
        return picture.repeat(size // 8, 0).repeat(size // 8, 1)

    def fingerprint(self) -> str:
        return "emoji"


def _record(subject: str, style: str, **more: Any) -> dict[str, Any]:
    split = "style" if (subject, style) in {("thing 0", "flat"), ("thing 0", "3D")} else "train"
    plain = {
        "key": f"{style} {subject}",
        "subject": subject,
        "concept": subject,
        "style": style,
        "split": split,
        "captions": {"style_comma": f"{subject}, {style}"},
        "attributes": {},
        "group": "",
        "subgroup": "",
        "weight": 1.0,
    }
    return {**plain, **more}


@pytest.fixture
def emoji() -> Emoji:
    return Emoji()


@pytest.fixture
def coarse_net() -> FeatureNet:
    return FeatureNet("Coarse", lambda pictures: F.avg_pool2d(pictures, 20).flatten(1))


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def manipulator(emoji: Emoji, calls: list[str]) -> Manipulator:
    """Via "prior" it knows the picture that is wanted, else it changes nothing; x_T does not matter."""
    of_pixels = {emoji.rgb(i, 256).tobytes(): i for i in range(len(emoji))}

    def target(i: int, after: str) -> int:
        record = emoji.records[i]
        subject, style = record["subject"], record["style"]
        if "3D" in after:
            style = "3D"
        else:
            subject = after
        return next(j for j, r in enumerate(emoji.records) if (r["subject"], r["style"]) == (subject, style))

    def diff(
        pictures: np.ndarray,
        before: Sequence[str | None],
        after: Sequence[str],
        seeds: Sequence[int],
        *,
        theta: Sequence[float],
        via: str,
        noise: str,
    ) -> list[Image.Image]:
        assert (before == [None]) == (via == "redraw")
        calls.append(f"{before[0]} → {after[0]}")
        i = of_pixels[pictures[0].tobytes()]
        there = target(i, after[0]) if via == "prior" else i
        return [Image.fromarray(emoji.rgb(there if each >= 0.3 else i, 64)) for each in theta]

    def vary(
        pictures: np.ndarray, seeds: Sequence[int], *, noise: str, num_corrections: int = 0, **given: Any
    ) -> list[Image.Image]:
        """Each correction brings the picture nearer."""
        error = 2 if noise == "fresh" else 32 >> num_corrections
        return [Image.fromarray(each + np.uint8(0 if noise == "fresh" else error)) for each in pictures // 2]

    return Manipulator(vary=vary, diff=diff, fingerprint="knows")


def test_the_cases(emoji: Emoji, coarse_net: FeatureNet) -> None:
    gallery = coarse_net([emoji.rgb(i, 64) for i in range(len(emoji))], progress=False)
    kinds = {
        kind.name: kind.cases for kind in Changes(emoji, Judge(gallery, emoji.records), OPTIONS).kinds(20)
    }
    said = {name: {(case.before, case.after) for case in cases} for name, cases in kinds.items()}
    assert said == {
        "style": {(f"thing {i}, flat", f"thing {i}, 3D") for i in range(4)},
        "generic": {("a flat emoji", "a 3D emoji")},
        "colour": {(f"{c} {t}", f"blue {t}") for c in ("red", "green") for t in ("ball", "box")}
        | {(f"blue {t}", f"red {t}") for t in ("ball", "box")},
        "expression": {
            ("grinning face", "crying face"),
            ("winking face", "crying face"),
            ("crying face", "grinning face"),
        },
    }
    assert len(kinds["generic"]) == 4
    for cases in kinds.values():
        for case in cases:
            assert case.true is not None
            assert emoji.records[case.true]["subject"] == (
                case.source.subject if case.target == "3D" else case.after
            )


def test_what_is_reached_and_kept(
    emoji: Emoji, manipulator: Manipulator, coarse_net: FeatureNet, calls: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = measure_manipulations(emoji, manipulator, coarse_net, out, tmp_path / "cache", OPTIONS)
    assert json.loads((out / "manipulations.json").read_text()) == report
    assert report["settings"]["thetas"] == [0.0, 0.2, 0.4]  # the picture itself is always among them
    reached = {"style": "nearest", "generic": "nearest", "colour": "reached", "expression": "reached"}
    for name, key in reached.items():
        rows = report["kinds"][name]["rows"]
        assert len(rows) == 27
        for way in rows:
            changed = way["via"] == "prior" and way["theta"] == 0.4
            if name != "expression" or changed:  # with five faces near, any of them is among the five
                assert way[key]["value"] == changed, (name, way)
            if name != "expression":
                assert way["kept"]["value"] == 1, (name, way)
            assert way["both"]["value"] <= min(way["reached"]["value"], way["kept"]["value"])
    for name in ("generic", "colour"):
        assert report["kinds"][name]["best"] == {"via": "prior", "noise": "inverted", "theta": 0.4}
    assert "colour via prior, inverted x_T, θ = 0.4: 100 %" in best_sentence(report)
    assert {key for row in report["kinds"]["expression"]["rows"] for key in row} >= {"style", "kept"}
    page = manipulations_markdown(report)
    for name in report["kinds"]:
        with Image.open(out / f"{name}.webp") as sheet:
            assert sheet.width > 600
        assert f"({name}.webp)" in page
    # Nothing is made twice: one call for each picture, way and kind.
    made = len(calls)
    assert made == 9 * sum(figures["n"] for figures in report["kinds"].values())
    again = measure_manipulations(emoji, manipulator, coarse_net, out, tmp_path / "cache", OPTIONS)
    assert again["kinds"] == report["kinds"]
    assert len(calls) == made


def test_round_trips(emoji: Emoji, manipulator: Manipulator, coarse_net: FeatureNet, tmp_path: Path) -> None:
    report = measure_manipulations(
        emoji, manipulator, coarse_net, tmp_path / "out", tmp_path / "cache", OPTIONS
    )
    rows = report["round_trip"]
    ways = [(steps, count) for steps, counts in ROUND_TRIPS.items() for count in counts]
    assert [(way["steps"], way["corrections"]) for way in rows] == [*ways, (None, None)]
    by_corrections = {way["corrections"]: way["psnr"]["value"] for way in rows}
    assert by_corrections[1] != by_corrections[2] != by_corrections[3]
    assert rows[0]["psnr"]["n"] == 2


def row(via: str, theta: float, both: float) -> dict[str, Any]:
    share = {"value": both, "low": both - 0.05, "high": both + 0.05, "n": 99}
    return {"via": via, "noise": "fresh", "theta": theta, "both": share}


def test_the_best_way_of_each_kind() -> None:
    rows = [row("prior", 0, 0.9), row("prior", 0.3, 0.5), row("text", 0, 0.2), row("text", 0.3, 0.6)]
    best = best_of(rows)
    assert best == {"via": "text", "noise": "fresh", "theta": 0.3}
    assert best_of(rows[:1]) == {}
    kinds = {
        "style": {"rows": rows, "best": best, "true": {"both": row("", 0, 0.7)["both"]}},
        "colour": {"rows": rows[:2], "best": best_of(rows[:2])},
    }
    assert best_sentence({"kinds": kinds}) == (
        "Most often reached and kept, chosen among the rows on these same pictures: style via text, fresh x_T, "
        "θ = 0.3: 60 % (55–65), more than the 20 % (15–25) of "
        "θ = 0; real pictures 70 % (65–75). colour via prior, fresh x_T, θ = 0.3: 50 % (45–55), less than the 90 % "
        "(85–95) of θ = 0."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "unclip data build emoji --out nowhere"),
        (["--theta", "0.7"], "theta must lie between 0 and 0.5, got 0.7"),
        (["--pictures", "1"], "pictures must be at least 3, got 1"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: list[str],
    message: str,
    coarse_net: FeatureNet,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(features.FEATURE_NETS, "mobilenet_v2", lambda device: coarse_net)
    given = ["manipulations", "--data", FIXTURE, "--out", tmp_path / "out", *arguments]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
