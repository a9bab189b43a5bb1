"""From Unicode's emoji names to things a person would say, with their attributes.

`woman: dark skin tone, red hair` is the subject "woman with red hair" with the tone "dark"; its role, what is left
without gender and direction, is "with red hair". Roles are the unit of the held-out splits, since "person
surfing" and "man surfing" often look the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
COLOURS = (
    "light blue", "red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink",
)  # fmt: skip
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_GENDERS = {
    "woman": "woman", "women": "woman", "girl": "woman", "female": "woman", "lady": "woman",
    "man": "man", "men": "man", "boy": "man", "male": "man",
    "person": "person", "people": "person", "child": "person",
}  # fmt: skip
# Group None is regional indicators, group 2 bare skin and hair swatches: not pictures of anything.
_COMPONENTS = (None, 2)
# Chat shorthand and codes among the keywords are not words for a picture.
_TAG = re.compile(r"^[a-z][a-z' -]{2,}$")
_SHORTHAND = frozenset({
    "brb", "omw", "idk", "lol", "wtf", "omg", "smh", "rofl", "lmao", "ily", "tfw", "fml", "nvm", "tbh", "bff",
    "btw", "imo", "ttyl", "xoxo", "afk", "yolo", "dnd", "ikr", "fyi", "sos",
})  # fmt: skip


# Unicode's names that nobody would type, or that are no noun, and what a person calls the picture.
_SPOKEN = {
    "automobile": "car", "oncoming automobile": "oncoming car", "sport utility vehicle": "SUV",
    "locked": "locked padlock", "unlocked": "unlocked padlock", "locked with key": "padlock with key",
    "locked with pen": "padlock with pen", "camping": "camping tent", "cooking": "fried egg in a pan",
    "wedding": "wedding chapel", "construction": "construction barrier", "foggy": "foggy city",
    "high voltage": "lightning bolt", "plus": "plus sign", "minus": "minus sign", "multiply": "multiplication sign",
    "divide": "division sign", "dizzy": "dizzy star", "dashing away": "puff of air", "tennis": "tennis ball",
    "badminton": "badminton racket", "lacrosse": "lacrosse stick", "ping pong": "ping pong paddle",
    "bowling": "bowling ball and pins", "field hockey": "field hockey stick", "ice hockey": "ice hockey stick",
    "mount fuji": "Mount Fuji", "milky way": "Milky Way", "kaaba": "Kaaba", "statue of liberty": "Statue of Liberty",
    "information": "information sign", "infinity": "infinity symbol", "prohibited": "prohibited sign",
    "warning": "warning sign", "biohazard": "biohazard sign", "radioactive": "radioactive sign",
    "copyright": "copyright symbol", "registered": "registered symbol", "trade mark": "trademark symbol",
    "cinema": "cinema sign", "om": "om symbol", "mate": "mate drink", "dna": "DNA", "dvd": "DVD",
    "rolling on the floor laughing": "face rolling on the floor laughing", "star-struck": "star-struck face",
    "performing arts": "theater masks", "ZZZ": "ZZZ sign", "radio": "radio set", "joker": "joker card",
    "customs": "customs sign", "passport control": "passport control sign", "baggage claim": "baggage claim sign",
    "wireless": "wireless sign", "link": "chain link", "children crossing": "children crossing sign",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What one emoji (or icon) draws, whatever the style."""

    subject: str  # "woman firefighter": without style and tone
    concept: str  # "woman firefighter with dark skin tone"
    label: str  # Unicode's own name, by which some icon sets name their files
    role: str  # "firefighter": without gender, tone and direction; the unit of hold-outs
    group: str
    subgroup: str
    tags: tuple[str, ...] = ()
    tone: str | None = None  # "dark", or "light and dark" of two people
    colour: str | None = None  # "green" of "green apple"
    thing: str | None = None  # "apple" of "green apple"
    gender: str | None = None
    number: int | None = None

    @property
    def attributes(self) -> dict[str, str | int]:
        named = {"tone": self.tone, "colour": self.colour, "gender": self.gender, "number": self.number}
        return {name: value for name, value in named.items() if value is not None}


def emoji_concepts(entries: list[dict[str, Any]], messages: dict[str, Any], keywords: dict[str, list[str]]
                   ) -> dict[str, Concept]:  # fmt: skip
    """Concepts by code point (`hexcode` without FE0F), from emojibase's data and messages and emojilib's keywords."""
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    subgroups = {subgroup["order"]: subgroup["key"] for subgroup in messages["subgroups"]}
    table: dict[str, Concept] = {}
    for entry in entries:
        if entry.get("group") in _COMPONENTS:
            continue
        base = describe(entry["label"], groups[entry["group"]], subgroups[entry["subgroup"]])
        tags = _clean_tags([*entry.get("tags", []), *keywords.get(entry["emoji"], [])[1:]], base.subject)
        base = replace(base, tags=tags)
        table[hexcode(entry["hexcode"])] = base
        for skin in entry.get("skins", []):
            toned = describe(skin["label"], base.group, base.subgroup)
            table[hexcode(skin["hexcode"])] = replace(toned, tags=tags)
    return table


