"""Plain words: requests, styles, other languages and spellings become captions; captions stay as they are."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from unclip.data import CaptionedImages
from unclip.data.lexicon import colour_words, count_words, make_lexicon
from unclip.data.speech import STYLE_PHRASES
from unclip.data.words import LEXICON_FILE, Lexicon
from unclip.errors import UserError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "emoji-fixture.tar"
EMBEDDED = Path(__file__).parents[2] / "unclip" / "weights" / "emoji" / LEXICON_FILE


def record(subject: str, *captions: str, split: str = "train", style: str = "3D") -> dict[str, object]:
    return {
        "subject": subject,
        "style": style,
        "split": split,
        "captions": {str(i): caption for i, caption in enumerate((subject, *captions))},
    }


RECORDS = [
    record("red apple", "a red apple", "red apple, 3D", "red apple, fruit, 3D"),
    record("green apple", "a green apple", "green apple, noto emoji", style="noto"),
    record("dog", "a dog", "a 3D dog", "dog with sunglasses"),
    record("cat", "a cat", "black cat", "cat as a blob emoji", style="blob"),
    record("grey heart", *["a grey heart"] * 1, "grey heart, gray, 3D"),
    record("blue heart", *[f"grey heart number {i}" for i in range(12)]),
    record("rocket", "a rocket", "a 3D picture of a rocket", "rocket in 3D style", "a moon"),
    record("folded hands", "folded hands, bow, please"),
    record("otter", "an otter", split="unseen"),
    record("snake", "a snake", "white", "a house and a horse of a man"),
]
NAMES = {
    "es": {
        "1f34e": ("manzana roja", "red apple"),
        "1f34f": ("manzana verde", "green apple"),
        "1f436": ("perro", "dog"),
        "1f431": ("gato", "cat"),
        "2764": ("corazón rojo", "red heart"),
        "1f499": ("corazón azul", "blue heart"),
        "1f49a": ("corazón verde", "green heart"),
        "1f600": ("cara", "a subject that the data does not have"),
    },
    "de": {"1f431": ("Katze", "cat"), "1f436": ("Hund", "dog"), "1f40d": ("Rocket", "snake")},
    "ja": {
        "1f34e": ("赤リンゴ", "red apple"),
        "1f34f": ("青リンゴ", "green apple"),
        "1f436": ("イヌ", "dog"),
    },
    "hi": {"1f34e": ("लाल सेब, सेवफल", "red apple")},
    "da": {"1f436": ("hund", "dog"), "1f40d": ("slange", "snake")},
}


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return make_lexicon(RECORDS, NAMES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("I want a dog with sunglasses, like a 3D toy", "a dog with sunglasses, 3D"),
        ("could you draw me a picture of a red apple please", "a red apple"),
        ("Please draw a rocket.", "a rocket"),
        ("a cat, google emoji", "a cat, noto"),
        ("a cat, noto, google emoji", "a cat, noto"),
        ('"perro" (verde)', "green dog"),
        ("show me a cat in the style of a classic blob!", "a cat, blob"),
        ("a 3D render of a dog", "a dog, 3D"),
        ("a rocket in 3D", "a rocket, 3D"),
        ("a gray heart", "a grey heart"),
        ("two rockets", "two rocket"),
        ("a rocekt", "a rocket"),
        ("a rockt, 3D", "a rocket, 3D"),
        ("A RED APPEL", "A RED apple"),
        ("perro", "dog"),
        ("quiero un perro con gafas", "dog with"),
        ("un perro verde", "green dog"),
        ("a perro with sunglasses", "a dog with sunglasses"),
        ("manzana roja, 3D", "red apple, 3D"),
        ("CORAZON AZUL", "blue heart"),
        ("die Katze", "cat"),
        ("赤リンゴの絵を描いてください", "red apple"),
        ("लाल सेब", "red apple"),
    ],
)
def test_understood(lexicon: Lexicon, prompt: str, text: str) -> None:
    assert lexicon.understand(prompt).text == text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("an android", "an android"),
        ("a plastic toy", "a plastic toy"),
        ("a 3D toy", "a 3D toy"),
        ("a dog and a clay figure", "a dog and a clay figure"),
        ("a pictogram of a dog", "a dog, silhouette"),
        ("a dog as a pictogram", "a dog, silhouette"),
        ("a dog (clay figure)", "a dog, 3D"),
        ("a dog, plastic toy", "a dog, 3D"),
        ("a dog drawn like a clay figure", "a dog, 3D"),
        ("make a wish", "make a wish"),
        ("make me a dog", "a dog"),
        ("a gaol", "a gaol"),  # its other spelling is no caption's word, and "goal" is another word
        ("a rat and a gat", "a rat and a gat"),  # a hole in Dutch
        ("gat", "hole"),
    ],
)
def test_what_is_to_be_seen_is_not_taken_for_how(prompt: str, text: str) -> None:
    lexicon = Lexicon(
        dict.fromkeys("a an and dog rat toy figure goal hole of wish 3d silhouette".split(), 9),
        languages={"nl": {"gat": "hole"}},
        spellings={"gaol": "jail", "jail": "gaol"},
        styles={
            "3d": "3D",
            "3d toy": "3D",
            "plastic toy": "3D",
            "clay figure": "3D",
            "pictogram": "silhouette",
        },
        style_words=frozenset(["3d", "silhouette"]),
    )
    assert lexicon.understand(prompt).text == text


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog on the moon",  # nothing to mend
        "rocket",  # German for another thing, in this table: the captions know the word
        "a cat",
        "hosre",  # one edit from "horse" and nothing else, but ...
        "an otter",  # a held-out word is known as well
        "cow",  # too short to be mended
    ],
)
def test_what_is_known_or_doubtful_stays(lexicon: Lexicon, prompt: str) -> None:
    english = frozenset({"on", "the", "hosre"})  # ... it is a word
    assert replace(lexicon, english=english).understand(prompt).text == prompt


def test_a_tie_is_left_alone() -> None:
    words = {"horse": 3, "house": 3, "a": 9}
    assert Lexicon(words).understand("a hoose").text == "a hoose"  # "house" by one change, "horse" by two
    assert Lexicon({**words, "moose": 3}).understand("a hoose").text == "a hoose"
    assert Lexicon({**words, "moose": 4}).understand("a hoose").text == "a moose"


def test_the_language_that_explains_most_is_chosen(lexicon: Lexicon) -> None:
    assert lexicon.understand("hund").language == "de"  # both have it: the more widely spoken one
    both = lexicon.understand("slange hund")
    assert (both.language, both.text) == ("da", "snake dog")


def test_unknown_words_are_named(lexicon: Lexicon) -> None:
    found = lexicon.understand("a zzyzx rocket")
    assert (found.text, found.unknown) == ("a zzyzx rocket", ("zzyzx",))
    assert replace(lexicon, english=frozenset({"zzyzx"})).understand("a zzyzx rocket").unknown == ()
    # In a sentence of another language they are left out of the text, and still named.
    found = lexicon.understand("perro xilofón")
    assert (found.text, found.unknown) == ("dog", ("xilofon",))
    assert lexicon.nearest("rocekt", 1) == ["rocket"]


def test_every_caption_stays(lexicon: Lexicon) -> None:
    captions = {caption for each in RECORDS for caption in each["captions"].values()}  # type: ignore[attr-defined]
    assert {caption for caption in captions if lexicon.understand(caption).changed} == set()
    rules = Lexicon(lexicon.words, spellings=lexicon.spellings)  # the same without the kept captions
    assert rules.understand("grey heart, gray, 3D").changed, (
        "so it is the kept captions that protect this one"
    )


def test_captions_of_the_fixture_stay() -> None:
    records = CaptionedImages(FIXTURE, split=None).records
    lexicon = make_lexicon(records, NAMES)
    captions = {caption for each in records for caption in each["captions"].values()}
    assert len(captions) > 50
    assert [caption for caption in captions if lexicon.understand(caption).text != caption] == []


def test_embedded_lexicon_is_quick_and_keeps_captions() -> None:
    lexicon = Lexicon.load(EMBEDDED)
    assert EMBEDDED.stat().st_size < 1_500_000
    assert len(lexicon.languages) >= 20
    prompts = [
        "quiero un perro rojo con gafas de sol, por favor",
        "a red aple, like a 3D toy",
        "请画一只红色的狗",
    ]
    assert [lexicon.understand(prompt).text for prompt in prompts] == [
        "red dog with sunglasses",
        "a red apple, 3D",
        "red dog",
    ]
    started = time.process_time()
    for _ in range(20):
        for prompt in prompts:
            lexicon.understand(prompt)
    assert (time.process_time() - started) / 60 < 0.005
    # 2,000 captions of the real data would need the data: those that its builder had to protect are here.
    assert [caption for caption in sorted(lexicon.keep)[:2000] if lexicon.understand(caption).changed] == []
    for each in CaptionedImages(FIXTURE, split=None).records:
        for caption in each["captions"].values():
            assert lexicon.understand(caption).text == caption


def test_saved_and_loaded(lexicon: Lexicon, tmp_path: Path) -> None:
    lexicon.save(tmp_path / "a.json.gz")
    lexicon.save(tmp_path / "b.json.gz")
    assert Lexicon.load(tmp_path / "a.json.gz") == lexicon
    assert list(Lexicon.load(tmp_path / "a.json.gz").languages) == list(lexicon.languages)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_bad_file_is_one_line(lexicon: Lexicon, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no lexicon at"):
        Lexicon.load(tmp_path / "none.json.gz")
    path = tmp_path / "some.json.gz"
    lexicon.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:100], b"text", gzip.compress(b"[]"), gzip.compress(b'{"format": 2}')):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            Lexicon.load(path)
    path.write_bytes(gzip.compress(json.dumps({"format": 99}).encode()))
    with pytest.raises(UserError, match="format 99, expected 2"):
        Lexicon.load(path)


def test_counts_are_those_of_training() -> None:
    counts = count_words(RECORDS)  # type: ignore[arg-type]
    assert counts["otter"] == 0
    assert counts["dog"] == 4
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_colours_are_what_names_differ_in() -> None:
    found = colour_words({code: name for code, (name, _) in NAMES["es"].items()})
    assert found == {
        "rojo": "red", "azul": "blue", "verde": "green", "corazon": "heart", "roja": "red", "manzana": "apple",
    }  # fmt: skip
    japanese = colour_words({code: name for code, (name, _) in NAMES["ja"].items()})
    assert japanese == {"赤": "red", "青": "green", "リ ン ゴ": "apple"}


def test_every_way_to_name_a_style_is_a_word() -> None:
    """A string where a tuple belongs would make each of its letters a style."""
    assert all(
        isinstance(said, tuple) and all(len(each) > 1 for each in said) for said in STYLE_PHRASES.values()
    )
