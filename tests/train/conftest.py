"""Toy task and stand-ins for the data, so that the trainer's tests need neither shards nor a CLIP."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

FIXTURE = Path(__file__).parents[1] / "fixtures" / "emoji-fixture.tar"


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="{}" fill="red"/></svg>'


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """tests/train/toy.py as a module."""
    spec = importlib.util.spec_from_file_location("unclip_toy_task", Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emoji_fixture() -> str:
    """Path of the shard of real samples."""
    return str(FIXTURE)


class FakePictures:
    """48 pictures of two colours each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pixels = np.kron(
            rng.integers(0, 256, (48, 2, 2, 4), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8)
        )
        self.pixels[..., 3] |= 128
        self.weights = np.arange(1, 49) / np.arange(1, 49).sum()
        self.records = [{"style": "noto"} for _ in range(48)]

    def __len__(self) -> int:
        return 48

    def rgba(self, index: int, size: int = 256) -> np.ndarray:
        return np.kron(self.pixels[index], np.ones((size // 16, size // 16, 1), np.uint8))

    def svg(self, index: int) -> str | None:
        return SVG.format(1 + index % 3) if index % 2 else None

    def thumbnails(self, size: int, progress: bool = False) -> np.ndarray:
        return np.stack([self.rgba(i, size) for i in range(48)])


class FakeCache:
    """Embeddings of 8 and caption states of 6 dimensions, two captions a picture."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        z = rng.standard_normal((48, 8)).astype(np.float32)
        self.image_embeds = z / np.linalg.norm(z, axis=1, keepdims=True)
        self.text_embeds = np.repeat(self.image_embeds, 2, axis=0)
        self.caption_of = [[2 * i, 2 * i + 1] for i in range(48)]
        self.texts = [f"caption {m}" for m in range(95)] + ["caption 0 left of caption 1"]
        self.states = rng.standard_normal((96, 5, 6)).astype(np.float32)
        self.lengths = rng.integers(1, 6, 96)

    def tokens(self, captions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(self.lengths[captions])
        mask = np.arange(longest) < self.lengths[captions][:, None]
        return torch.from_numpy(self.states[captions][:, :longest] * mask[..., None]), torch.from_numpy(mask)


@pytest.fixture
def fake_data(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tasks get stand-ins for pictures, embeddings and CLIP."""
    from unclip.train.tasks import embedded, prior, upsampler

    pictures, cache = FakePictures(), FakeCache()
    empty = SimpleNamespace(
        embeds=torch.ones(1, 8) / 8**0.5, tokens=torch.ones(1, 2, 6), mask=torch.ones(1, 2, dtype=torch.bool)
    )

    def clip(name: str) -> Any:
        def encode_text(texts: list[str]) -> SimpleNamespace:
            return SimpleNamespace(**{k: v.repeat_interleave(len(texts), 0) for k, v in vars(empty).items()})

        return SimpleNamespace(encode_text=encode_text)

    for module in (embedded, upsampler):
        monkeypatch.setattr(module, "load_pictures", lambda config: pictures)
    monkeypatch.setattr(embedded, "load_cache", lambda config, pictures, clip, suffix="": cache)
    for module in (embedded, prior):
        monkeypatch.setattr(module, "load_clip", clip)
    return SimpleNamespace(pictures=pictures, cache=cache, empty=empty)
