"""Pictures, priors of every kind and pipelines to test with; `analytic` knows what a decoder should do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBED, TOKEN = 12, 20  # of the tiny CLIP


@pytest.fixture
def pictures() -> list[Tensor]:
    """Three pictures [3, 16, 16] in 0.25 … 0.75."""
    generator = torch.Generator().manual_seed(11)
    return list(torch.rand(3, 3, 16, 16, generator=generator) / 2 + 0.25)


@pytest.fixture
def made_from(tiny_pipeline: Any) -> Callable[[Any], Any]:
    """A class -> the tiny pipeline as one of it."""

    def make(kind: Any) -> Any:
        return kind.from_pipe(tiny_pipeline)

    return make


@pytest.fixture
def analytic() -> Callable[[Any], Any]:
    """A pipeline -> the same, whose decoder is the best one of pictures that are noise N(0, 1), whatever they show.

    It takes over of x_t just as much as the inversion's gain expects, so that inverting is exact.
    """
    from unclip.diffusion import Denoiser, make_schedule

    exact = Denoiser(lambda x, t: torch.zeros_like(x), make_schedule("cosine"), "v_prediction")

    def make(pipe: Any) -> Any:
        pipe.denoiser = lambda *arguments, **options: (exact, {})
        return pipe

    return make


@pytest.fixture
def priors(tiny_prior: nn.Module, randomise: Callable[..., Any]) -> dict[str, nn.Module]:
    """A prior of each kind for the tiny CLIP, every number random."""
    from unclip.models import AutoregressivePrior, RecallPrior, RegressionPrior

    generator = torch.Generator().manual_seed(4)
    z = F.normalize(torch.randn(60, EMBED, generator=generator), dim=-1)
    z_t = F.normalize(z + 0.3 * torch.randn(60, EMBED, generator=generator), dim=-1)
    sizes = {"embed_dim": EMBED, "token_dim": TOKEN, "width": 16, "layers": 2, "heads": 2, "max_tokens": 16}
    coded = AutoregressivePrior(**sizes, components=12, buckets=32, similarity_buckets=4)
    coded.fit_pca(z)
    coded.fit_pairs(z, z_t)
    regression = RegressionPrior(**sizes)
    regression.fit_linear(z_t, z)
    recall = RecallPrior(
        **sizes, time_scale=1.0, memory_size=10, key_dim=6, neighbours=3, least_likeness=-1.0
    )
    recall.set_embed_statistics(z.mean(0), z.std(0))
    recall.memory.fit_keys(z_t[:30], torch.arange(15).repeat(2))
    recall.memory.store(z_t[:10], torch.randn(10, EMBED, generator=generator))
    linear = RegressionPrior(**{**sizes, "layers": 0})
    linear.fit_linear(z_t, z)
    made = {"ar": coded, "regression": regression, "recall": recall}
    return {
        "diffusion": tiny_prior,
        "linear": linear.eval(),
        **{name: randomise(prior, 0.5) for name, prior in made.items()},
    }


@pytest.fixture
def randomise() -> Callable[..., Any]:
    """Fill every parameter with numbers of one fixed seed, as the fixtures of tests/conftest.py do."""

    def fill(model: nn.Module, scale: float) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def karlo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of kakaobrain's own files and of CLIP, tiny; not to be changed."""
    from .original_karlo import write_clip, write_originals

    return write_originals(tmp_path_factory.mktemp("originals")), write_clip(tmp_path_factory.mktemp("clip"))
