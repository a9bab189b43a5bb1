"""Are two things drawn where they were asked for? "a cat above a dog, 3D": both sprites are looked for in the picture.

The prompts are of composed scenes that show a combination of things, places or colours which training never does (see
`unclip.data.scenes`). A sprite is looked for at any place and in several sizes by normalised cross-correlation, on the
background that was asked for. How high a score is a find is settled on the real scenes: as high as only one in twenty
of sprites that are not there reach.

Shapes: C = 3 channels, n = side of a sprite, S = side of the picture it is looked for in.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.data.images import CaptionedImages
from unclip.data.scenes import BACKGROUNDS, ComposedScenes, Scene
from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.choice import Asked
from unclip.eval.drawing import draw_pictures
from unclip.eval.grids import Cell, save_grid
from unclip.eval.model import Drawing, Model, Options

Figures = dict[str, Any]

SEARCHED_AT = 64  # S
SIZES = (0.7, 0.85, 1.0, 1.15, 1.3)  # of a sprite, relative to that in the real scene
FALSE_FINDS = 0.05  # of sprites that are not there; this share of them sets the threshold
DISTRACTORS = 10  # sprites of other scenes that are looked for in each real one
CANDIDATES = 50  # scenes to choose from, for each that is asked
LEAST_APART = 0.15  # of the picture's side, between the centres of things that are beside or above each other
FLAT = 0.1  # share of a sprite's own contrast below which a patch counts as flat
_AXES = {
    "left of": (0, 1),
    "right of": (0, -1),
    "above": (1, 1),
    "below": (1, -1),
}  # axis, sign of second - first


@dataclass(frozen=True)
class Place:
    """Where a sprite matches best: its score in [-1, 1] and its centre (x, y), each 0..1 of the picture."""

    score: float
    x: float
    y: float


@dataclass(frozen=True)
class RelationTest:
    """Scenes to ask for, and the score from which on a sprite counts as found."""

    scenes: list[Scene]
    threshold: float

    @classmethod
    def make(cls, pictures: CaptionedImages, options: Options) -> RelationTest:
        """`options.relations` scenes, at least one, of two things whose caption names the style.

        Args:
            pictures: the training split.

        Raises:
            UserError: there are too few subjects to compose scenes of.
        """
        count = CANDIDATES * options.relations
        scenes = ComposedScenes(pictures, options.seed, count, split="test", size=SEARCHED_AT)
        chosen = list(
            islice((scene for i in range(count) if _is_asked(scene := scenes[i])), options.relations)
        )
        if len(chosen) < options.relations:
            raise UserError(
                f"expected {options.relations} scenes of two things in a named style, found {len(chosen)} among {count}"
            )
        return cls(chosen, _threshold(chosen, options.seed))


def _is_asked(scene: Scene) -> bool:
    return scene.relation in _AXES and f", {scene.style}" in scene.caption


def find(sprite: np.ndarray, background: str, picture: np.ndarray) -> Place:
    """Look for a sprite (RGBA, uint8 [n, n, 4], made for a picture of twice SEARCHED_AT) in a picture [S', S', 3].

    The score is the correlation of sprite and patch over pixels and channels, each channel without its mean, so that
    a brighter picture scores the same. A patch of less than a tenth of the sprite's contrast scores less, a flat one
    nothing.
    """
    S = SEARCHED_AT
    small = np.asarray(Image.fromarray(picture).resize((S, S), Image.Resampling.BOX), np.float32)
    x = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1  # [1, C, S, S]
    best = Place(-1.0, 0.5, 0.5)
    for size in SIZES:
        n = min(S, max(4, round(len(sprite) / 2 * size)))
        scores = _correlation(_template(sprite, background, n), x)
        k = int(scores.argmax())
        if float(scores.flatten()[k]) > best.score:
            row, column = divmod(k, scores.shape[1])
            best = Place(float(scores.flatten()[k]), (column + n / 2) / S, (row + n / 2) / S)
    return best


def holds(relation: str, first: Place, second: Place) -> bool:
    """Whether the second thing lies from the first as the relation says, mainly in that direction."""
    axis, sign = _AXES[relation]
    apart = (second.x - first.x, second.y - first.y)
    return sign * apart[axis] >= LEAST_APART and abs(apart[axis]) > abs(apart[1 - axis])


def relation_part(test: RelationTest, model: Model, out: Path, options: Drawing) -> Figures:
    """Draw what the scenes' captions say and look for it; writes OUT/images, OUT/grids/relations.png.

    Returns:
        threshold, n, grid (its path in OUT), and {row: {"objects" | "both" | "relation": estimate}}: shares of single
        things found, of prompts with both found, and of prompts with both found in the asked relation. Rows: generated;
        real, the scenes themselves, the ceiling; other, the picture of another prompt: chance.
    """
    chosen, threshold = test.scenes, test.threshold
    asked = [_ask(scene, i, options.seed) for i, scene in enumerate(chosen)]
    pictures = draw_pictures(
        asked, model.generate, out / "images", model.stamp(options.size),
        batch_size=options.batch_size, progress=options.progress,
    )  # fmt: skip
    real = [scene.image for scene in chosen]
    rows = {"generated": pictures, "real": real, "other": [*pictures[1:], *pictures[:1]]}
    figures: Figures = {"threshold": threshold, "n": len(chosen), "grid": "grids/relations.png"}
    places = {row: _places(chosen, shown) for row, shown in rows.items()}
    for row, found in places.items():
        figures[row] = _shares(chosen, found, threshold, options.seed)
    right = [_right(scene, pair, threshold) for scene, pair in zip(chosen, places["generated"], strict=True)]
    cells = [
        Cell(caption=a.prompt, pictures=(Image.fromarray(made), Image.fromarray(true)), right=hit)
        for a, made, true, hit in zip(asked, pictures, real, right, strict=True)
    ]
    save_grid(cells, out / figures["grid"], ("generated", "real scene"))
    return figures


def _ask(scene: Scene, number: int, seed: int) -> Asked:
    key = f"scene-{number}"
    return Asked(
        index=number,
        key=key,
        split="relation",
        subject=scene.subjects[0],
        concept=scene.subjects[1],
        style=scene.style,
        prompt=scene.caption,
        seed=zlib.crc32(f"{seed}|picture|{key}".encode()),
    )


def _template(sprite: np.ndarray, background: str, side: int) -> Tensor:
    """[1, C, n, n], each channel without its mean."""
    canvas = Image.new("RGB", sprite.shape[1::-1], BACKGROUNDS[background])
    shown = Image.fromarray(sprite)
    canvas.paste(shown, (0, 0), shown)
    pixels = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 127.5 - 1
    template = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return template - template.mean((2, 3), keepdim=True)


def _correlation(template: Tensor, x: Tensor) -> Tensor:
    """Scores [S-n+1, S-n+1] of a template [1, C, n, n] without means at every place of x [1, C, S, S]."""
    n, contrast = template.shape[-1], float(template.norm())
    size = x.shape[-2:]
    spectrum = torch.fft.rfft2(x[0]) * torch.fft.rfft2(template[0], s=size).conj()
    along = torch.fft.irfft2(spectrum, s=size).sum(0)[: size[0] - n + 1, : size[1] - n + 1]
    mean, square = (_window_means(each[0], n) for each in (x, x**2))  # [C, S-n+1, S-n+1]
    own = ((square - mean**2).clamp(min=0).sum(0) * n * n).sqrt()
    return along / (contrast * own.clamp(min=FLAT * contrast) + 1e-8)


def _window_means(x: Tensor, n: int) -> Tensor:
    """Means over all n x n windows of x [C, S, S] -> [C, S-n+1, S-n+1], by sums over corners."""
    sums = F.pad(x.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    windows = sums[:, n:, n:] - sums[:, :-n, n:] - sums[:, n:, :-n] + sums[:, :-n, :-n]
    return (windows / n**2).float()


def _threshold(scenes: Sequence[Scene], seed: int) -> float:
    """The score that sprites of other scenes, looked for in the real ones, reach in one of twenty cases."""
    rng = np.random.default_rng(seed)
    scores = []
    for scene in scenes:
        others = [other for other in scenes if other.subjects[0] not in scene.subjects]
        for k in rng.permutation(len(others))[:DISTRACTORS]:
            scores.append(find(others[k].sprites[0], scene.background, scene.image).score)
    if not scores:
        raise UserError(
            f"expected scenes of different things, got {len(scenes)}: ask for more relations, or for 0"
        )
    return float(np.quantile(scores, 1 - FALSE_FINDS))


def _places(scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> list[tuple[Place, Place]]:
    return [
        (find(scene.sprites[0], scene.background, picture), find(scene.sprites[1], scene.background, picture))
        for scene, picture in zip(scenes, pictures, strict=True)
    ]


def _right(scene: Scene, pair: tuple[Place, Place], threshold: float) -> bool:
    assert scene.relation is not None, "choose_scenes gives scenes of two things"
    return min(place.score for place in pair) >= threshold and holds(scene.relation, *pair)


def _shares(
    scenes: Sequence[Scene], places: Sequence[tuple[Place, Place]], threshold: float, seed: int
) -> Figures:
    found = np.array([[place.score >= threshold for place in pair] for pair in places])
    right = [_right(scene, pair, threshold) for scene, pair in zip(scenes, places, strict=True)]
    cases = {"objects": found.mean(1), "both": found.all(1), "relation": np.array(right)}
    return {name: bootstrap(values.astype(float), seed=seed).as_dict() for name, values in cases.items()}
