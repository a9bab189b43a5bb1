"""Words by their letters: distance by edits, typing errors, singular and plural."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST = 4  # letters of a word that may be a typing error: shorter ones have too many neighbours


def damerau(a: str, b: str) -> int:
    """Edits between two words: letters put in, left out, changed, or two neighbours in the wrong order."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row = row, [i]
        for j, other in enumerate(b, 1):
            best = min(row[-1] + 1, previous[j] + 1, previous[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before = previous
    return row[-1]


def edits(word: str) -> Iterator[str]:
    """All words one edit away from `word`, some of them several times."""
    for i in range(len(word) + 1):
        head, tail = word[:i], word[i:]
        yield from (head + letter + tail for letter in _LETTERS)
        if tail:
            yield head + tail[1:]
            yield from (head + letter + tail[1:] for letter in _LETTERS)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]


def correct(word: str, words: Mapping[str, int]) -> str | None:
    """The most frequent of `words` one edit away; None where there is none, or two are equally frequent."""
    if len(word) < SHORTEST:
        return None
    near = {each for each in edits(word) if each in words and len(each) >= SHORTEST - 1}
    ranked = sorted(near, key=lambda each: -words[each])
    if not ranked or (len(ranked) > 1 and words[ranked[0]] == words[ranked[1]]):
        return None
    return ranked[0]


def singular(word: str, words: Mapping[str, int]) -> str | None:
    """The singular of a plural that is among `words`, or None."""
    return next((form for form in _singulars(word) if form in words and len(form) > 2), None)


def plural(word: str, words: Mapping[str, int]) -> str | None:
    """The plural of a singular that is among `words`, or None."""
    return next((form for form in plurals(word) if form in words and len(word) > 2), None)


def plurals(word: str) -> list[str]:
    """What the plural of an English noun may look like, the likeliest first."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [word + "es"]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return [word[:-1] + "ies"]
    if word.endswith(("f", "fe")):
        return [word.rstrip("e").removesuffix("f") + "ves", word + "s"]
    return [word + "s", word + "es"]


def _singulars(word: str) -> Iterator[str]:
    if not word.endswith("s") or word.endswith("ss"):
        return
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield from (word[:-3] + "f", word[:-3] + "fe")
    yield word[:-1]
    if word.endswith("es"):
        yield word[:-2]
