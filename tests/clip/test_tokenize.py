"""Tokenizers made here: the same in every process, and no word is lost to them."""

from __future__ import annotations

import json
import subprocess
import sys

from tokenizers import Tokenizer

from unclip.clip.tokenize import keep_pieces, make_word_pieces, with_plain_marks

CAPTIONS = ["a red apple", "two red apples, 3D", "a dog on a rug"]


def test_word_pieces_are_the_same_in_every_process() -> None:
    program = (
        "import sys, json; from unclip.clip.tokenize import make_word_pieces; "
        "print(json.dumps(make_word_pieces(json.loads(sys.argv[1])).to_str()))"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, json.dumps(CAPTIONS)], check=True, capture_output=True, text=True
    )
    assert json.loads(made.stdout) == make_word_pieces(CAPTIONS).to_str()


def test_unseen_words_are_spelled_and_frequent_ones_are_whole() -> None:
    tokenizer = make_word_pieces(CAPTIONS)
    assert tokenizer.encode("a red apple").tokens == ["[CLS]", "a", "red", "apple", "[SEP]"]
    assert tokenizer.encode("gears").tokens == ["[CLS]", "g", "##e", "##a", "##r", "##s", "[SEP]"]
    assert tokenizer.token_to_id("[PAD]") == 0


def test_kept_pieces_mean_what_they_meant() -> None:
    whole = make_word_pieces(CAPTIONS)
    kept, ids = keep_pieces(whole, lambda piece: "g" not in piece)
    assert kept.get_vocab_size() == len(ids) < whole.get_vocab_size()
    for text in ("a red apple", "apple red"):
        encoding = kept.encode(text)
        assert encoding.tokens == whole.encode(text).tokens
        assert [ids[n] for n in encoding.ids] == whole.encode(text).ids
    assert kept.encode("a gear").tokens == ["[CLS]", "a", "[UNK]", "[SEP]"]


def test_typographic_marks_are_read_as_plain_ones() -> None:
    plain = make_word_pieces([*CAPTIONS, 'a dog\'s "hat" - x...'])
    typed = 'a dog\'s "hat" - x...'
    expected = plain.encode(typed).tokens
    marks = with_plain_marks(make_word_pieces([*CAPTIONS, typed]))
    assert marks.encode("a dog’s “hat” – x…").tokens == expected
    assert "[UNK]" in plain.encode("a dog’s “hat” – x…").tokens
    # Places are those of the text as typed: what is cut off is shown from there.
    assert marks.encode("a dog’s “hat” – x…").offsets[-2] == (17, 18)
    again = Tokenizer.from_str(marks.to_str())
    assert again.encode("a dog’s “hat” – x…").tokens == expected


def test_vocabulary_is_cut_at_the_rarest_words() -> None:
    tokenizer = make_word_pieces(
        CAPTIONS, vocab_size=4 + 2 * 15 + 1
    )  # special, 15 characters in two forms, one word
    assert tokenizer.get_vocab_size() == 35
    assert tokenizer.encode("red").tokens[1:-1] == ["red"]
    assert tokenizer.encode("dog").tokens[1:-1] == ["d", "##o", "##g"]
