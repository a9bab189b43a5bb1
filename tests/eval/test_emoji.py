"""The report: a perfect model reaches the judge's ceiling, a random one chance; drawing can go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from unclip.errors import UserError
from unclip.eval.choice import Asked, Pictures, choose
from unclip.eval.drawing import draw_pictures
from unclip.eval.emoji import evaluate
from unclip.eval.features import FeatureNet
from unclip.eval.generated import Drawn, Floor
from unclip.eval.model import Model, Options
from unclip.eval.tables import SPLIT_NAMES, percent, print_report, report_markdown, report_tables

OPTIONS = Options(
    prompts=24, size=64, queries=30, prior_queries=10, batch_size=16, grid=3, varied=3, progress=False
)


def run(
    data: Pictures, model: Model, net: FeatureNet | None, folder: Path, options: Options = OPTIONS
) -> dict[str, Any]:
    report = evaluate(data, model, [net] if net else [], folder, folder / "cache", options)
    return json.loads(json.dumps(report))  # plain numbers only


def test_a_perfect_model(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    report = run(drawn, perfect_model, pixel_net, tmp_path)
    assert report["data"]["pictures"] == sum(report["data"]["splits"].values()) == len(drawn)
    for split in ("train", "style", "tone", "unseen"):
        assert report["retrieval"][split]["style"]["all"]["top1"]["value"] == 1
        assert report["prior"][split]["cosine"]["value"] == pytest.approx(1)
        assert report["prior"][split]["top1"]["value"] == 1
        assert abs(report["prior"][split]["other_cosine"]["value"]) < 0.3
    verdicts = report["generated"]["Pixels"]["verdicts"]
    for by_row in verdicts.values():
        # The picture asked for is there to be found; without it, a perfect picture gets what the real one gets.
        assert by_row["generated"]["both"]["value"] == by_row["decoded"]["both"]["value"] == 1
        assert by_row["generated_left_out"] == by_row["real"]
        assert by_row["real"]["both"]["value"] == 0
    (table,) = [each for each in report_tables(report) if each.title.startswith("Generated pictures")]
    both = {row[1]: row[-1] for row in table.rows if row[0] == SPLIT_NAMES["train"]}
    assert {name: cell[:5] for name, cell in both.items()} == {
        "generated": "100 %", "generated *": "–", "from true z_i": "100 %", "real *": "–", "lookup": "100 %"
    }  # fmt: skip
    # A search among training pictures has the answer only where it was trained on.
    assert verdicts["train"]["lookup"]["both"]["value"] == 1
    assert verdicts["unseen"]["lookup"]["subject"]["value"] == 0
    as_a_set = report["generated"]["Pixels"]
    assert as_a_set["frechet"]["lookup"] >= 0.98 * as_a_set["frechet"]["real"]
    assert as_a_set["frechet"]["generated"] == pytest.approx(as_a_set["frechet"]["real"], rel=0.02)
    assert as_a_set["precision"]["generated"]["value"] == as_a_set["recall"]["generated"]["value"] == 1
    # Pairs of a picture with itself count across the two sets, not within one.
    assert report["cmmd"]["generated"] < 0
    assert report["cmmd"]["generated"] < report["cmmd"]["real"]
    # A prompt's pictures are all the same.
    assert report["diversity"]["within"]["value"] == pytest.approx(0, abs=1e-6)
    assert report["diversity"]["between"]["value"] > 0.3
    assert report["failures"] == []


def test_a_random_model(drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(drawn.rgb(int(rng.integers(len(drawn))), 64)) for _ in prompts]

    def make_embeds(prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        return torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    model = replace(perfect_model, generate=generate, make_embeds=make_embeds)
    report = run(drawn, model, pixel_net, tmp_path, replace(OPTIONS, prompts=80))
    judged = report["generated"]["Pixels"]
    assert judged["chance"] == pytest.approx(1 / 12)
    figures = judged["verdicts"]["all"]["generated"]
    assert figures["subject"]["low"] <= judged["chance"] <= figures["subject"]["high"]
    # Only its prior is at fault.
    assert judged["verdicts"]["all"]["decoded"]["both"]["value"] == 1
    assert report["diversity"]["within"]["value"] > 0.3
    assert figures["style"]["value"] == pytest.approx(1 / 4, abs=0.15)
    assert report["prior"]["train"]["cosine"]["low"] < 0.1
    assert 10 <= len(report["failures"]) <= 20
    assert {failure["split"] for failure in report["failures"]} == {"train", "style", "tone", "unseen"}


def test_what_is_written(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    report = run(drawn, perfect_model, pixel_net, tmp_path)
    assert len(list((tmp_path / "images").glob("*.png"))) == OPTIONS.prompts
    assert len(list((tmp_path / "images-2").glob("*.png"))) == OPTIONS.varied
    assert sorted(report["grids"]) == ["style", "tone", "train", "unseen"]
    for path in report["grids"].values():
        with Image.open(tmp_path / path) as grid:
            assert grid.width > 800
    page, shown = report_markdown(report), Console(file=StringIO(), width=250)
    print_report(report, shown)
    for text in (page, shown.file.getvalue()):  # type: ignore[attr-defined]
        assert "Generated pictures, judged by Pixels" in text
        assert "FD-Pixels to all 96 real pictures" in text
        assert percent(report["retrieval"]["train"]["style"]["split"]["top1"]) in text
    assert "![seen](grids/train.png)" in page


def test_nothing_is_drawn_or_judged_for_no_prompts(
    drawn: Pictures, perfect_model: Model, tmp_path: Path
) -> None:
    report = run(drawn, perfect_model, None, tmp_path, replace(OPTIONS, prompts=0))
    assert "generated" not in report
    assert report_markdown(report)
    with pytest.raises(UserError, match="need a judge"):
        evaluate(drawn, perfect_model, [], tmp_path, tmp_path, OPTIONS)


def test_real_pictures_are_embedded_once(drawn: Pictures, perfect_model: Model, tmp_path: Path) -> None:
    calls = []
    options = replace(OPTIONS, prompts=0)

    def encode_image(pictures: np.ndarray) -> torch.Tensor:
        calls.append(len(pictures))
        return perfect_model.encode_image(pictures)

    model = replace(perfect_model, encode_image=encode_image)
    first = run(drawn, model, None, tmp_path, options)
    assert sum(calls) == len(drawn)
    assert run(drawn, model, None, tmp_path, options) == first
    assert sum(calls) == len(drawn)
    run(drawn, replace(model, clip_fingerprint="another"), None, tmp_path, options)
    assert sum(calls) == 2 * len(drawn)


def test_drawing_goes_on_where_it_stopped(drawn: Pictures, tmp_path: Path) -> None:
    asked, drawn_again = choose(drawn.records, "train", 7, seed=0), []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        drawn_again.extend(prompts)
        if len(drawn_again) > 4:
            raise KeyboardInterrupt
        return [Image.new("RGB", (8, 8), (seed % 256, 0, 0)) for seed in seeds]

    def draw(which: Sequence[Asked], settings: dict[str, Any]) -> list[np.ndarray]:
        return draw_pictures(which, generate, tmp_path, settings, batch_size=2, progress=False)

    with pytest.raises(KeyboardInterrupt):
        draw(asked, {"steps": 1})
    assert len(list(tmp_path.iterdir())) == 4
    drawn_again.clear()
    pictures = draw(asked[:6], {"steps": 1})
    assert drawn_again == [a.prompt for a in asked[4:6]]
    assert [int(picture[0, 0, 0]) for picture in pictures] == [a.seed % 256 for a in asked[:6]]
    drawn_again.clear()
    (tmp_path / f"train-{asked[1].key}.png").write_bytes(b"cut off")
    draw(asked[:2], {"steps": 1})
    assert drawn_again == [asked[1].prompt]
    drawn_again.clear()
    draw(asked[:2], {"steps": 2})
    assert drawn_again == [a.prompt for a in asked[:2]]


def test_the_floor_is_further_pictures_of_the_same_splits(drawn: Pictures, perfect_model: Model) -> None:
    asked = [
        a
        for split, n in (("train", 10), ("style", 2), ("unseen", 5))
        for a in choose(drawn.records, split, n, 0)
    ]
    floor = Floor.of(drawn, Drawn(asked, [], []), seed=0)
    splits = [drawn.records[i]["split"] for i in floor.further]
    # Of an unseen subject there are 8 pictures: 5 are asked, 3 are left.
    assert splits == [asked[i].split for i in floor.asked] == ["train"] * 10 + ["style"] * 2
    assert not {asked[i].index for i in floor.asked} & set(floor.further)
    assert len(set(floor.further)) == 12


def test_colours_are_asked_of_the_prompts_that_name_one(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    """Every picture is drawn blue; half of the prompts that name a colour ask for blue."""
    for record in drawn.records:
        number = int(record["subject"].split()[-1])
        if record["split"] == "train" and number < 8:
            record["attributes"] = {"colour": "blue" if number < 4 else "red"}
    model = replace(
        perfect_model,
        generate=lambda prompts, seeds: [Image.new("RGB", (64, 64), (40, 80, 220)) for _ in prompts],
        encode_image=lambda pictures: torch.ones(len(pictures), 64) if pictures[0, 0, 0, 2] == 220 else
        perfect_model.encode_image(pictures),
    )  # fmt: skip
    report = run(drawn, model, pixel_net, tmp_path, replace(OPTIONS, prompts=80))
    drawn_of_train = report["generated"]["Pixels"]["verdicts"]["train"]["generated"]["subject"]["n"]
    asked = choose(drawn.records, "train", drawn_of_train, 0)
    named = [drawn.records[a.index]["attributes"].get("colour") for a in asked]
    colour = report["pixels"]["colour"]
    assert list(report["pixels"]) == ["colour"]  # no prompt names a tone
    assert list(colour) == ["train", "all"]
    assert colour["train"] == colour["all"]
    assert colour["all"]["generated"]["n"] == sum(name is not None for name in named)
    assert colour["all"]["generated"]["value"] == pytest.approx(
        named.count("blue") / sum(name is not None for name in named)
    )


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("prompts", -1), ("queries", 0)])
def test_wrong_options(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} must .* got {value}"):
        Options(**{name: value})
