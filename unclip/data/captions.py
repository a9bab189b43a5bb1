"""Caption forms: what a person might type for one picture, with and without the style.

The forms without a style are the same for a subject in every style; those with one differ, and draw their wording
from a few templates by a hash of (seed, key), so that a build is repeatable.
"""

from __future__ import annotations

import hashlib
import re

from unclip.data.concepts import Concept

# The first word of each is the plainest; `style_article` uses it alone.
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "noto": ("noto", "noto emoji", "Google noto"),
    "3D": ("3D", "3D rendered", "three-dimensional"),
    "flat": ("flat", "flat design", "flat vector"),
    "glossy": ("glossy", "shiny", "glossy gradient"),
    "twemoji": ("twemoji", "twitter emoji", "twitter"),
    "blob": ("blob", "blob emoji", "android blob"),
    "emojione": ("emojione", "emojione emoji", "emoji one"),
    "firefox": ("firefox", "firefox emoji", "mozilla firefox"),
    "silhouette": ("silhouette", "black silhouette", "black and white icon"),
    "outline": ("outline", "outlined", "thick outline"),
    "line art": ("line art", "line drawing", "black and white line art"),
}
# Words that cannot stand before a noun: "a red apple silhouette", not "a silhouette red apple".
_NOUN_STYLES = frozenset({"silhouette", "line art"})

_PLURAL_ONLY = frozenset(("skis", "clothes"))
_SINGULAR_S = ("ss", "us", "is", "os", "lens", "gas", "atlas", "canvas", "christmas", "news")
_MASS = frozenset({
    "rice", "bread", "milk", "honey", "money", "fire", "water", "bacon", "sushi", "meat", "corn", "ginger",
    "garlic", "butter", "cheese", "ice", "snow", "fog", "luggage", "mail", "music", "spaghetti", "tempura",
    "oden", "soap", "wood", "salt", "sake", "tea", "coffee", "popcorn", "lotion", "hair", "beer", "thread",
    "yarn", "lightning", "broccoli", "falafel", "cotton", "fondue", "sand", "wind", "smoke", "grass", "gold",
    "armour", "armor", "clothing", "furniture", "seaweed", "gymnastics", "wrestling", "bowling", "surfing",
    "hockey", "arts",
})  # fmt: skip
_DETERMINERS = frozenset({
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "hundred", "people", "men", "women", "speaking", "its", "no",
})  # fmt: skip
_PREPOSITIONS = re.compile(
    r" (?:with|without|of|in|on|and|behind|holding|facing|over|under|from|kissing|for|at|getting|wearing|showing) "
)


def caption_forms(concept: Concept, style: str, key: str, seed: int) -> dict[str, str]:
    """All caption forms of one sample: {form: text}, 5 to 8 of them.

    Without a style: `bare`, `article`, `keywords`, `reordered` (tone or colour put another way).
    With one: `style_article`, `style_comma`, `style_phrase`, `style_keywords`.
    """
    name = concept.concept
    forms = {"bare": name, "article": with_article(name)}
    # By subject alone: the style-free forms are shared by all styles (fewer distinct texts to embed).
    words = _pick_tags(concept.tags, 2, f"{seed}|{concept.concept}")
    if words:
        forms["keywords"] = ", ".join([name, *words])
    reordered = _reordered(concept)
    if reordered:
        forms["reordered"] = reordered
    spoken = reordered if reordered and _draw(f"{seed}|order|{key}", 2) else name
    forms["style_article"] = _style_article(STYLE_WORDS[style][0], name)
    forms["style_comma"] = f"{spoken}, {STYLE_WORDS[style][_draw(f'{seed}|comma|{key}', 2)]}"
    forms["style_phrase"] = _style_phrase(style, spoken, f"{seed}|phrase|{key}")
    words = _pick_tags(concept.tags, 3, f"{seed}|{key}")
    if words:
        forms["style_keywords"] = ", ".join([name, *words, style])
    return forms


