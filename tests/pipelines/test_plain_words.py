"""A pipeline with a lexicon: prompts are understood before CLIP reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import EntryNotFoundError
from torch.testing import assert_close

from unclip.cli import main
from unclip.data.words import LEXICON_FILE, Lexicon
from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.assemble import assemble
from unclip.pipelines.loading import find_lexicon

LEXICON = Lexicon(
    {"a": 9, "red": 5, "apple": 5, "cat": 5, "noto": 3, "3d": 3, "small": 1},
    languages={"es": {"manzana": "apple", "roja": "red", "gato": "cat"}},
    helpers={"es": {"una": ""}},
    styles={"google emoji": "noto"},
)


def draw(pipe: UnCLIPTextToImagePipeline, prompt: str, **options: object) -> torch.Tensor:
    seed = torch.Generator().manual_seed(0)
    return pipe(prompt, size=16, generator=seed, output_type="pt", **options).images


def test_prompts_are_understood(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    plain = draw(tiny_pipeline, "red apple", negative_prompt="cat")
    foreign = draw(tiny_pipeline, "una manzana roja", negative_prompt="gato")
    assert (plain - foreign).abs().max() > 1e-3, "without a lexicon the words are not known"
    tiny_pipeline.lexicon = LEXICON
    assert_close(draw(tiny_pipeline, "una manzana roja", negative_prompt="gato"), plain)
    assert_close(draw(tiny_pipeline, "una manzana roja", negative_prompt="cat", plain_words=True), plain)
    assert_close(draw(tiny_pipeline, "una manzana roja", negative_prompt="gato", plain_words=False), foreign)
    assert_close(draw(tiny_pipeline, "red apple", negative_prompt="cat"), plain)


def test_a_model_may_turn_it_off(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    off = UnCLIPTextToImagePipeline(**tiny_pipeline.components, plain_words=False)
    off.lexicon = LEXICON
    assert off.in_plain_words(["manzana"], None) == ["manzana"]
    assert off.in_plain_words(["manzana"], True) == ["apple"]
    with pytest.raises(UserError, match="plain_words must be True, False or None, got 'yes'"):
        draw(off, "a cat", plain_words="yes")


def test_the_lexicon_of_a_hub_repository_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, **given: object) -> str:
        asked.append((repository, name, given))
        if repository == "some/without":
            raise EntryNotFoundError("no such file")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_lexicon("some/model", revision="v1", torch_dtype=None) == tmp_path / LEXICON_FILE
    assert asked == [("some/model", LEXICON_FILE, {"revision": "v1"})]
    assert find_lexicon("some/without") is None


def test_lexicon_lies_with_the_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(tiny_model)
    assert pipe.lexicon is None
    assert [each.text for each in pipe.understand(["manzana"])] == ["manzana"]
    LEXICON.save(tiny_model / LEXICON_FILE)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(tiny_model)
    assert pipe.lexicon == LEXICON
    pipe.save_pretrained(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    again = UnCLIPTextToImagePipeline.from_pretrained("copy")
    monkeypatch.chdir(tiny_model)  # it is read when it is first needed
    assert again.lexicon == LEXICON
    # By diffusers' own loader, too.
    assert DiffusionPipeline.from_pretrained(tmp_path / "copy").lexicon == LEXICON


def test_assembled_with_a_lexicon(tiny_model: Path, tmp_path: Path) -> None:
    LEXICON.save(tmp_path / "words.json.gz")
    parts = {name: tiny_model / name for name in ("clip", "prior", "decoder")}
    out = assemble(**parts, out=tmp_path / "model", lexicon=tmp_path / "words.json.gz")
    assert UnCLIPTextToImagePipeline.from_pretrained(out).lexicon == LEXICON
    with pytest.raises(UserError, match="no lexicon at"):
        assemble(**parts, out=tmp_path / "other", lexicon=tmp_path / "none")
    assert not (tmp_path / "other").exists()


def test_the_command_line_says_what_it_understood(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LEXICON.save(tiny_model / LEXICON_FILE)
    command = ["generate", "una manzana roja", "a zzyzx apple", "a cat", "--size", "16", "--no-progress",
               "--model", str(tiny_model), "-o", str(tmp_path / "out")]  # fmt: skip
    for extra, expected in (
        (
            [],
            [
                'understood "una manzana roja" (es) as "red apple"',
                "\"a zzyzx apple\"; unknown: 'zzyzx' (nearest known: apple, cat, red)",
            ],
        ),
        (["--no-plain-words"], []),
    ):
        with pytest.raises(SystemExit) as end:
            main([*command, *extra])
        assert end.value.code == 0
        lines = [
            line for line in capfd.readouterr().err.splitlines() if "understood" in line or "unknown" in line
        ]
        assert lines == expected
