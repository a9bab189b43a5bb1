"""Measuring plain words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unclip.data.spelling import damerau
from unclip.data.words import Lexicon
from unclip.eval.tables import to_markdown
from unclip.eval.words import make_cases, measure, one_picture_each, table, unknown_tags, without_accents

SUBJECTS = ["apple", "rocket", "theater", "otter", "dog"]
RECORDS = [
    {
        "subject": subject,
        "concept": subject,
        "split": "unseen" if subject == "rocket" else "train",
        "captions": {"bare": subject, "article": f"a {subject}"},
    }
    for subject in SUBJECTS
]
NAMES = {"es": {"1": ("Perro", "dog"), "2": ("niño", "apple"), "3": ("nada", "not in the data")}}
LEXICON = Lexicon(
    dict.fromkeys(["a", *SUBJECTS], 1),
    languages={"es": {"perro": "dog", "nino": "apple"}},
    spellings={"theatre": "theater", "theater": "theatre"},
    styles={"3d toy": "3D", "3d": "3D"},
    style_words=frozenset(["3d"]),
)


def embed(texts: Sequence[str]) -> Tensor:
    """A CLIP that sees a subject where its name stands, and nothing else."""
    return torch.tensor([[float(subject in text) for subject in SUBJECTS] + [0.1] for text in texts])


def test_cases_are_what_they_say() -> None:
    cases = make_cases(RECORDS, LEXICON, NAMES, count=5, seed=0)
    (typo,) = cases["typing errors"]  # one held-out subject
    assert (typo.text, damerau(typo.prompt, "rocket")) == ("rocket", 1)
    assert [(case.prompt, case.text) for case in cases["spelling"]] == [("theatre", "theater")]
    assert {case.prompt for case in cases["plurals"]} == {"apples", "rockets", "theaters", "otters", "dogs"}
    assert all(case.subject in case.prompt for case in cases["sentences"])
    assert {case.prompt for case in cases["es"]} == {"Perro", "niño"}
    assert [case.prompt for case in cases["es, lower case, no accents"]].count("nino") == 1
    assert make_cases(RECORDS, LEXICON, NAMES, count=5, seed=0) == cases


def test_measured_against_a_transparent_clip() -> None:
    cases = make_cases(RECORDS, LEXICON, NAMES, count=5, seed=0)

    def understand(prompts: Sequence[str]) -> list:
        return [LEXICON.understand(prompt) for prompt in prompts]

    gallery = torch.nn.functional.normalize(embed(SUBJECTS), dim=-1)
    report = measure(cases, understand, embed, gallery, SUBJECTS)
    assert report["es"]["typed_top1"]["value"] == 0
    assert report["es"]["plain_top1"]["value"] == report["es"]["exact"]["value"] == 1
    assert report["plurals"]["typed_top1"]["value"] == report["plurals"]["exact"]["value"] == 1
    assert report["spelling"]["typed_top1"]["value"] == 0
    assert report["spelling"]["plain_top1"]["value"] == 1

    tags = unknown_tags({"es": ["mascota", "el perro", "perro"]}, understand)
    assert tags["es"]["value"] == 1 / 3  # "el" is no word of this lexicon
    page = to_markdown(table(report, tags))
    assert "| es | 2 | 100 %" in page
    assert page.count("\n| ") == 2 + len(report)


def test_one_picture_of_each_subject_without_a_tone_if_there_is_one() -> None:
    records = [
        {"subject": "man", "concept": "man with dark skin tone"},
        {"subject": "man", "concept": "man"},
        {"subject": "nose", "concept": "nose with dark skin tone"},
    ]
    assert one_picture_each(records) == ([1, 2], ["man", "nose"])


def test_without_accents() -> None:
    assert without_accents("Éléphant") == "elephant"
    assert without_accents("कुत्ता") == "कुत्ता"
