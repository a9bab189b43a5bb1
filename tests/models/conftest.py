"""Tiny networks with every parameter random (zero-initialised layers would hide mistakes), and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.models import Decoder, DiffusionPrior, RecallPrior, Upsampler

EMBED, TOKEN, BATCH, LENGTH = 12, 20, 3, 5


Network = TypeVar("Network", bound=nn.Module)


def _random(model: Network) -> Network:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture
def prior() -> DiffusionPrior:
    model = DiffusionPrior(embed_dim=EMBED, token_dim=TOKEN, width=32, layers=3, heads=2, max_tokens=9)
    model.set_embed_statistics(torch.linspace(-0.2, 0.2, EMBED), torch.linspace(0.1, 0.4, EMBED))
    return _random(model)


@pytest.fixture
def recall_prior() -> RecallPrior:
    """Ten pictures in its memory; every caption recalls three of them."""
    model = RecallPrior(
        embed_dim=EMBED,
        token_dim=TOKEN,
        width=32,
        layers=2,
        heads=2,
        max_tokens=9,
        memory_size=10,
        key_dim=6,
        neighbours=3,
        least_likeness=-1.0,
    )
    model.set_embed_statistics(torch.linspace(-0.2, 0.2, EMBED), torch.linspace(0.1, 0.4, EMBED))
    generator = torch.Generator().manual_seed(4)
    captions = F.normalize(torch.randn(30, EMBED, generator=generator), dim=-1)
    model.memory.fit_keys(captions, torch.arange(15).repeat(2))
    model.memory.store(captions[:10], torch.randn(10, EMBED, generator=generator))
    return _random(model)


@pytest.fixture
def decoder() -> Decoder:
    model = Decoder(
        sample_size=16,
        patch_size=4,
        draft_size=4,
        width=32,
        layers=2,
        heads=2,
        embed_dim=EMBED,
        token_dim=TOKEN,
        max_text_tokens=9,
    )
    model.set_embed_statistics(torch.linspace(-0.2, 0.2, EMBED), torch.linspace(0.1, 0.4, EMBED))
    return _random(model)


@pytest.fixture
def upsampler() -> Upsampler:
    return _random(Upsampler(channels=(8, 12), blocks=1, embed_channels=16, skin_channels=4))


@pytest.fixture
def text() -> dict[str, Tensor]:
    """Caption encodings of three captions, the second of them shorter (right-padded)."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, 3:] = False
    return {
        "text_tokens": torch.randn(BATCH, LENGTH, TOKEN, generator=generator),
        "text_mask": mask,
        "text_embeds": F.normalize(torch.randn(BATCH, EMBED, generator=generator), dim=-1),
    }


@pytest.fixture
def noised() -> dict[str, Tensor]:
    """Noised embedding, picture, time and noise level of three rows."""
    generator = torch.Generator().manual_seed(2)
    return {
        "z": torch.randn(BATCH, EMBED, generator=generator),
        "x": torch.randn(BATCH, 3, 16, 16, generator=generator),
        "t": torch.tensor([0.1, 0.5, 0.9]),
        "level": torch.tensor([0.0, 0.3, 1.0]),
    }


@pytest.fixture
def decoder_inputs(text: dict[str, Tensor], noised: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "x": noised["x"],
        "t": noised["t"],
        "image_embeds": F.normalize(noised["z"], dim=-1),
        "noise_level": noised["level"],
        "text_tokens": text["text_tokens"],
        "text_mask": text["text_mask"],
    }


@pytest.fixture
def repad() -> Callable[[dict[str, Tensor], int, int], dict[str, Tensor]]:
    """Add padding in front of and behind a caption encoding; the padding holds not-a-number."""

    def add(encoding: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
        tokens = F.pad(encoding["text_tokens"], (0, 0, left, right), value=float("nan"))
        return {**encoding, "text_tokens": tokens, "text_mask": F.pad(encoding["text_mask"], (left, right))}

    return add
