"""Choosing prompts and judging pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unclip.eval.choice import Pictures, captions_naming_style, choose, choose_stratified
from unclip.eval.features import FeatureNet
from unclip.eval.judge import Judge, Whitening


def features_of(data: Pictures, net: FeatureNet) -> torch.Tensor:
    return net([data.rgb(i, 32) for i in range(len(data))], progress=False)


def test_prompts_are_dealt_evenly_over_splits(drawn: Pictures) -> None:
    sizes = Counter(record["split"] for record in drawn.records)
    chosen = choose_stratified(drawn.records, 28, seed=0)
    assert {split: len(asked) for split, asked in chosen.items()} == {
        "train": 8,
        "style": 6,
        "tone": 7,
        "unseen": 7,
    }
    assert sizes["style"] == 6  # used up, so the others share what it lacks
    everything = choose_stratified(drawn.records, 10_000, seed=0)
    assert {split: len(asked) for split, asked in everything.items()} == dict(sizes)


def test_more_prompts_keep_those_asked_before(drawn: Pictures) -> None:
    few, many = (choose(drawn.records, "train", n, seed=1) for n in (5, 30))
    assert many[:5] == few
    assert choose(drawn.records, "train", 30, seed=2) != many
    assert len({asked.key for asked in many}) == 30
    assert all(asked.prompt.endswith(f", {asked.style}") for asked in many)


def test_heavier_pictures_are_chosen_first(drawn: Pictures) -> None:
    first = chain.from_iterable(choose(drawn.records, "train", 10, seed) for seed in range(200))
    dark = np.mean([asked.concept.startswith("dark") for asked in first])
    share = np.mean([record["weight"] < 1 for record in drawn.records if record["split"] == "train"])
    assert dark < share - 0.08


def test_captions_are_told_apart_by_their_form() -> None:
    record = {"captions": {"bare": "apple", "keywords": "apple", "style_comma": "apple, flat"}}
    assert captions_naming_style(record, wanted=True) == ["apple, flat"]
    assert captions_naming_style(record, wanted=False) == ["apple"]


def test_whitening_gives_every_direction_its_say() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([100.0, 1.0, 1.0, 1.0])
    x = torch.randn(500, 4, generator=generator) * scale + 7
    white = Whitening(x)(x)
    assert white.shape == (500, 4)
    assert_close(white.norm(dim=1), torch.ones(500))
    # Raw cosines hear the first direction alone; here it has no more than its shrunk share.
    assert white.var(0).max() < 0.75
    assert Whitening(x[:3])(x).shape == (500, 2)  # no more components than samples allow


def test_a_real_picture_is_judged_right_by_the_whole_gallery(drawn: Pictures, pixel_net: FeatureNet) -> None:
    features = features_of(drawn, pixel_net)
    asked = choose(drawn.records, "train", 40, seed=0)
    verdicts = Judge(features, drawn.records).verdicts(features[[a.index for a in asked]], asked)
    assert all(verdicts[name].all() for name in ("subject", "subject_top5", "concept", "style", "both"))
    assert verdicts["style_vote"].mean() > 0.9  # by colours alone, of other subjects


def test_verdicts_tell_subject_tone_and_style_apart(drawn: Pictures, pixel_net: FeatureNet) -> None:
    features = features_of(drawn, pixel_net)
    judge = Judge(features, drawn.records)
    asked = choose(drawn.records, "train", 1, seed=0)[0]
    shown = features[asked.index][None]
    cases = {
        "subject": replace(asked, subject="another", concept="another"),
        "concept": replace(asked, concept="light thing"),
        "style": replace(asked, style=next(s for s in judge.styles if s != asked.style)),
    }
    got = {wrong: judge.verdicts(shown, [case]) for wrong, case in cases.items()}
    assert not got["subject"]["subject"][0]
    assert got["concept"]["subject"][0]
    assert not got["concept"]["concept"][0]
    assert got["style"]["concept"][0]
    assert not got["style"]["style"][0]
    assert not got["style"]["style_vote"][0]
    assert not any(verdict["both"][0] for verdict in got.values())


def test_the_asked_picture_can_be_left_out(drawn: Pictures, pixel_net: FeatureNet) -> None:
    features = features_of(drawn, pixel_net)
    judge = Judge(features, drawn.records)
    rows = [0, 5, 9]
    assert judge.nearest(features[rows])[:, 0].tolist() == rows
    assert not (judge.nearest(features[rows], without=rows) == np.array(rows)[:, None]).any()


def test_random_features_are_right_by_chance(drawn: Pictures, pixel_net: FeatureNet) -> None:
    features = features_of(drawn, pixel_net)
    asked = choose(drawn.records, "train", 60, seed=0)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))
    verdicts = Judge(features, drawn.records).verdicts(features[order[: len(asked)]], asked)
    assert verdicts["subject"].mean() == pytest.approx(1 / 12, abs=0.1)
    assert verdicts["style"].mean() == pytest.approx(1 / 4, abs=0.15)
