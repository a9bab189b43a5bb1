"""Composed scenes: one to three sprites on a background, with a caption that binds attributes and relations, and boxes.

The held-out rules ask for combinations whose parts are all seen: a tenth of the (colour, object) pairs, a tenth of the
object pairs, and for another tenth of the object pairs the relation above/below (seen only side by side).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from unclip.data.captions import article, with_article
from unclip.data.images import CaptionedImages
from unclip.data.tint import TINTS, colour_is_free, main_hue, tint
from unclip.errors import UserError

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light blue": (190, 220, 255),
    "light green": (200, 240, 200),
    "pink": (255, 205, 220),
    "light yellow": (255, 248, 190),
    "light grey": (215, 215, 215),
    "lavender": (220, 205, 245),
    "black": (20, 20, 20),
    "dark blue": (25, 40, 95),
    "orange": (255, 170, 80),
}
WHITE_SHARE = 0.4  # plain emoji stand on white
_GROUPS = frozenset({"food-drink", "animals-nature", "objects", "travel-places", "activities"})
_SIZES = {"small": (0.24, 0.3), "": (0.38, 0.48), "large": (0.54, 0.62)}
_PLACES = {
    (0, 0): "in the top left", (1, 0): "at the top", (2, 0): "in the top right",
    (0, 1): "on the left", (1, 1): "in the center", (2, 1): "on the right",
    (0, 2): "in the bottom left", (1, 2): "at the bottom", (2, 2): "in the bottom right",
}  # fmt: skip
_INVERSE = {"left of": "right of", "above": "below"}
_HELD = 0.10
_OVERSAMPLE = 2  # sprites are drawn at twice the size, so that their edges come out smooth
_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene; its objects are in the order in which the caption names them.

    `relation` holds between the first and the second.
    """

    image: np.ndarray  # uint8 [S, S, 3]
    caption: str
    subjects: list[str]
    boxes: list[tuple[str, float, float, float, float]]  # (name, x0, y0, x1, y1), 0..1 of the picture
    sprites: list[np.ndarray]  # RGBA, uint8 [n, n, 4], for a picture of twice the side
    relation: str | None  # left of, right of, above, below, in a row; None for one object
    background: str
    style: str


@dataclass(frozen=True, kw_only=True)
class _Object:
    index: int  # of the sample
    subject: str
    colour: str | None
    x: float  # centre
    y: float
    side: float

    @property
    def name(self) -> str:
        return self.subject if self.colour is None else f"{self.colour} {self.subject}"


@dataclass(frozen=True, kw_only=True)
class _Layout:
    objects: tuple[_Object, ...]
    relation: str | None
    background: str
    style: str
    size: str = ""
    place: str = ""