def with_article(name: str) -> str:
    """The name with "a", "an", "the" or nothing before it, as English has it: "an apple", "grapes", "two hearts"."""
    first = name.split()[0].lower()
    if name.startswith(("flag of ", "Kaaba", "Milky Way", "Statue of")):
        return f"the {name}"
    if (
        first in _DETERMINERS
        or name.startswith("flags")
        or re.match(r"(?:Mrs\.|Mx|Mount|Santa|Saint) ", name)
    ):
        return name
    if first in ("man", "woman", "person"):
        return f"a {name}"  # "a man surfing": the last word is no noun
    head = _PREPOSITIONS.split(f"{name} ", maxsplit=1)[0].split()[-1].lower()
    if head in _MASS or _is_plural(head):
        return name
    return f"{article(name)} {name}"


def article(phrase: str) -> str:
    """`a` or `an`, by the sound that the phrase starts with: "an hourglass", "a unicorn", "an SOS button"."""
    first = re.split(r"[ -]", phrase, maxsplit=1)[0]
    if first in ("SOS", "NG", "SUV"):  # spelled out
        return "an"
    if len(first) == 1 and first.isalpha():
        return "an" if first.upper() in "AEFHILMNORSX" else "a"
    low = first.lower()
    if low[0].isdigit():
        return "an" if low.startswith(("8", "11", "18")) else "a"
    if low.startswith(("uni", "eu", "ew", "uku", "use", "ufo", "one", "once", "ute", "uru")):
        return "a"
    return "an" if low[0] in "aeiou" or low.startswith(("hour", "honest", "heir")) else "a"


def _is_plural(word: str) -> bool:
    if word in _PLURAL_ONLY:
        return True
    return word.endswith("s") and not word.endswith("'s") and not word.endswith(_SINGULAR_S)


def _style_article(style_word: str, name: str) -> str:
    """As in "a 3D red apple" and "a red apple silhouette"; keeps a subject that takes no article without one."""
    styled = f"{name} {style_word}" if style_word in _NOUN_STYLES else f"{style_word} {name}"
    return styled if with_article(name) == name else f"{article(styled)} {styled}"


def _style_phrase(style: str, name: str, salt: str) -> str:
    """One of several ways to name the style, drawn by `salt`."""
    an = with_article(name)
    word = STYLE_WORDS[style][_draw(salt + "|word", len(STYLE_WORDS[style]))]
    of = f"{article(word)} {word} of {an}"
    choices: tuple[str, ...]
    if style in _NOUN_STYLES:
        choices = (of, f"{name} as {article(word)} {word}", f"{name} {word}")
    elif word.endswith("emoji"):
        choices = (of, f"{name} {word}", f"{name} as {article(word)} {word}")
    else:
        choices = (
            f"{style} style {name}",
            f"{an} in {style} style",
            f"{article(word)} {word} emoji of {an}",
            f"{article(word)} {word} picture of {an}",
            f"{word} icon of {an}",
        )
    return choices[_draw(salt, len(choices))]


def _reordered(concept: Concept) -> str | None:
    """The same thing with its attribute elsewhere: "dark-skinned woman firefighter", "apple that is green"."""
    if concept.tone is not None and " and " not in concept.tone:
        return f"{concept.tone}-skinned {concept.subject}"
    if concept.tone is not None:
        return f"{concept.subject}, {concept.tone} skin"
    if concept.colour is not None:
        return f"{concept.thing} that is {concept.colour}"
    if concept.subject.startswith("flag of "):
        return f"{concept.subject.removeprefix('flag of ')} flag"
    return None


def _pick_tags(tags: tuple[str, ...], count: int, salt: str) -> list[str]:
    """`count` of the tags in an order drawn by `salt`."""
    return sorted(tags, key=lambda tag: stable_hash(f"{salt}|{tag}"))[:count]


def _draw(salt: str, choices: int) -> int:
    return stable_hash(salt) % choices


def stable_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
