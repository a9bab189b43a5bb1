"""What a batch of the contrastive task is made of: which pictures, how they lie, and what each caption says of them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.data import CaptionedImages


class PictureIndex:
    """Draws rows of a data set (its first `limit`) by structure, and numbers concepts, styles and captions."""

    def __init__(self, data: CaptionedImages, limit: int | None = None) -> None:
        records = data.records[:limit]
        weights = data.weights[:limit]
        self.cumulative = np.cumsum(weights / weights.sum())
        self.concepts, self.concept = _numbered([r["concept"] for r in records])
        self.styles, self.style = _numbered([r["style"] for r in records])
        _, self.kind = _numbered([(r.get("subgroup") or r.get("group"), r["style"]) for r in records])
        self._same_concept = _rows_by(self.concept)
        self._same_kind = _rows_by(self.kind)
        # Captions that name no style are those whose form says so; "shiny" and "3D" cannot be told by their words.
        self._plain = [
            {normal_text(text) for form, text in r["captions"].items() if not form.startswith("style")}
            for r in records
        ]

    def draw(self, n: int, rng: np.random.Generator, same_subject: float, same_kind: float) -> np.ndarray:
        """Draw n different rows: shares of them in groups of one concept (2-3) and of one kind and style (4)."""
        rows: dict[int, None] = {}  # an ordered set
        for share, by, label, group in (
            (same_subject, self._same_concept, self.concept, 3),
            (same_subject + same_kind, self._same_kind, self.kind, 4),
        ):
            for _ in range(n):  # a small set may have too few rows for its share
                if len(rows) >= round(n * share):
                    break
                anchor = self._weighted(rng)
                mates = by[label[anchor]]
                picked = rng.choice(mates, min(len(mates), group), replace=False)
                rows.update(dict.fromkeys([anchor, *picked.tolist()][:group]))
        for _ in range(20 * n):
            if len(rows) >= n:
                break
            rows[self._weighted(rng)] = None
        chosen = np.array(list(rows)[:n])
        # A data set smaller than the batch repeats itself.
        return chosen if len(chosen) == n else np.resize(chosen, n)

    def _weighted(self, rng: np.random.Generator) -> int:
        return min(int(np.searchsorted(self.cumulative, rng.random())), len(self.cumulative) - 1)

    def labels(self, rows: np.ndarray, captions: list[str]) -> dict[str, Tensor]:
        """Label pairs for `same_meaning`; captions beyond the rows are scenes, each a concept of its own."""
        texts = [normal_text(caption) for caption in captions]
        plain = [text in self._plain[row] for row, text in zip(rows, texts, strict=False)]
        extra = np.arange(len(captions) - len(rows))
        return {
            "caption": torch.tensor([zlib.crc32(text.encode()) for text in texts]),
            "concept": torch.from_numpy(np.concatenate([self.concept[rows], len(self.concepts) + extra])),
            "style": torch.from_numpy(np.concatenate([self.style[rows], np.full(len(extra), -1)])),
            "names_style": torch.tensor([not p for p in plain] + [True] * len(extra)),
        }


def place(rgba: np.ndarray, rng: np.random.Generator, coloured: float) -> Tensor:
    """Lay sprites uint8 [n,S,S,4] on white (a share `coloured` on other colours), shifted and scaled a little.

    Never mirrored: letters, flags and "pointing left" are not symmetric. Returns uint8 [n,3,S,S].
    """
    n = len(rgba)
    sprites = torch.from_numpy(np.ascontiguousarray(rgba)).permute(0, 3, 1, 2).float() / 255
    sprites = torch.cat(
        [sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1
    )  # premultiplied, so edges stay clean
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(rng.uniform(0.95, 1.2, n)).float()
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-0.1, 0.1, (n, 2))).float()
    grid = F.affine_grid(theta, list(sprites.shape), align_corners=False)
    sprites = F.grid_sample(sprites, grid, align_corners=False)
    colours = np.where(rng.random((n, 1)) < coloured, rng.random((n, 3)), 1.0)
    background = torch.from_numpy(colours).float()[:, :, None, None]
    return ((sprites[:, :3] + (1 - sprites[:, 3:]) * background) * 255).round().clamp(0, 255).byte()


def normal_text(text: str) -> str:
    """Lower case and single spaces: equal for captions that read the same."""
    return " ".join(text.lower().split())


def _numbered(values: list[Any]) -> tuple[list[Any], np.ndarray]:
    names = list(dict.fromkeys(values))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[value] for value in values])


def _rows_by(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels))[:-1])
