"""Copies are found, blurred ones too, new pictures are not; the threshold is the quantile that it is said to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from unclip.errors import UserError
from unclip.eval import memorisation
from unclip.eval.choice import Pictures
from unclip.eval.features import FeatureNet
from unclip.eval.memorisation import (
    Measure,
    Options,
    between_subjects,
    evaluate_memorisation,
    feature_measure,
    ink,
    known_copies,
    memorisation_section,
    memorisation_tables,
    nearest,
    nearest_other,
    pixel_measure,
    read_memorisation,
    similarity,
)
from unclip.eval.model import Model

OPTIONS = Options(prompts=24, size=64, batch_size=16, top=6, progress=False)


def trained_rows(data: Pictures) -> np.ndarray:
    return np.array([i for i, record in enumerate(data.records) if record["split"] == "train"])


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def run(data: Pictures, model: Model, net: FeatureNet, folder: Path) -> dict[str, Any]:
    report = evaluate_memorisation(data, model, net, folder, folder / "images", folder / "cache", OPTIONS)
    return json.loads(json.dumps(report))  # plain numbers only


def test_similarity_is_one_minus_the_relative_error() -> None:
    a, b = torch.rand(3, 5), torch.rand(4, 5)
    expected = torch.stack(
        [torch.stack([1 - (x - y).square().sum() / (x @ x + y @ y) for y in b]) for x in a]
    )
    torch.testing.assert_close(similarity(a, b), expected)
    unit = torch.nn.functional.normalize(a, dim=-1)
    torch.testing.assert_close(similarity(unit, unit), unit @ unit.T)
    # Two thin icons on white are not alike, however small their error over all pixels.
    first, second = (np.full((64, 64, 3), 255, np.uint8) for _ in range(2))
    first[10:12], second[30:32] = 0, 0
    assert similarity(ink([first]), ink([second])).item() == 0
    assert similarity(ink([first]), ink([first])).item() == pytest.approx(1)
    white = np.full((8, 8, 3), 255, np.uint8)
    assert similarity(ink([white]), ink([first])).item() == 0  # no division by nought
    assert similarity(ink([white]), ink([white])).item() == 0


def test_ink_averages_areas() -> None:
    picture = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    expected = 1 - picture.reshape(32, 2, 32, 2, 3).astype(np.float32).mean((1, 3)) / 255
    np.testing.assert_allclose(ink([picture])[0].view(32, 32, 3).numpy(), expected, atol=1e-6)
    # The same picture at another size has the same ink.
    torch.testing.assert_close(ink([picture.repeat(4, 0).repeat(4, 1)]), ink([picture]))


def test_a_copy_is_found_a_blurred_one_too_a_new_picture_not(drawn: Pictures, tmp_path: Path) -> None:
    trained = trained_rows(drawn)
    measure = pixel_measure(drawn, tmp_path, progress=False)
    threshold = np.quantile(between_subjects(measure, drawn, trained, trained), 0.99)
    source = int(trained[5])
    picture = drawn.rgb(source, 256)
    (new,) = (i for i, record in enumerate(drawn.records) if record["key"] == "flat_11_0")
    asked = [picture, blurred(picture, 2), drawn.rgb(new, 256)]
    found = nearest(measure, measure.describe(asked), trained)
    assert found.row.tolist()[:2] == [source, source]
    assert found.similarity[0] == pytest.approx(1, abs=1e-4)
    assert (found.similarity > threshold).tolist() == [True, True, False]


def test_the_threshold_is_the_stated_quantile(drawn: Pictures, pixel_net: FeatureNet, tmp_path: Path) -> None:
    trained = trained_rows(drawn)
    measure = feature_measure(drawn, pixel_net, tmp_path, progress=False)
    between = between_subjects(measure, drawn, trained, trained)
    vectors = measure.gallery.double().numpy()
    by_hand = []
    for i in trained:
        others = [j for j in trained if drawn.records[j]["subject"] != drawn.records[i]["subject"]]
        by_hand.append(max(vectors[i] @ vectors[j] for j in others))
    np.testing.assert_allclose(between, by_hand, atol=1e-5)


def test_a_picture_does_not_find_itself(drawn: Pictures, tmp_path: Path) -> None:
    trained = trained_rows(drawn)
    measure = pixel_measure(drawn, tmp_path, progress=False)
    found = nearest_other(measure, trained, trained)
    assert not (found.row == trained).any()
    assert np.isin(found.row, trained).all()
    # Where nothing is forbidden, each finds itself: the measure can tell them apart.
    assert (nearest(measure, measure.gallery[trained], trained).row == trained).all()


def test_many_queries_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    measure = Measure("any", gallery, lambda pictures: gallery)
    rows, trained = np.arange(50), np.arange(10, 50)
    whole = nearest_other(measure, rows, trained)
    monkeypatch.setattr(memorisation, "_CHUNK", 7)
    parts = nearest_other(measure, rows, trained)
    assert parts.row.tolist() == whole.row.tolist()
    np.testing.assert_allclose(parts.similarity, whole.similarity, rtol=1e-5)


def test_a_model_that_copies(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    # Of the size at which the real pictures are judged: the features of a smaller one differ.
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [
            each.resize((256, 256), Image.Resampling.NEAREST)
            for each in perfect_model.generate(prompts, seeds)
        ]

    report = run(drawn, replace(perfect_model, generate=generate), pixel_net, tmp_path)
    assert report["data"]["splits"]["train"] == len(trained_rows(drawn))
    for part in report["measures"].values():
        train = part["splits"]["train"]["generated"]
        assert train["median"]["value"] == pytest.approx(1, abs=1e-3)
        assert train["copies"]["value"] == train["asked_picture"]["value"] == 1
        # It draws the true held-out pictures: they are no copies, and compare as the real ones do.
        assert part["splits"]["unseen"]["generated"]["copies"]["value"] == 0
        assert part["splits"]["unseen"]["real"]["copies"]["value"] == 0
        assert part["splits"]["unseen"]["generated"]["same_subject"]["value"] == 0
        assert "asked_picture" not in part["splits"]["style"]["generated"]
        assert part["threshold"] == part["between_subjects"]["0.99"]
        assert part["splits"]["all"]["generated"]["copies"]["n"] == OPTIONS.prompts
        assert "real" not in part["splits"]["all"]
    assert report["measures"]["pixels"]["known_copies"]["soft"]["nearest"]["value"] == 1
    pairs = report["sheet"]["pairs"]
    assert len(pairs) == OPTIONS.top
    assert {pair["split"] for pair in pairs} == {"train"}
    assert [pair["similarity"] for pair in pairs] == sorted((p["similarity"] for p in pairs), reverse=True)
    with Image.open(tmp_path / "most-similar.png") as sheet:
        assert sheet.width > 800


def test_a_model_that_draws_something_new(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        noise = [
            np.random.default_rng(seed).integers(256, size=(16, 16, 3), dtype=np.uint8) for seed in seeds
        ]
        return [Image.fromarray(each.repeat(4, 0).repeat(4, 1)) for each in noise]

    report = run(drawn, replace(perfect_model, generate=generate), pixel_net, tmp_path)
    splits = report["measures"]["pixels"]["splits"]
    assert splits["all"]["generated"]["copies"]["value"] == 0
    assert splits["train"]["generated"]["asked_picture"]["value"] < 0.5


def test_pictures_of_the_other_evaluation_are_used_again(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    calls = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        calls.extend(prompts)
        return perfect_model.generate(prompts, seeds)

    from unclip.eval import emoji

    model = replace(perfect_model, generate=generate)
    same = emoji.Options(prompts=24, size=64, queries=5, prior_queries=5, grid=0, progress=False)
    emoji.evaluate(drawn, model, [pixel_net], tmp_path, tmp_path / "cache", same)
    assert len(calls) == 24
    first = run(drawn, model, pixel_net, tmp_path)
    assert len(calls) == 24
    assert run(drawn, model, pixel_net, tmp_path) == first  # and the features kept give the same figures


def test_known_copies_are_near_but_not_equal() -> None:
    picture = (
        np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    )
    copies = known_copies([picture])
    likeness = {name: similarity(ink([picture]), ink(made)).item() for name, made in copies.items()}
    assert 0.9 < likeness["grainy"] < likeness["soft"] < 1


def test_what_is_shown(drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path) -> None:
    report = run(drawn, perfect_model, pixel_net, tmp_path)
    pixels, features = memorisation_tables(report)
    assert (pixels.title, features.title) == tuple(
        f"Nearest training picture by {name}" for name in ("pixels", "features")
    )
    (train,) = [row for row in pixels.rows if row[:2] == ("seen", "generated")]
    assert train[-1].startswith("100 %")
    assert f"{report['measures']['pixels']['threshold']:.4f}, the 99 % quantile" in pixels.note
    text = memorisation_section(report)
    assert "Of 24 generated pictures are copies" in text
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read_memorisation(tmp_path / "report.json", "perfect") == report
    with pytest.raises(UserError, match="is about model perfect, the card's report about another"):
        read_memorisation(tmp_path / "report.json", "another")
    (tmp_path / "report.json").write_text('{"settings": {}}')
    with pytest.raises(UserError, match="is no report of `unclip eval memorisation`"):
        read_memorisation(tmp_path / "report.json", "perfect")
    with pytest.raises(UserError, match="cannot read"):
        read_memorisation(tmp_path / "nothing.json", "perfect")


def test_it_needs_training_pictures(
    drawn: Pictures, perfect_model: Model, pixel_net: FeatureNet, tmp_path: Path
) -> None:
    drawn.records = [record for record in drawn.records if record["split"] != "train"]
    with pytest.raises(UserError, match="needs training pictures of two subjects"):
        run(drawn, perfect_model, pixel_net, tmp_path)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(("name", "value"), [("prompts", 0), ("batch_size", 0), ("seed", -1), ("top", -1)])
def test_wrong_options(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} must be .* got {value}"):
        Options(**{name: value})
