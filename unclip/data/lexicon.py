"""Make the lexicon of plain words from built data and the translated emoji names of emojibase-data.

Colours and their nouns are not in the package as words; they are what the names of one thing in several colours differ
in, and what they share: "círculo rojo", "círculo azul" -> "rojo", "azul", "círculo".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unclip.clip.towers import minilm_tokenizer
from unclip.data.artworks import load_concepts
from unclip.data.captions import STYLE_WORDS
from unclip.data.concepts import hexcode
from unclip.data.images import CaptionedImages
from unclip.data.phrases import fold, phrase_key, words_of
from unclip.data.sources import EMOJIBASE, default_cache, fetch, read_jsons
from unclip.data.speech import COLOUR_FORMS, HELPERS, LANGUAGES, SPELLINGS, STYLE_PHRASES
from unclip.data.words import Lexicon

Record = Mapping[str, Any]

# One thing in several colours: noun -> {colour: code point}.
_RAINBOW = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
_COLOURED: dict[str, dict[str, str]] = {
    "circle": dict(zip(_RAINBOW, "1f534 1f7e0 1f7e1 1f7e2 1f535 1f7e3 1f7e4 26ab 26aa".split(), strict=True)),
    "heart": dict(zip(_RAINBOW, "2764 1f9e1 1f49b 1f49a 1f499 1f49c 1f90e 1f5a4 1f90d".split(), strict=True)),
    # The black and the white square have a size in their names.
    "square": dict(zip(_RAINBOW[:7], "1f7e5 1f7e7 1f7e8 1f7e9 1f7e6 1f7ea 1f7eb".split(), strict=True)),
    "book": {"green": "1f4d7", "blue": "1f4d8", "orange": "1f4d9"},
    "apple": {"red": "1f34e", "green": "1f34f"},
}


def build_lexicon(data: str | Path, cache: str | Path | None = None) -> Lexicon:
    """The lexicon of a built data set.

    Args:
        data: folder of `unclip data build emoji`, or shards with captions in the same layout.
        cache: folder of fetched packages.

    Raises:
        UserError: no data there, or emojibase-data cannot be fetched, or MiniLM's package is missing.
    """
    records = CaptionedImages(data, split=None).records
    names = translated_names(Path(cache) if cache is not None else default_cache())
    return make_lexicon(records, names, english_words())


def english_words() -> frozenset[str]:
    """The words, in lower case, that MiniLM's tokenizer has whole: some 20,000 of the commonest.

    Raises:
        UserError: its package is not installed.
    """
    vocabulary = minilm_tokenizer().get_vocab()
    return frozenset(word for word in vocabulary if re.fullmatch("[a-z]{2,}", word))


def translated_names(cache: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """language -> code point -> (name in that language, our English subject)."""
    concepts = load_concepts(cache)
    entries = read_jsons(fetch(EMOJIBASE, cache), [f"{code}/data.json" for code in LANGUAGES])
    return {
        code: {
            key: (entry["label"], concepts[key].subject)
            for entry in entries[f"{code}/data.json"]
            if (key := hexcode(entry["hexcode"])) in concepts and entry.get("label")
        }
        for code in LANGUAGES
    }


def translated_tags(cache: Path, lexicon: Lexicon) -> dict[str, list[str]]:
    """language -> its keywords that neither the lexicon nor the captions have."""
    entries = read_jsons(fetch(EMOJIBASE, cache), [f"{code}/data.json" for code in lexicon.languages])
    found = {}
    for code, table in lexicon.languages.items():
        tags = {tag for entry in entries[f"{code}/data.json"] for tag in entry.get("tags") or ()}
        found[code] = sorted(
            tag for tag in tags if phrase_key(tag) not in table and phrase_key(tag) not in lexicon.words
        )
    return found


def make_lexicon(
    records: Sequence[Record],
    names: Mapping[str, Mapping[str, tuple[str, str]]],
    english: frozenset[str] = frozenset(),
) -> Lexicon:
    """The lexicon of captions and translated names.

    Args:
        records: of the data: split, subject, style and captions are used.
        names: language -> code point -> (name, subject); a subject that the data does not have is left out.
        english: words that are no typing errors, though no caption has them.
    """
    subjects = {record["subject"] for record in records}
    languages: dict[str, dict[str, str]] = {}
    for code, by_emoji in names.items():
        table: dict[str, str] = {}
        for name, subject in by_emoji.values():
            # Hindi has lists of synonyms, of which the first is the name.
            if subject in subjects and (key := phrase_key(name.split(",")[0])):
                table.setdefault(key, subject)
        forms = {
            phrase_key(form): colour
            for colour, forms in COLOUR_FORMS.get(code, {}).items()
            for form in forms.split("/")
        }
        languages[code] = forms | colour_words({key: name for key, (name, _) in by_emoji.items()}) | table
    helpers = {
        code: {phrase_key(each): english for english, said in table.items() for each in said.split("/")}
        for code, table in HELPERS.items()
        if code in languages
    }
    there = {record["style"] for record in records}
    own = {fold(word): style for style in STYLE_WORDS if style in there for word in STYLE_WORDS[style]}
    more = {fold(word): style for style in STYLE_PHRASES if style in there for word in STYLE_PHRASES[style]}
    lexicon = Lexicon(
        words=count_words(records),
        languages=languages,
        helpers=helpers,
        spellings=dict(pair for a, b in SPELLINGS for pair in ((a, b), (b, a))),
        styles=more | own,
        style_words=frozenset(own),
        english=english,
    )
    captions = {caption for record in records for caption in record["captions"].values()}
    lexicon.keep = frozenset(
        " ".join(caption.lower().split()) for caption in captions if lexicon.understand(caption).changed
    )
    return lexicon


def count_words(records: Iterable[Record]) -> dict[str, int]:
    """Word -> occurrences in captions of training, 0 for one of held-out captions alone; frequent ones first."""
    texts = {split: Counter[str]() for split in (True, False)}
    for record in records:
        texts[record["split"] == "train"].update(record["captions"].values())
    counts: Counter[str] = Counter()
    for text, times in texts[True].items():
        for word in words_of(text):
            counts[word.key] += times
    held_out = {word.key for text in texts[False] for word in words_of(text)}
    return {
        word: counts[word]
        for word in sorted(counts.keys() | held_out, key=lambda word: (-counts[word], word))
    }


def colour_words(names: Mapping[str, str]) -> dict[str, str]:
    """{folded word: English colour or noun} from the names {code point: name} of things that come in colours."""
    found: dict[str, str] = {}
    for noun, codes in _COLOURED.items():
        keys = {colour: phrase_key(names[code]).split(" ") for colour, code in codes.items() if code in names}
        if len(keys) < 2:
            continue
        of_colour, of_noun = _divide(keys)
        for key, colour in of_colour.items():
            found.setdefault(key, colour)
        if of_noun:
            found.setdefault(of_noun, noun)
    return found


def _divide(names: Mapping[str, list[str]]) -> tuple[dict[str, str], str]:
    """({what is a colour's own: colour}, what all names share, or "") of the words of one thing in several colours."""
    if all(len(word) == 1 for name in names.values() for word in name):  # letters of a script without spaces
        whole = ["".join(name) for name in names.values()]
        before, after = (
            _common_start(whole),
            _common_start([name[::-1] for name in whole])[::-1],
        )
        own = {colour: name[len(before) : len(name) - len(after)] for colour, name in names.items()}
        return {" ".join(letters): colour for colour, letters in own.items()}, " ".join(before or after)
    counts = Counter(word for name in names.values() for word in set(name))
    shared = {word for word, count in counts.items() if 3 * count > 2 * len(names)}
    left = {colour: [word for word in name if word not in shared] for colour, name in names.items()}
    noun = " ".join(word for word in next(iter(names.values())) if word in shared)
    together = all(f" {noun} " in f" {' '.join(name)} " for name in names.values())
    return {words[0]: colour for colour, words in left.items() if len(words) == 1}, noun if together else ""


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    length = 0
    while len({text[: length + 1] for text in texts}) == 1 and length < min(map(len, texts)):
        length += 1
    return texts[0][:length]
