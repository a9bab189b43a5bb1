"""Two things that a caption names beside or above one another: "a cat right of a dog, 3D"."""

from __future__ import annotations

import re

LONGEST = 500  # characters: no caption that names two things needs more
PLACES = ("left", "right", "upper", "lower")

_CAPTION = re.compile(
    r"(?P<things>[^,]{1,200}?)(?P<ground> on an? [a-z ]{1,40} background)?(?P<style>, [^,]{1,40})?",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)
_BETWEEN = re.compile(
    r" (?:is )?(?:(?:on|to) the )?(left of|right of|above|below|under|on top of|next to|beside|and) ",
    re.IGNORECASE,
)
# Where the thing named first stands; the other one takes the place beside it.
_FIRST = {"right of": "right", "above": "upper", "on top of": "upper", "below": "lower", "under": "lower"}


def things_in(caption: str) -> dict[str, str]:
    """Place -> the thing there, with the style that is named for both; {} where not just two things are named.

    "a cat right of a dog, 3D" -> {"left": "a dog, 3D", "right": "a cat, 3D"}. What "and" joins stands side by side.
    """
    caption = " ".join(caption.split())
    found = _CAPTION.fullmatch(caption) if len(caption) <= LONGEST else None
    parts = _BETWEEN.split(found["things"]) if found else []
    if found is None or len(parts) != 3 or not (parts[0].strip() and parts[2].strip()):
        return {}
    if parts[1].lower() == "and" and _ARTICLE.match(parts[0]) and not _ARTICLE.match(parts[2]):
        return {}  # "a black and white cat" is one thing
    first, second = (part.strip() + (found["style"] or "") for part in parts[::2])
    place = _FIRST.get(parts[1].lower(), "left")
    pair = PLACES[:2] if place in PLACES[:2] else PLACES[2:]
    return dict(zip(pair, (first, second) if place == pair[0] else (second, first), strict=True))
