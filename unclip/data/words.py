"""Plain words: what a person types, in the words that the model's captions use.

A `Lexicon` knows the words of the training captions and how often each occurs, what the subjects are called in other
languages, and a few ways to say the same in English. `understand` takes a prompt through five steps:

    request      "could you draw me a red apple please" -> "a red apple"
    style        "a dog, like a 3D toy" -> "a dog, 3D"
    translation  "un perro rojo" -> "red dog"
    spelling     "gray" -> "grey", "rockets" -> "rocket", "rocekt" -> "rocket"
    what is left that neither the captions nor a list of English words has is named as unknown

A caption that the data uses comes out as it went in, and no step but the translation of a whole phrase touches a word
that the captions use. `unclip.data.lexicon` makes the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from unclip.data.concepts import COLOURS
from unclip.data.phrases import (
    UNFINISHED,
    Word,
    joined_letters,
    strip_request,
    style_patterns,
    tidy,
    words_of,
)
from unclip.data.spelling import SHORTEST, correct, damerau, plural, singular
from unclip.errors import UserError
from unclip.files import atomic_path

LEXICON_FILE = "lexicon.json.gz"
FORMAT = 2
_LONGEST_PROMPT = 400  # words; what follows is left as it is, CLIP reads far fewer


class _Match(NamedTuple):
    """Words [first, last) that are a phrase of a language, and the English for it; `helper`: no subject or colour."""

    first: int
    last: int
    english: str
    helper: bool


@dataclass(frozen=True)
class Understood:
    """A prompt as typed, the text for the model, the other language in it, and the words that nothing knows."""

    prompt: str
    text: str
    language: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.text != self.prompt


@dataclass
class Lexicon:
    """What plain words are understood by.

    Attributes:
        words: word of the captions -> how often it occurs in those of training (0: in held-out ones alone).
        languages: code -> {folded phrase: English}, the more widely spoken ones first.
        helpers: code -> {folded phrase: English or ""}: articles, "with", "please": looked at only beside a phrase.
        spellings: word -> its other spelling, both ways.
        styles: ways to name a style -> the captions' word for it.
        style_words: those of them that the captions use.
        english: further words that are no typing errors.
        keep: captions, in lower case, that the rules would change and must not.
    """

    words: dict[str, int]
    languages: dict[str, dict[str, str]] = field(default_factory=dict)
    helpers: dict[str, dict[str, str]] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    style_words: frozenset[str] = frozenset()
    english: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._style_end, self._style_start = style_patterns(self.styles)
        self._longest: dict[str, int] = {}  # first word of phrases of several words -> words of the longest
        for table in (*self.languages.values(), *self.helpers.values()):
            for key in table:
                if spaces := key.count(" "):
                    first = key[: key.index(" ")]
                    if spaces >= self._longest.get(first, 0):
                        self._longest[first] = spaces + 1

    def understand(self, prompt: str) -> Understood:
        """The prompt in the captions' words."""
        if " ".join(prompt.lower().split()) in self.keep:
            return Understood(prompt, prompt)
        text = self._style_last(strip_request(prompt))
        text, language, left_out = self._translate(text)
        text = self._respell(text)
        unknown = [word.key for word in words_of(text) if not self.knows(word.key)]
        return Understood(prompt, text, language, tuple(dict.fromkeys([*left_out, *unknown])))

    def knows(self, word: str) -> bool:
        """Whether a folded word, or each part of a hyphened one, is in the captions or English."""
        parts = [word, *([] if word in self.words else word.split("-")[1:])]
        parts[0] = word if len(parts) == 1 else word.split("-")[0]
        bare = (part.removesuffix("'s") for part in parts)
        return all(
            part in self.words
            or part in self.english
            or part.isdigit()
            or (len(part) == 1 and part.isascii())
            for part in bare
        )

    def nearest(self, word: str, count: int = 3) -> list[str]:
        """The words of the captions nearest to `word` by edits, the more frequent first among equals."""
        letters = set(word)
        near = [each for each in self.words if abs(len(each) - len(word)) < 3 and len(each) > 2]
        near.sort(
            key=lambda each: len(letters.symmetric_difference(each))
        )  # quick to tell, good enough to sift by
        return sorted(near[:200], key=lambda each: (damerau(word, each), -self.words[each], each))[:count]

    # ---- steps ------------------------------------------------------------------------------------------------

    def _style_last(self, text: str) -> str:
        """A style that is said in another way than captions do becomes ", STYLE" at the end."""
        for pattern in filter(None, (self._style_end, self._style_start)):
            found = pattern.match(text)
            if found is None:
                continue
            said = " ".join(found["style"].lower().split())
            if pattern is self._style_end and not self._is_style(said, found):
                continue
            like_captions = not found["otherwise"] or re.search(r"\bstyle\W*$", text, re.IGNORECASE)
            if said not in self.style_words or not like_captions:
                rest, style = found["rest"].rstrip(" ,."), self.styles[said]
                return rest if rest.endswith(f", {style}") else f"{rest}, {style}"
        return text

    def _is_style(self, said: str, found: re.Match[str]) -> bool:
        """Whether words at the end name a style, and are not what is to be seen: "a plastic toy", "a dog on google"."""
        apart = found["otherwise"] or found["joint"] is not None or found["bracket"]
        by_name = not {*said.split(), said}.isdisjoint({*self.style_words, "emoji", "style"})
        return bool(apart or by_name) and not UNFINISHED.search(found["rest"])

    def _translate(self, text: str) -> tuple[str, str | None, list[str]]:
        """English for the phrases of the one other language that explains most -> text, language, words left out."""
        words = words_of(text)[:_LONGEST_PROMPT]
        foreign = [word.key not in self.words for word in words]
        if not any(foreign):
            return text, None, []
        keys = self._phrases_in([word.key for word in words])
        best: tuple[tuple[int, int], str, list[_Match]] | None = None
        for language, table in self.languages.items():
            if not any(key in table for _, _, key in keys):
                continue
            matches = self._matches(language, keys, foreign)
            strong = [i for m in matches for i in range(m.first, m.last) if not m.helper and foreign[i]]
            certain = sum(self._certain(words[i].key) for i in strong)
            covered = sum(m.last - m.first for m in matches)
            if (
                strong
                and (certain or covered == len(words))
                and (best is None or (certain, covered) > best[0])
            ):
                best = (certain, covered), language, matches
        if best is None:
            return text, None, []
        return self._in_english(text, words, best[2], best[1])

    def _certain(self, word: str) -> bool:
        """Whether a word is no English one; a short word may be anything."""
        return not self.knows(word) and (len(word) >= SHORTEST or not word.isascii())

    def _phrases_in(self, words: list[str]) -> list[tuple[int, int, str]]:
        """(first, last, phrase) of all runs of words that some phrase may be."""
        return [
            (i, i + n, " ".join(words[i : i + n]))
            for i, word in enumerate(words)
            for n in range(1, min(self._longest.get(word, 1), len(words) - i) + 1)
        ]

    def _matches(self, language: str, keys: list[tuple[int, int, str]], foreign: list[bool]) -> list[_Match]:
        """Phrases of a language from left to right, the longest first, none of English words alone."""
        table, helpers = self.languages[language], self.helpers.get(language, {})
        longest: dict[int, _Match] = {}
        for first, last, key in keys:
            if key in table and any(foreign[first:last]):
                longest[first] = _Match(first, last, table[key], False)
            elif key in helpers:
                longest[first] = _Match(first, last, helpers[key], True)
        matches: list[_Match] = []
        position = 0
        while position < len(foreign):
            found = longest.get(position)
            if found is not None:
                matches.append(found)
            position = position + 1 if found is None else found.last
        # A helper that looks like an English word is one only right before a phrase: "die Katze", not "a die".
        kept: list[_Match] = []
        for match in reversed(matches):
            english = match.helper and not any(foreign[match.first : match.last])
            if not english or (kept and kept[-1].first == match.last):
                kept.append(match)
        return kept[::-1]

    def _in_english(
        self, text: str, words: list[Word], matches: list[_Match], language: str
    ) -> tuple[str, str, list[str]]:
        parts: list[str] = []
        left_out: list[str] = []
        end = 0
        of_word = {match.first: match for match in _adjectives_first(matches)}
        inside = {i for match in matches for i in range(match.first, match.last)}
        for i, word in enumerate(words):
            between = text[end : word.start]
            end = word.end
            if i in of_word:
                parts += [between or " ", of_word[i].english]
            elif i not in inside:
                if self.knows(word.key):
                    parts += [between, text[word.start : word.end]]
                else:
                    parts.append(" ")
                    left_out.append(word.key)
        return tidy("".join([*parts, text[end:]])), language, joined_letters(left_out)

    def _respell(self, text: str) -> str:
        parts: list[str] = []
        end = 0
        for word in words_of(text):
            parts += [text[end : word.start], self._spelled(word.key, text[word.start : word.end])]
            end = word.end
        return "".join([*parts, text[end:]])

    def _spelled(self, word: str, typed: str) -> str:
        """One word as the captions have it, or as typed."""
        count = self.words.get(word)
        other = self.spellings.get(word)
        # Two spellings are one word: the captions' usual one stands for the other.
        if other is not None and self.words.get(other, 0) > 10 * (count or 0):
            return other
        if count is not None or other is not None:
            return typed
        if "-" in word:
            pairs = zip(word.split("-"), typed.split("-"), strict=True)
            return "-".join(self._spelled(key, part) for key, part in pairs)
        form = singular(word, self.words)
        if form is None and not self.knows(word):
            form = plural(word, self.words) or correct(word, self.words)
        return form or typed

    # ---- the file ---------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Of all that it knows; 16 hexadecimal digits."""
        return hashlib.sha256(self._content()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all; the same lexicon gives the same bytes."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(gzip.compress(self._content(), mtime=0))

    def _content(self) -> bytes:
        subjects = sorted({english for table in self.languages.values() for english in table.values()})
        languages = {}
        for code, table in self.languages.items():
            by_subject: dict[str, list[str]] = {}
            for key, english in table.items():
                by_subject.setdefault(english, []).append(key)
            languages[code] = ["|".join(sorted(by_subject.get(subject, []))) for subject in subjects]
        content = {
            "format": FORMAT,
            "words": self.words,
            "subjects": subjects,
            "languages": languages,
            "helpers": self.helpers,
            "spellings": self.spellings,
            "styles": self.styles,
            "style_words": sorted(self.style_words),
            "english": sorted(self.english),
            "keep": sorted(self.keep),
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def load(cls, path: str | Path) -> Lexicon:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged or of another version of unclip.
        """
        try:
            content: dict[str, Any] = json.loads(gzip.decompress(Path(path).read_bytes()))
            if content["format"] != FORMAT:
                raise UserError(f"{path} has format {content['format']}, expected {FORMAT}: make it again "
                                "with this version's `unclip data lexicon`")  # fmt: skip
            languages = {
                code: _by_key(column, content["subjects"]) for code, column in content["languages"].items()
            }
            return cls(
                words=content["words"],
                languages=languages,
                helpers=content["helpers"],
                spellings=content["spellings"],
                styles=content["styles"],
                style_words=frozenset(content["style_words"]),
                english=frozenset(content["english"]),
                keep=frozenset(content["keep"]),
            )
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"no lexicon at {path}: make one with `unclip data lexicon`") from error
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the lexicon {path} is damaged ({error}): make or copy it again") from error


def _by_key(column: list[str], subjects: list[str]) -> dict[str, str]:
    """{phrase: subject} of a language's column in the file: for each subject "", one phrase, or several and "|"."""
    table = dict(zip(column, subjects, strict=True))
    table.pop("", None)
    for keys in [keys for keys in table if "|" in keys]:
        table |= dict.fromkeys(keys.split("|"), table.pop(keys))
    return table


def _adjectives_first(matches: list[_Match]) -> Iterator[_Match]:
    """Matches with "dog red" put as "red dog": a colour that follows its noun changes places with it."""
    queue = list(matches)
    for i in range(len(queue) - 1):
        noun, colour = queue[i], queue[i + 1]
        follows = noun.last == colour.first and colour.english in COLOURS
        if follows and not noun.helper and noun.english not in COLOURS:
            queue[i] = noun._replace(english=colour.english)
            queue[i + 1] = colour._replace(english=noun.english)
    yield from queue
