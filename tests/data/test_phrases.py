"""The text of a prompt: words of many scripts, and what asks for a picture."""

from __future__ import annotations

from unclip.data.phrases import fold, phrase_key, strip_request, words_of


def test_words() -> None:
    assert [word.key for word in words_of("L'Éléphant, rouge-vif 3D")] == ["l'elephant", "rouge-vif", "3d"]
    assert phrase_key("กบ") == "ก บ"
    assert phrase_key("कुत्ते का चेहरा") == "कुत्ते का चेहरा"  # vowel signs are part of a word
    assert phrase_key("リンゴ") == "リ ン ゴ"
    assert fold("Ångström Żółw ß") == "angstrom zolw ss"
    assert fold("パ") == "パ", "a kana's mark is no accent"


def test_requests() -> None:
    assert strip_request("hi, can I have a drawing of a whale thanks!") == "a whale"
    assert strip_request("draw") == "draw"
    assert strip_request("folded hands, bow, please") == "folded hands, bow, please"
    assert strip_request("a card draw silhouette") == "a card draw silhouette"
