"""Give an object another colour where its colour is free: a car may be blue, a lemon may not."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Hue in turns, and what to do with saturation and value so that the name fits what one sees.
TINTS: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    # name: (hue, (least, most) saturation, (least, most) value)
    "red": (0.99, (0.65, 1.0), (0.45, 1.0)),
    "orange": (0.08, (0.75, 1.0), (0.75, 1.0)),
    "yellow": (0.145, (0.65, 1.0), (0.8, 1.0)),
    "green": (0.36, (0.45, 1.0), (0.3, 0.85)),
    "blue": (0.6, (0.5, 1.0), (0.4, 1.0)),
    "purple": (0.76, (0.4, 1.0), (0.4, 0.9)),
    "pink": (0.92, (0.3, 0.55), (0.8, 1.0)),
}
# People, faces, food, plants, animals, flags, signs and symbols have the colour that they have.
FREE_SUBGROUPS = frozenset({
    "clothing", "transport-ground", "transport-water", "transport-air", "household", "office", "book-paper",
    "writing", "lock", "phone", "computer", "light-video", "mail", "musical-instrument", "arts-crafts",
    "event", "game", "tool", "sound", "sport",
})  # fmt: skip
_COLOURED_BY_NATURE = frozenset({
    "Christmas tree", "jack-o-lantern", "fireworks", "firecracker", "fire extinguisher", "fire engine",
    "police car", "pine decoration", "ambulance", "tanabata tree", "wood", "brick", "sparkles", "sparkler",
    "toolbox", "chess pawn", "carp streamer", "Japanese dolls", "moon viewing ceremony", "locomotive",
    "construction barrier", "wheel", "artist palette", "basketball", "soccer ball", "tennis ball", "baseball",
    "softball", "pool 8 ball", "mahjong red dragon", "spade suit", "heart suit", "diamond suit", "club suit",
    "joker card", "flower playing cards", "rainbow", "candle", "soap", "sponge", "ring buoy",
    "horizontal traffic light", "vertical traffic light", "stop sign", "police car light", "diya lamp",
    "red paper lantern", "red envelope", "ledger", "light bulb", "pencil", "cricket game", "flag in hole",
    "chains", "plunger", "fishing pole", "magnet", "framed picture", "jeans",
})  # fmt: skip
_SATURATED = 0.25  # of a pixel that shows a hue
_SPREAD = 0.11  # turns of hue around the main one that count as the same paint
_SHARE = 0.6  # of the opaque pixels that must be of that paint


def colour_is_free(record: dict[str, object]) -> bool:
    """Whether the subject of a sample may have any colour (by its kind; the picture decides too)."""
    return (
        record["subgroup"] in FREE_SUBGROUPS
        and record["subject"] not in _COLOURED_BY_NATURE
        and not record["attributes"]
        and record["style"] not in ("silhouette", "line art")
    )


def main_hue(rgba: np.ndarray) -> float | None:
    """The hue (in turns) of the paint that covers most of a sprite uint8 [H, W, 4]; None if there is no such paint."""
    hue, saturation, value = _hsv(rgba)
    opaque = rgba[..., 3] > 128
    coloured = opaque & (saturation > _SATURATED) & (value > 0.2)
    if not coloured.any():
        return None
    counts, edges = np.histogram(hue[coloured], bins=36, range=(0.0, 1.0))
    around = counts + np.roll(counts, 1) + np.roll(counts, -1)
    main = float(edges[int(around.argmax())] + 0.5 / 36)
    painted = coloured & (_distance(hue, main) < _SPREAD)
    return main if painted.sum() >= _SHARE * opaque.sum() else None


def tint(rgba: np.ndarray, colour: str, main: float) -> np.ndarray:
    """The sprite uint8 [H, W, 4] with its main paint (of hue `main`, see `main_hue`) turned to the named colour.

    Shading, white, black and other paints stay.
    """
    hue, saturation, value = _hsv(rgba)
    painted = (saturation > 0.12) & (_distance(hue, main) < _SPREAD) & (rgba[..., 3] > 0)
    if not painted.any():
        return rgba
    target, saturations, values = TINTS[colour]
    # Hue differences within the paint are kept but narrowed, so that a gradient stays one colour by name.
    offset = ((hue - main + 0.5) % 1.0 - 0.5) * 0.3
    hue = np.where(painted, (target + offset) % 1.0, hue)
    saturation = np.where(painted, _into(saturation, painted, saturations), saturation)
    value = np.where(painted, _into(value, painted, values), value)
    hsv = np.stack([hue, saturation, value], -1)
    rgb = Image.fromarray((hsv * 255).round().astype(np.uint8), "HSV").convert("RGB")
    return np.concatenate([np.asarray(rgb), rgba[..., 3:]], -1)


def _into(channel: np.ndarray, painted: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Shift a channel so that the paint's median lies within the bounds; shading around it is kept."""
    median = float(np.median(channel[painted]))
    return np.clip(channel + min(max(median, bounds[0]), bounds[1]) - median, 0.0, 1.0)


def _hsv(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hsv = np.asarray(Image.fromarray(np.ascontiguousarray(rgba[..., :3])).convert("HSV"), np.float32) / 255.0
    return hsv[..., 0], hsv[..., 1], hsv[..., 2]


def _distance(hue: np.ndarray, main: float) -> np.ndarray:
    return np.abs((hue - main + 0.5) % 1.0 - 0.5)
