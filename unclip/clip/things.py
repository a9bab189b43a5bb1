"""The things that a caption names beside one another: "a cat left of a dog, 3D" -> "a cat, 3D", "a dog, 3D"."""

from __future__ import annotations

import re

MOST_THINGS = 3

_CAPTION = re.compile(
    r"(?P<things>.+?)(?P<row> in a row)?(?P<ground> on an? [a-z ]+ background)?"
    r"(?P<style>, (?!.*\b(?:and|in a row)\b)[^,]+)?$",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"\s+(?:(?:to the )?(?:left|right) of|above|below|under|on top of|next to|beside|and)\s+", re.IGNORECASE
)


def things_in(caption: str) -> list[str]:
    """Each thing with the style that is named for all of them; [] where there is one thing, or more than three."""
    found = _CAPTION.match(caption)
    if not found:
        return []
    things = _BETWEEN.split(found["things"])
    if found["row"]:
        things = [each for thing in things for each in thing.split(", ")]
    things = [thing.strip() for thing in things if thing.strip()]
    return [thing + (found["style"] or "") for thing in things] if 2 <= len(things) <= MOST_THINGS else []
