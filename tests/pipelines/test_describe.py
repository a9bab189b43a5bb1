"""What CLIP sees: the nearest texts first, with their cosines; the style against the mean picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from unclip.clip import FrozenCLIP
from unclip.data import CaptionedImages
from unclip.data.words import LEXICON_FILE, Lexicon
from unclip.errors import UserError
from unclip.pipelines.describe import SUBJECTS, WORDS, Candidates, describe
from unclip.pipelines.loading import EMBEDDED
from unclip.pipelines.reading import read_pictures

CAPTIONS = ["red apple", "green pear", "a house", "a cat on the left", "blue heart", "small cat"]
WORDS_SEEN = ["apple", "pear", "cat", "heart"]


class Planted:
    """A text tower whose every word has an axis of its own; a text is the direction of the sum of its words."""

    axes = "apple pear house woman flat 3D noto dark-skinned light-skinned".split()

    def __init__(self, **mean: float) -> None:
        self.embed_dim = len(self.axes)
        self.embed_mean = self.picture(**mean)
        self.encoded: list[str] = []

    def picture(self, **parts: float) -> Tensor:
        """The sum of some axes, named with _ for - and 3D as threeD."""
        names = {name.replace("_", "-").replace("threeD", "3D"): size for name, size in parts.items()}
        return torch.tensor([names.get(axis, 0.0) for axis in self.axes])

    def encode_text(self, texts: Sequence[str]) -> Any:
        self.encoded += texts
        rows = [[float(axis in text.replace(",", "").split()) for axis in self.axes] for text in texts]
        return SimpleNamespace(embeds=F.normalize(torch.tensor(rows), dim=-1))


def styled() -> Candidates:
    return Candidates(
        ["apple", "pear", "house", "woman"],
        words=["apple", "woman"],
        styles=["flat", "3D", "noto"],
        variants={"woman": ["light-skinned woman", "dark-skinned woman"]},
    )


def see(clip: Planted, candidates: Candidates, top: int = 5, **parts: float) -> Any:
    return describe(clip, clip.picture(**parts)[None], candidates, top)[0]  # type: ignore[arg-type]


def test_the_embedding_of_a_text_is_described_by_it(tiny_clip: FrozenCLIP) -> None:
    candidates = Candidates(CAPTIONS, words=WORDS_SEEN)
    embeds = tiny_clip.encode_text(CAPTIONS).embeds
    for i, found in enumerate(describe(tiny_clip, embeds * 7, candidates, top=6)):  # of any norm
        cosines = dict(zip(CAPTIONS, (embeds @ embeds[i]).tolist(), strict=True))
        assert [text for text, _ in found.captions] == sorted(CAPTIONS, key=lambda text: -cosines[text])
        assert found.captions[0][0] == CAPTIONS[i]
        assert_close(dict(found.captions), cosines, rtol=0, atol=1e-6)  # sums of float32, in another order
        assert found.captions[0][1] == pytest.approx(1)
    for word in WORDS_SEEN:
        (found,) = describe(tiny_clip, tiny_clip.encode_text([word]).embeds, candidates, top=2)
        assert found.words[0] == (word, pytest.approx(1))
        assert (len(found.captions), len(found.words)) == (2, 2)


def test_a_picture_does_not_depend_on_its_batch(tiny_clip: FrozenCLIP) -> None:
    candidates = Candidates(CAPTIONS, words=WORDS_SEEN, styles=["flat", "3D"])
    embeds = torch.randn(3, tiny_clip.embed_dim, generator=torch.Generator().manual_seed(0))
    together = describe(tiny_clip, embeds, candidates)
    for row, found in zip(embeds, together, strict=True):
        assert describe(tiny_clip, row[None], candidates) == [found]


def test_subject_style_and_score() -> None:
    found = see(Planted(), styled(), pear=1, threeD=0.5)
    assert found.captions[0] == ("pear, 3D", pytest.approx(1.5 / (2 * 1.25) ** 0.5))
    assert [text for text, _ in found.captions] == ["pear, 3D", "apple, 3D", "house, 3D", "woman, 3D"]
    assert [score for _, score in found.captions[1:]] == pytest.approx([0.5 / (2 * 1.25) ** 0.5] * 3)
    assert dict(found.words) == {"apple": 0, "woman": 0}


def test_a_style_is_compared_with_the_mean_picture() -> None:
    """A space in which every picture is near "flat": what is nearer to "noto" than pictures usually are is noto."""
    parts = {"apple": 1.0, "flat": 0.8, "noto": 0.5}
    assert see(Planted(), styled(), **parts).captions[0][0] == "apple, flat"
    score = 1.5 / (2 * (1 + 0.64 + 0.25)) ** 0.5
    assert see(Planted(flat=0.8), styled(), **parts).captions[0] == ("apple, noto", pytest.approx(score))
    assert see(Planted(flat=0.8), styled(), apple=1, flat=1.5).captions[0][0] == "apple, flat"


def test_variants_take_the_place_of_what_lies_further() -> None:
    toned = see(Planted(), styled(), woman=1, dark_skinned=1, flat=1)
    assert toned.captions[0] == ("dark-skinned woman, flat", pytest.approx(1))
    assert toned.captions[1][0] == "apple, flat"  # has no variants
    assert see(Planted(), styled(), woman=1, flat=1).captions[0] == ("woman, flat", pytest.approx(1))
    assert len(toned.captions) == 4  # no subject twice


def test_only_the_nearest_subjects_are_tried_in_styles() -> None:
    clip = Planted()
    many = [f"apple {i}" for i in range(3 * SUBJECTS)]
    see(clip, Candidates(many, styles=["flat", "3D", "noto"]), apple=1)
    assert (
        len(clip.encoded) == 3 * SUBJECTS + 3 * SUBJECTS
    )  # each alone, and SUBJECTS of them in three styles


def test_texts_are_encoded_once() -> None:
    clip, other, candidates = Planted(), Planted(), styled()
    see(clip, candidates, apple=1, flat=1)
    see(clip, candidates, pear=1, noto=1)
    assert len(clip.encoded) == len(set(clip.encoded))
    count = len(clip.encoded)
    see(clip, candidates, pear=2, noto=1)
    assert len(clip.encoded) == count
    see(other, candidates, pear=1, noto=1)
    assert "pear, noto" in other.encoded  # another CLIP, other embeddings


def test_candidates_of_the_embedded_model() -> None:
    candidates = Candidates.of_lexicon(Lexicon.load(EMBEDDED / LEXICON_FILE))
    assert {"pizza", "woman firefighter", "flag of Japan", "paw prints"} <= set(candidates.captions)
    assert len(candidates.captions) == len(set(candidates.captions)) > 1500
    assert candidates.styles == sorted("3D blob emojione firefox flat glossy noto silhouette twemoji".split())
    assert len(candidates.words) == WORDS
    assert {"heart", "flag", "woman"} <= set(candidates.words)
    assert {"the", "with", "emoji", "noto", "3d", "dark-skinned"}.isdisjoint(candidates.words)
    assert candidates.variants["firefighter"][0] == "light-skinned firefighter"
    assert {"thumbs up", "man detective", "detective"} <= candidates.variants.keys()
    assert {"pizza", "dog face", "flag of Japan", "house"}.isdisjoint(candidates.variants)


def test_the_embedded_clip_knows_its_pictures(real: CaptionedImages) -> None:
    """Pictures it was trained on, among their own subjects in two styles: chance is 1 in some hundred."""
    clip = FrozenCLIP.from_pretrained(EMBEDDED / "clip")
    rows = range(0, len(real), max(1, len(real) // 40))
    subjects = sorted({record["subject"] for record in real.records})
    pictures = read_pictures([real.rgba(i, 96) for i in rows], 96)
    found = describe(clip, clip.encode_image(pictures.rgb), Candidates(subjects), top=5)
    right = [real.records[i]["subject"] in dict(each.captions) for i, each in zip(rows, found, strict=True)]
    assert sum(right) / len(right) > 0.8


def test_captions_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("apple\n\n  woman, flat \napple\n", encoding="utf-8")
    candidates = Candidates.read(file)
    assert candidates.captions == ["apple", "woman, flat"]
    found = see(Planted(), candidates, woman=1, flat=1)
    assert found.captions == [("woman, flat", pytest.approx(1)), ("apple", 0)]
    assert found.words == []


def test_mistakes(tmp_path: Path, tiny_clip: FrozenCLIP) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read captions from .*none.txt"):
        Candidates.read(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"cannot read captions from .*binary.txt"):
        Candidates.read(tmp_path / "binary.txt")
    with pytest.raises(UserError, match="holds no caption: give one in each line"):
        Candidates.read(tmp_path / "empty.txt")
    for captions in ([], ["a", " "], "apple"):
        with pytest.raises(UserError, match="give at least one"):
            Candidates(captions)
    with pytest.raises(UserError, match=r"image_embeds must be \[B, 12\], got \[12\]"):
        describe(tiny_clip, torch.ones(12), Candidates(["a cat"]))
    with pytest.raises(UserError, match="top must be 1 or more, got 0"):
        describe(tiny_clip, torch.ones(1, 12), Candidates(["a cat"]), top=0)