def hexcode(code: str) -> str:
    """Code points joined by '-', lower case, without variation selectors and leading zeros: one key for all sets."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def describe(label: str, group: str, subgroup: str) -> Concept:
    """Parse one Unicode name, such as `woman: dark skin tone, red hair`."""
    head, _, tail = _plain(label).partition(": ")
    qualifiers = [part for part in tail.split(", ") if part]
    tones = [part.removesuffix(" skin tone") for part in qualifiers if part.endswith(" skin tone")]
    rest = [part for part in qualifiers if not part.endswith(" skin tone")]
    named = _phrase(head, rest, subgroup)
    subject = _SPOKEN.get(named, named)
    tone = " and ".join(tones) or None
    colour, thing = split_colour(subject)
    return Concept(
        subject=subject,
        label=label,
        concept=subject if tone is None else f"{subject} {_tone_phrase(subject, tones)}",
        role=role_of(head if subgroup == "family" else named),  # Unicode's words: hold-outs outlive renaming
        group=group,
        subgroup=subgroup,
        tone=tone,
        colour=colour,
        thing=thing,
        gender=_gender(subject) if group == "people-body" else None,
        number=_number(subject),
    )


def split_colour(subject: str) -> tuple[str | None, str | None]:
    """("green", "apple") for "green apple"; (None, None) when no colour leads or nothing is left of it."""
    for colour in COLOURS:
        if subject.startswith(colour + " "):
            return colour, subject[len(colour) + 1 :]
    return None, None


def role_of(subject: str) -> str:
    """The subject without words of gender and direction; "person" when nothing else is left."""
    text = re.sub(r"\bmer(?:man|maid)\b", "merperson", subject.lower().replace(" facing right", ""))
    text = re.sub(r"\bolder\b", "old", re.sub(r"\b(?:mrs\.|mx) claus\b", "santa claus", text))
    words = [word for word in text.split() if word not in _GENDERS and word not in ("a", "an", "and", "of")]
    return " ".join(words) or "person"


def icon_concept(name: str) -> Concept:
    """The concept of an icon that no emoji names, from its own name ("broken shield")."""
    colour, thing = split_colour(name)
    return Concept(
        subject=name,
        concept=name,
        label=name,
        role=role_of(name),
        group="icon",
        subgroup="icon",
        colour=colour,
        thing=thing,
    )


def _plain(label: str) -> str:
    """Straight apostrophes, no quotation marks, no brackets."""
    text = label.replace("’", "'").translate({ord(mark): None for mark in "“”()"})
    return re.sub(r"\s+", " ", text).strip()


def _phrase(head: str, rest: list[str], subgroup: str) -> str:
    """Join a name's head and its qualifiers into words that a person would say."""
    if head == "flag":
        return f"flag of {', '.join(rest)}"
    if subgroup == "zodiac":
        return f"{head} zodiac sign"
    if subgroup == "time" and re.search(r"o'clock$|-thirty$", head):
        return f"clock showing {head}"
    if not rest:
        return head
    if head == "family":
        return f"family of {_enumerate(rest)}"
    if head == "kiss":
        return f"{' and '.join(rest)} kissing"
    if head == "couple with heart":
        return f"{' and '.join(rest)} with heart"
    if rest == ["bald"]:
        return f"bald {head}"
    if rest == ["facing right"]:
        return f"{head} facing right"
    if head == "keycap":
        return f"keycap {rest[0]}"
    return f"{head} with {_enumerate(rest)}"


def _enumerate(parts: list[str]) -> str:
    """["man", "woman", "boy", "boy"] -> "a man, a woman and two boys"."""
    plurals = {"man": "men", "woman": "women", "child": "children"}
    counted = []
    for part in dict.fromkeys(parts):
        one = f"an {part}" if part == "adult" else f"a {part}"
        several = f"two {plurals.get(part, part + 's')}"
        people = part in _GENDERS or part == "adult"
        counted.append(several if parts.count(part) > 1 else one if people else part)
    return counted[0] if len(counted) == 1 else f"{', '.join(counted[:-1])} and {counted[-1]}"


def _tone_phrase(subject: str, tones: list[str]) -> str:
    words = f"{' and '.join(tones)} skin tone{'s' if len(tones) > 1 else ''}"
    return f"and {words}" if re.search(r" with (?!heart)[^ ]+ hair| with beard", subject) else f"with {words}"


def _gender(subject: str) -> str | None:
    found = {_GENDERS[word] for word in re.findall(r"[a-z]+", subject.lower()) if word in _GENDERS}
    return found.pop() if len(found) == 1 else None


def _number(subject: str) -> int | None:
    """2 of "two hearts", 3 of "clock showing three o'clock"."""
    word = subject.removeprefix("clock showing ").split()[0]
    return _NUMBERS.index(word) + 1 if word in _NUMBERS and not subject.endswith("-thirty") else None


def _clean_tags(tags: Iterable[str], subject: str) -> tuple[str, ...]:
    words = [tag.lower().replace("_", " ") for tag in tags]
    kept = [tag for tag in words if _TAG.match(tag) and tag not in _SHORTHAND and tag not in subject.lower()]
    return tuple(dict.fromkeys(kept))[:12]
