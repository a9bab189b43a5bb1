"""Has the picture the asked colour, the asked skin tone? Asked of its pixels, not of a network.

colour   each pixel of the object is called by the name of its hue, saturation and value; the picture has the colour
         that most of its pixels are called. White and grey are not judged: the background is white.
tone     how a style paints each of the five skin tones is measured on the training pictures: the pixels in which the
         pictures of one role in two tones differ are skin. A picture has the tone whose paint covers most pixels.

Shapes: pictures are uint8 [H, W, 3] on white.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from unclip.data.progress import track
from unclip.eval.choice import Pictures, Record

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SIDE = 64  # pixels at which pictures are looked at: paints matter, not outlines

# What a person calls a colour, first match wins: (name, hues in turns, saturations, values). Brown is a dark orange,
# pink a light red.
_RANGES: tuple[tuple[str, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("black", (0.0, 1.0), (0.0, 1.0), (0.0, 0.27)),
    ("black", (0.0, 1.0), (0.0, 0.5), (0.0, 0.42)),
    ("pale", (0.0, 1.0), (0.0, 0.18), (0.0, 1.0)),
    ("brown", (0.0, 0.125), (0.0, 0.68), (0.0, 0.78)),
    ("brown", (0.0, 0.125), (0.0, 1.0), (0.0, 0.62)),
    ("pink", (0.83, 0.93), (0.0, 1.0), (0.55, 1.0)),
    ("pink", (0.93, 1.0), (0.0, 0.62), (0.7, 1.0)),
    ("pink", (0.0, 0.02), (0.0, 0.58), (0.7, 1.0)),
    ("red", (0.0, 0.035), (0.0, 1.0), (0.0, 1.0)),
    ("orange", (0.035, 0.1), (0.0, 1.0), (0.0, 1.0)),
    ("yellow", (0.1, 0.185), (0.0, 1.0), (0.0, 1.0)),
    ("green", (0.185, 0.47), (0.0, 1.0), (0.0, 1.0)),
    ("blue", (0.47, 0.7), (0.0, 1.0), (0.0, 1.0)),
    ("purple", (0.7, 0.83), (0.0, 1.0), (0.0, 1.0)),
    ("red", (0.83, 1.0), (0.0, 1.0), (0.0, 1.0)),
)
COLOURS = tuple(dict.fromkeys(name for name, *_ in _RANGES if name != "pale"))
_ALSO = {"light blue": "blue"}  # asked names that are shades of a judged one
_LEAST = 0.02  # share of the picture's pixels that must be coloured at all

_SAME_PAINT = 0.12  # distance of two colours in [0, 1]³ that count as one paint
_DIFFERENT = 0.06  # least distance of two pixels that are painted in different tones


def asked_colour(record: Record) -> str | None:
    """The colour that a sample is named for, as `colour_of` calls it; None if there is none to judge."""
    colour = record.get("attributes", {}).get("colour")
    colour = _ALSO.get(colour, colour)
    return colour if colour in COLOURS else None


def asked_tone(record: Record) -> str | None:
    """The skin tone of a sample; None if it has none, or two."""
    tone = record.get("attributes", {}).get("tone")
    return tone if tone in TONES else None


def colour_of(picture: np.ndarray) -> str | None:
    """The colour that most of the object has, one of COLOURS; None if the picture is all but colourless."""
    hsv = np.asarray(Image.fromarray(_small(picture)).convert("HSV"), np.float32).reshape(-1, 3) / 255
    called = np.full(len(hsv), -1)
    for number, (_, *bounds) in enumerate(_RANGES):
        low, high = np.array(bounds).T
        called[(called < 0) & ((hsv >= low) & (hsv <= high)).all(1)] = number
    counts = dict.fromkeys(COLOURS, 0)
    for number, (name, *_) in enumerate(_RANGES):
        if name in counts:
            counts[name] += int((called == number).sum())
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= _LEAST * len(hsv) else None


class SkinTones:
    """How each style paints each skin tone.

    Args:
        paints: {style: colours [5, 3] in [0, 1] in the order of TONES}.
    """

    def __init__(self, paints: Mapping[str, np.ndarray]) -> None:
        self.paints = dict(paints)

    @classmethod
    def measure(cls, data: Pictures, roles: int = 40, progress: bool = True) -> SkinTones:
        """From the training pictures of at most `roles` roles of each style that are drawn in all five tones."""
        families = _families(data.records, roles)
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        for style, rows in track(families, "skin tones", total=len(families), show=progress):
            pictures = np.stack([_small(data.rgb(i, SIDE)) for i in rows]) / 255.0  # [5, S, S, 3]
            # Skin changes from each tone to the next; hair and clothes do not.
            steps = np.linalg.norm(np.diff(pictures, axis=0), axis=-1)  # [4, S, S]
            skin = (steps > _DIFFERENT).all(0)
            if skin.sum() >= 8:
                found[style].append(np.median(pictures[:, skin], axis=1))
        return cls({style: np.median(paints, axis=0) for style, paints in found.items()})

    def tone_of(self, picture: np.ndarray, style: str) -> str | None:
        """The tone whose paint in that style covers most pixels; None if none does, or the style has no tones."""
        if style not in self.paints:
            return None
        pixels = _small(picture).reshape(-1, 3) / 255.0
        distance = np.linalg.norm(pixels[:, None] - self.paints[style], axis=-1)  # [P, 5]
        nearest = distance.argmin(1)[distance.min(1) < _SAME_PAINT]
        if len(nearest) < _LEAST * len(pixels):
            return None
        return TONES[np.bincount(nearest, minlength=len(TONES)).argmax()]


def _families(records: Sequence[Record], roles: int) -> list[tuple[str, list[int]]]:
    """(style, rows in the order of TONES) of the training roles drawn in all tones, at most `roles` a style."""
    by_role: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for i, record in enumerate(records):
        tone = asked_tone(record)
        if tone and record["split"] == "train":
            gender = record["attributes"].get("gender", "")
            by_role[record["style"], record["role"], gender][tone] = i
    counts: dict[str, int] = defaultdict(int)
    families = []
    for (style, _, _), rows in sorted(by_role.items()):
        if len(rows) == len(TONES) and counts[style] < roles:
            counts[style] += 1
            families.append((style, [rows[tone] for tone in TONES]))
    return families


def _small(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(
        image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.BOX)
    )
