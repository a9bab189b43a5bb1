"""The text of a prompt: its words in any script, what asks for a picture, and how a style is said."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

# Scripts written without spaces: each letter is a word of its own, so the longest phrase of letters is found.
_UNSPACED = "\u0e00-\u0e7f\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Vowel signs of Devanagari and Bengali are no letters to `re`: their blocks count as a whole, without the danda.
_SPACED = "\u0300-\u036f\u0900-\u0963\u0966-\u09ff\u200c\u200d"
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_]|[{_SPACED}])"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:[-'’]{_LETTER}+)*")
_UNDECOMPOSED = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "’": "'",
                               "\u200c": None, "\u200d": None})  # fmt: skip
_MARKS = re.compile("[\u0300-\u036f]")

_ME = r"(?:\s+(?:me|us))?"
_ASK = r"(?:draw|make|show|paint|create|generate|give|sketch|render|design|do|get)"
_REQUEST = re.compile(
    r"^\W*(?:(?:hi|hello|hey)\b\W*)?(?:please\W+)?(?:"
    rf"(?:can|could|would|will)\s+(?:you|i|we)\s+(?:please\s+)?(?:{_ASK}|have|see){_ME}|"
    rf"{_ASK}\s+(?:me|us)|(?:draw|paint|sketch|generate|create)(?=\s+(?:an?|the|some)\s)|"
    r"(?:i|we)(?:['’]d|\s+would)?\s+(?:really\s+)?(?:like|love|want|need|wish\s+for)"
    rf"(?:\s+you)?(?:\s+to\s+(?:see|have|get|{_ASK}))?{_ME}|"
    rf"let(?:['’]s|\s+me)\s+(?:see|have|{_ASK})|i\s+am\s+looking\s+for|i['’]m\s+looking\s+for|how\s+about"
    r")\s+(?=\w)",
    re.IGNORECASE,
)
_PICTURE_OF = re.compile(
    r"^(?:an?\s+|the\s+|some\s+)?(?:(?:nice|little|simple|small|quick)\s+)?"
    r"(?:picture|image|photo|drawing|illustration|emoji|icon|painting|sketch)s?\s+"
    r"(?:of|with|showing|that\s+shows)\s+(?=\w)",
    re.IGNORECASE,
)
# What no description ends with: what follows is its noun.
UNFINISHED = re.compile(
    r"\b(?:an?|the|some|of|on|in|at|by|to|for|from|with|and|or|my|your|his|her)\W*$", re.IGNORECASE
)
_THANKS = re.compile(r"(?:[,.!?]?\s+(?:please|thanks|thank\s+you|for\s+me))+[\s.!?]*$", re.IGNORECASE)


class Word(NamedTuple):
    """A word of a prompt: as looked up, and where it stands."""

    key: str
    start: int
    end: int


def fold(text: str) -> str:
    """Lower case, one form of each letter, no accents on Latin and Cyrillic letters."""
    text = text.casefold()
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text).translate(_UNDECOMPOSED)
    # Kana and Hangul decompose too: only what has accents is taken apart, and put together again after.
    return unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFD", text)))


def words_of(text: str) -> list[Word]:
    """The words of a text with their places; letters of scripts without spaces one by one."""
    return [Word(fold(found.group()), found.start(), found.end()) for found in _WORD.finditer(text)]


def phrase_key(text: str) -> str:
    """How a phrase is looked up: its folded words joined by spaces."""
    return " ".join(word.key for word in words_of(text))


def strip_request(text: str) -> str:
    """A sentence that asks for a picture without the asking; other text as it is."""
    rest = _REQUEST.sub("", text)
    asked = rest != text
    rest = _PICTURE_OF.sub("", rest)
    without = _THANKS.sub("", rest)
    if without and (asked or "," not in rest):  # "folded hands, bow, please" lists what is to be seen
        rest = without
    return rest if rest == text else rest.rstrip(" .!?,") or text


def style_patterns(styles: Mapping[str, str]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """For "…, like a 3D toy" at the end and "a 3D render of …" at the start.

    Groups: `rest`, `style`; `otherwise`, if it is not said as captions say it; in the first, one of `otherwise`,
    `joint` and `bracket` where it is said apart from the rest, not as if it were its noun ("an android").
    """
    if not styles:
        return None, None
    names = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(styles, key=len, reverse=True))
    how = r"(?:that\s+)?(?:looks?|looking|drawn|made|done|rendered|painted|designed)\s+"
    end = re.compile(
        rf"(?P<rest>.*?\w)\W*\s(?:{how})?"
        r"(?:(?P<otherwise>(?:just\s+)?like\s+(?:an?\s+|the\s+)?|in\s+the\s+style\s+of\s+(?:an?\s+|the\s+)?|in\s+)"
        rf"|(?P<joint>as\s+(?:an?\s+)?|(?<=,\s)(?:an?\s+)?)|)(?P<bracket>\()?(?P<style>{names})"
        r"(?:\s+(?:style|emoji|look|picture|icon|drawing|version|toy)s?)?\W*$",
        re.IGNORECASE,
    )
    start = re.compile(
        rf"(?:an?\s+|the\s+)?(?P<style>{names})(?:\s+style)?\s+"
        r"(?:(?P<otherwise>image|drawing|version|render(?:ing)?|model|toy|design|illustration)\s+|"
        r"(?:emoji|picture|icon)\s+)?of\s+(?P<rest>(?:an?\s+|the\s+)?\w.*)$",
        re.IGNORECASE,
    )
    return end, start


def joined_letters(words: list[str]) -> list[str]:
    """Letters of scripts without spaces as one word again."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch(f"[{_UNSPACED}]", word) and re.fullmatch(f"[{_UNSPACED}]+", joined[-1]):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def tidy(text: str) -> str:
    """Without brackets and quotation marks, which captions have none of, doubled spaces, and marks at the ends."""
    text = re.sub(r'[()\[\]"“”„«»「」（）]', "", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.!?、。])", r"\1", text)
    return re.sub(r"([,、。])(?:\s*[,、。])+", r"\1", text).strip(" ,.!?、。¿¡！？")
