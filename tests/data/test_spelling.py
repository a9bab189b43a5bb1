"""Words by their letters."""

from __future__ import annotations

import pytest

from unclip.data.spelling import correct, damerau, edits, plural, plurals, singular


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("rocket", "rocekt", 1), ("horse", "house", 1), ("apple", "aple", 1),
     ("ab", "ba", 1), ("kitten", "sitting", 3), ("ca", "abc", 3)],
)  # fmt: skip
def test_distance(a: str, b: str, distance: int) -> None:
    assert damerau(a, b) == damerau(b, a) == distance


def test_edits_are_all_words_one_edit_away() -> None:
    made = set(edits("cab"))
    assert {damerau("cab", each) for each in made} <= {0, 1}
    # 4 x 26 put in (3 doubled letters fall together), 3 left out, 3 x 25 changed, 2 swapped, itself.
    assert len(made) == (4 * 26 - 3) + 3 + 3 * 25 + 2 + 1


def test_correct() -> None:
    words = {"apple": 5, "ample": 5, "rocket": 2, "pocket": 9, "cat": 9}
    assert correct("rocekt", words) == "rocket"
    assert correct("ocket", words) == "pocket"  # the more frequent
    assert correct("aplle", {"apple": 5, "ample": 5}) == "apple"
    assert correct("aple", words) is None  # "apple" and "ample" are equally near and frequent
    assert correct("caat", words) == "cat"
    assert correct("cet", words) is None  # too short


def test_number() -> None:
    words = {"dog": 1, "box": 1, "berry": 1, "leaf": 1, "knife": 1, "grapes": 1, "glass": 1}
    assert [singular(each, words) for each in ("dogs", "boxes", "berries", "leaves", "knives", "cats", "glass")] == [
        "dog", "box", "berry", "leaf", "knife", None, None,
    ]  # fmt: skip
    assert plural("grape", words) == "grapes"
    assert plural("dog", words) is None
    assert [plurals(each)[0] for each in ("dog", "box", "berry", "key", "leaf", "knife")] == [
        "dogs", "boxes", "berries", "keys", "leaves", "knives",
    ]  # fmt: skip