class ComposedScenes:
    """`length` scenes from the sprites of a data set, the same for the same (seed, index).

    Args:
        ds: pictures to compose from; give its training split for training and for testing alike, since the held-out
            rules concern combinations.
        split: "train" never shows a held-out combination, "test" always shows one.
        size: pixels of the scene's side.

    Raises:
        UserError: an unknown split, or too few subjects to compose.
    """

    def __init__(
        self, ds: CaptionedImages, seed: int, length: int, split: str = "train", size: int = 64
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"unknown scene split {split!r}; expected train or test")
        self.ds, self.seed, self.length, self.split, self.size = ds, seed, length, split, size
        self._sprites: dict[str, list[int]] = defaultdict(list)  # style -> samples
        for i, record in enumerate(ds.records):
            if record["group"] in _GROUPS and record["style"] not in ("silhouette", "line art"):
                self._sprites[record["style"]].append(i)
        self._sprites = {style: found for style, found in sorted(self._sprites.items()) if len(found) >= 3}
        if not self._sprites:
            raise UserError(
                f"{ds.path} has too few objects to compose scenes; expected 3 or more emoji of things in one style; "
                "do without scenes (task.scenes=0 in training)"
            )
        weights = np.array([ds.weights[found].sum() for found in self._sprites.values()])
        self._style_weights = weights / weights.sum()
        self._hues: dict[int, float | None] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        return self.compose(index, self.size)

    def compose(self, index: int, size: int) -> Scene:
        """Scene `index` as a picture of side `size`."""
        layout, caption, order, relation = self._plan(index)
        sprites = [self._sprite(thing, size) for thing in layout.objects]
        image, boxes = _paint(layout, sprites, size)
        return Scene(
            image=image,
            caption=caption,
            subjects=[layout.objects[i].subject for i in order],
            boxes=[boxes[i] for i in order],
            sprites=[sprites[i] for i in order],
            relation=relation,
            background=layout.background,
            style=layout.style,
        )

    def rgb(self, i: int, size: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self.compose(i, size).image

    def captions(self, i: int) -> list[str]:
        """The one caption of a scene, without painting it."""
        return [self._plan(i)[1]]

    def fingerprint(self) -> str:
        """Changes whenever a scene does."""
        return f"{self.ds.fingerprint()}|{self.seed}|{self.length}|{self.split}"

    def _plan(self, index: int) -> tuple[_Layout, str, list[int], str | None]:
        """Layout, caption, order in which the objects are named, and their relation."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = np.random.default_rng([self.seed, ("train", "test").index(self.split), index])
        layout = self._draw_layout(rng)
        for _ in range(1000):
            if is_held_out(layout) == (self.split == "test"):
                break
            layout = self._draw_layout(rng)
        else:
            raise UserError(
                f"found no {self.split} scene among the {len(self.ds)} pictures of {self.ds.path}; use a larger set"
            )
        return layout, *describe_layout(layout, rng)

    def _draw_layout(self, rng: np.random.Generator) -> _Layout:
        styles = list(self._sprites)
        style = styles[int(rng.choice(len(styles), p=self._style_weights))]
        count = int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2]))
        chosen: dict[str, int] = {}
        for _ in range(50):
            if len(chosen) == count:
                break
            i = int(rng.choice(self._sprites[style]))
            chosen.setdefault(self.ds.records[i]["subject"], i)
        objects = tuple(self._draw_object(i, subject, rng) for subject, i in chosen.items())
        background = "white"
        if rng.random() >= WHITE_SHARE:
            background = str(rng.choice([name for name in BACKGROUNDS if name != "white"]))
        layout = _Layout(objects=objects, relation=None, background=background, style=style)
        return _place(layout, rng)

    def _draw_object(self, i: int, subject: str, rng: np.random.Generator) -> _Object:
        wants_tint, colour = rng.random() < 0.6, str(rng.choice(list(TINTS)))
        free = wants_tint and colour_is_free(self.ds.records[i]) and self._main_hue(i) is not None
        return _Object(index=i, subject=subject, colour=colour if free else None, x=0.5, y=0.5, side=1.0)

    def _main_hue(self, i: int) -> float | None:
        if i not in self._hues:
            self._hues[i] = main_hue(self.ds.rgba(i, 64))
        return self._hues[i]

    def _sprite(self, thing: _Object, size: int) -> np.ndarray:
        """uint8 [n, n, 4] for a scene of side `size`, tinted if the object has a colour."""
        sprite = self.ds.rgba(thing.index, max(8, round(thing.side * size * _OVERSAMPLE)))
        if thing.colour is None:
            return sprite
        main = self._main_hue(thing.index)
        assert main is not None, "a colour is drawn only for sprites that have a main hue"
        return tint(sprite, thing.colour, main)


def _paint(
    layout: _Layout, sprites: list[np.ndarray], size: int
) -> tuple[np.ndarray, list[tuple[str, float, float, float, float]]]:
    side = size * _OVERSAMPLE
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[layout.background])
    boxes = []
    for thing, sprite in zip(layout.objects, sprites, strict=True):
        pixels = len(sprite)
        left, top = round(thing.x * side - pixels / 2), round(thing.y * side - pixels / 2)
        picture = Image.fromarray(sprite)
        canvas.paste(picture, (left, top), picture)
        visible = picture.getchannel("A").point(lambda value: 255 * (value > 32)).getbbox()
        corners = visible or (0, 0, pixels, pixels)
        x0, y0, x1, y1 = ((start + edge) / side for start, edge in zip((left, top) * 2, corners, strict=True))
        boxes.append((thing.name, x0, y0, x1, y1))
    return np.asarray(canvas.resize((size,) * 2, Image.Resampling.BOX)), boxes


def is_held_out(layout: _Layout) -> bool:
    """Whether a layout shows a combination that training never does."""
    objects = layout.objects
    if any(thing.colour and _unit("tint", thing.colour, thing.subject) < _HELD for thing in objects):
        return True
    for first in range(len(objects)):
        for second in range(first + 1, len(objects)):
            draw = _unit("pair", *sorted((objects[first].subject, objects[second].subject)))
            if draw < _HELD or (layout.relation == "above" and draw < 2 * _HELD):
                return True
    return False


def describe_layout(layout: _Layout, rng: np.random.Generator) -> tuple[str, list[int], str | None]:
    """(caption, order in which the objects are named, relation between them in that order)."""
    names = [thing.name for thing in layout.objects]
    order, relation = list(range(len(names))), layout.relation
    if len(names) == 1:
        noun = f"{layout.size} {names[0]}".strip()
        text = f"{with_article(noun)} {layout.place}"
    elif len(names) == 2:
        assert relation is not None
        if rng.random() < 0.5:
            order, relation = [1, 0], _INVERSE[relation]
        first, second = (with_article(names[i]) for i in order)
        text = f"{first} {relation} {second}"
    else:
        first, second, third = (with_article(name) for name in names)
        text = f"{first}, {second} and {third} in a row"
    if layout.background != "white" or rng.random() < 0.5:
        text += f" on {article(layout.background)} {layout.background} background"
    if rng.random() < 0.5:
        text += f", {layout.style}" if rng.random() < 0.5 else f", {layout.style} style"
    return text, order, relation


def _place(layout: _Layout, rng: np.random.Generator) -> _Layout:
    """Positions and sizes by the number of objects."""
    count = len(layout.objects)
    if count == 1:
        size = str(rng.choice(list(_SIZES)))
        side = float(rng.uniform(*_SIZES[size]))
        column, row = (int(i) for i in rng.integers(3, size=2))
        centres = [(0.25 * (column + 1), 0.25 * (row + 1), side)]
        layout = replace(layout, size=size, place=_PLACES[column, row])
    elif count == 2:
        side, offset = float(rng.uniform(0.36, 0.46)), float(rng.uniform(-0.06, 0.06))
        if rng.random() < 0.5:
            centres = [(0.26, 0.5 + offset, side), (0.74, 0.5 + offset, side)]
            layout = replace(layout, relation="left of")
        else:
            centres = [(0.5 + offset, 0.26, side), (0.5 + offset, 0.74, side)]
            layout = replace(layout, relation="above")
    else:
        side, height = float(rng.uniform(0.26, 0.31)), float(rng.uniform(0.35, 0.65))
        centres = [(x, height, side) for x in (0.18, 0.5, 0.82)]
        layout = replace(layout, relation="in a row")
    objects = tuple(
        replace(thing, x=_inside(x, side), y=_inside(y, side), side=side)
        for thing, (x, y, side) in zip(layout.objects, centres, strict=True)
    )
    return replace(layout, objects=objects)


def _inside(centre: float, side: float) -> float:
    return min(max(centre, side / 2 + _MARGIN), 1 - side / 2 - _MARGIN)


def _unit(*names: Any) -> float:
    """A fixed number in [0, 1) for a tuple of names."""
    return int.from_bytes(hashlib.sha256("|".join(names).encode()).digest()[:6], "big") / 2**48
