"""Drawn data and stand-in networks: no packages, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.eval.features import FeatureNet
from unclip.eval.model import Model

SUBJECTS, STYLES = 12, ("flat", "3D", "noto", "blob")
SIDE = 16


class DrawnPictures:
    """One picture for each subject, tone and style: a subject's stripes, in its style's colours.

    Held-out splits take one style of some subjects, one tone of others, and whole subjects.
    """

    def __init__(self) -> None:
        self.records = [
            _record(subject, tone, style)
            for subject in range(SUBJECTS)
            for tone in (0, 1)
            for style in range(4)
        ]

    def __len__(self) -> int:
        return len(self.records)

    def rgb(self, i: int, size: int) -> np.ndarray:
        record = self.records[i]
        picture = _drawing(record["subject"], record["concept"], record["style"])
        return picture.repeat(size // SIDE, 0).repeat(size // SIDE, 1)

    def fingerprint(self) -> str:
        return "drawn"


def _record(subject: int, tone: int, style: int) -> dict[str, Any]:
    name = f"thing {subject}"
    concept = f"dark {name}" if tone else name
    split = "train"
    if subject == SUBJECTS - 1:
        split = "unseen"
    elif subject % 4 == 0 and style == 1:
        split = "style"
    elif subject % 4 == 1 and tone == 1:
        split = "tone"
    captions = {"bare": concept, "article": f"a {concept}", "style_comma": f"{concept}, {STYLES[style]}"}
    return {
        "key": f"{STYLES[style]}_{subject}_{tone}",
        "subject": name,
        "concept": concept,
        "style": STYLES[style],
        "split": split,
        "captions": captions,
        "attributes": {},
        "role": name,
        "weight": 0.5 if tone else 1.0,
        "licence": "MIT",
    }


def _noise(text: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(list(text.encode())).random(shape)


def _drawing(subject: str, concept: str, style: str) -> np.ndarray:
    """uint8 [16,16,3]: mostly the subject, somewhat the style, a little the tone."""
    weights = ((0.5, subject), (0.35, style), (0.15, concept))
    return (255 * sum(w * _noise(text, SIDE, SIDE, 3) for w, text in weights)).astype(np.uint8)


def pixel_features(pictures: Tensor) -> Tensor:
    """A feature network that looks at the coarse pixels: float [B,3,160,160] -> [B,768]."""
    return F.avg_pool2d(pictures, 14).flatten(1)


@pytest.fixture
def drawn() -> DrawnPictures:
    return DrawnPictures()


@pytest.fixture
def pixel_net() -> FeatureNet:
    return FeatureNet("Pixels", pixel_features)


@pytest.fixture
def perfect_model(drawn: DrawnPictures) -> Model:
    """A CLIP and a prior that know every picture by its caption, and a generator that returns it."""
    data = drawn
    of_caption = {text: i for i, record in enumerate(data.records) for text in record["captions"].values()}

    def embed(names: Sequence[str]) -> Tensor:
        return F.normalize(
            torch.stack([torch.from_numpy(_noise(name, 64) - 0.5) for name in names]).float(), dim=-1
        )

    def encode_image(pictures: np.ndarray) -> Tensor:
        small = pictures[:, :: pictures.shape[1] // SIDE, :: pictures.shape[2] // SIDE]
        keys = {data.rgb(i, SIDE).tobytes(): record["key"] for i, record in enumerate(data.records)}
        return embed([keys[picture.tobytes()] for picture in small])

    def of_text(texts: Sequence[str]) -> Tensor:
        return embed([data.records[of_caption[text]]["key"] for text in texts])

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(data.rgb(of_caption[prompt], 64)) for prompt in prompts]

    def decode(z: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """The picture that the embedding is of, whatever the prompt says."""
        nearest = (z @ embed([record["key"] for record in data.records]).T).argmax(1)
        return [Image.fromarray(data.rgb(i, 64)) for i in nearest.tolist()]

    return Model(
        encode_image=encode_image,
        encode_text=of_text,
        make_embeds=lambda prompts, seeds: of_text(prompts),
        generate=generate,
        decode=decode,
        fingerprint="perfect",
        clip_fingerprint="perfect clip",
        settings={"steps": 1},
    )
