"""The gallery's list is well formed and checked against the data; it is drawn whole, once, and in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unclip.clip.retrieval import paraphrases
from unclip.errors import UserError
from unclip.eval.cli import app
from unclip.eval.gallery import Prompt, Section, check_splits, draw_gallery, read_seeds, sections
from unclip.eval.model import Model

HELD_OUT = Section("style", "A style held out", "style", (Prompt("a 3D red apple", "3d_1f34e"),))


def test_the_list_is_well_formed() -> None:
    whole = sections()
    assert [each.name for each in whole] == [
        "seen", "style", "tone", "attribute", "relations", "paraphrases", "languages"
    ]  # fmt: skip
    assert [each.split for each in whole[:4]] == ["train", "style", "tone", "attribute"]
    texts = [prompt.text for section in whole for prompt in section.prompts]
    assert len(texts) == len(set(texts))
    for section in whole:
        assert 6 <= len(section.prompts) <= 8
        for prompt in section.prompts:
            assert prompt.text == prompt.text.strip() != ""
            assert bool(prompt.key) is bool(section.split)
            assert prompt.grid_caption.isascii()
            assert prompt.grid_caption != ""
    by_name = {section.name: section for section in whole}
    assert all("skin tone" in prompt.text for prompt in by_name["tone"].prompts)
    known = {each["text"]: each["subject"] for each in paraphrases()}
    assert all(known[prompt.text] == prompt.note for prompt in by_name["paraphrases"].prompts)
    assert all(": " in prompt.note for prompt in by_name["languages"].prompts)
    sides = (" left of ", " right of ", " above ", " below ")
    assert all(any(side in prompt.text for side in sides) for prompt in by_name["relations"].prompts)


def test_sections_are_chosen_by_name() -> None:
    assert [each.name for each in sections(["languages", "seen"])] == ["seen", "languages"]
    with pytest.raises(UserError, match="no section 'best' in the gallery; choose from: seen, style"):
        sections(["best"])


def test_held_out_prompts_are_checked_against_the_data() -> None:
    record: dict[str, Any] = {
        "key": "3d_1f34e",
        "split": "style",
        "captions": {"style_article": "a 3D red apple"},
    }
    check_splits([HELD_OUT], [record])
    with pytest.raises(UserError, match="has that picture in split train"):
        check_splits([HELD_OUT], [record | {"split": "train"}])
    with pytest.raises(UserError, match="captioned \\['an apple'\\]"):
        check_splits([HELD_OUT], [record | {"captions": {"bare": "an apple"}}])
    with pytest.raises(UserError, match="the data has no picture '3d_1f34e'"):
        check_splits([HELD_OUT], [])


def test_seeds() -> None:
    assert read_seeds("0 1,7") == [0, 1, 7]
    for wrong in ("", "-1", "one", "1 1", "1.5"):
        with pytest.raises(UserError, match="--seeds takes different whole numbers from 0"):
            read_seeds(wrong)


def test_every_picture_is_shown_where_it_belongs(perfect_model: Model, tmp_path: Path) -> None:
    calls: list[str] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        calls.extend(prompts)
        return [
            Image.new("RGB", (64, 64), (10 * len(p), 50 * s, 0)) for p, s in zip(prompts, seeds, strict=True)
        ]

    two = [
        replace(HELD_OUT, prompts=(Prompt("aa"), Prompt("bbbb", note="four b"))),
        Section("other", "Other", "", (Prompt("cccccccc"),)),
    ]
    model = replace(perfect_model, generate=generate)
    path = draw_gallery(two, [0, 3], model, tmp_path, 64, batch_size=4, progress=False)
    assert calls == ["aa", "aa", "bbbb", "bbbb", "cccccccc", "cccccccc"]
    with Image.open(tmp_path / "style.webp") as opened:
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    for row, letters in enumerate((2, 4)):
        for column, seed in enumerate((0, 3)):
            pixel = sheet[26 + row * 154 + 18 + 64, 8 + column * 136 + 64]
            np.testing.assert_allclose(pixel, (10 * letters, 50 * seed, 0), atol=8)
    text = path.read_text()
    assert "Nothing here was picked" in text
    assert "(0, 3)" in text
    assert "- bbbb  (four b)" in text
    assert text.index("](style.webp)") < text.index("](other.webp)")
    calls.clear()
    draw_gallery(two, [0, 3, 4], model, tmp_path, 64, batch_size=4, progress=False)
    assert calls == ["aa", "bbbb", "cccccccc"]  # the new seed alone
    calls.clear()
    draw_gallery(two[1:], [0], replace(model, settings={"steps": 2}), tmp_path, 64, progress=False)
    assert calls == ["cccccccc"]


@pytest.mark.filterwarnings("ignore:text longer than")
def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    arguments = ["--model", tiny_model, "--output", out, "--size", 16, "--section", "seen", "--seeds", "0 1"]
    result = CliRunner().invoke(app, ["gallery", *map(str, arguments)], catch_exceptions=False)
    assert result.stdout.strip() == str(out / "gallery.md")
    assert sorted(path.name for path in out.iterdir()) == ["gallery.md", "images", "seen.webp"]
    assert len(list((out / "images").iterdir())) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "x"], "--seeds takes"),
        (["--section", "best"], "no section 'best'"),
        (["--data", "nowhere"], "no data at nowhere"),
        (["--size", "100"], "size 100 is not offered"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gallery"
    given = ["gallery", "--model", str(tiny_model), "--output", str(out), *arguments]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not out.exists()
