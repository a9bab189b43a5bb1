"""ECLIPSE's prior: beside its forward as their repository has it, written anew in plain torch; and as published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from unclip.clip import TextEncoding
from unclip.errors import UserError
from unclip.models import PRIORS, EclipsePrior
from unclip.models.saved import load_network
from unclip.pipelines import load_prior
from unclip.pipelines.inputs import Settings
from unclip.pipelines.priors import sample_prior
from unclip.pipelines.stages import image_seeds

DIM, WIDTH, HEADS, LAYERS, LENGTH = 16, 24, 3, 2, 77
REAL = (5, 9, 77)  # tokens of each caption
# config.json as it is on the hub, of another size.
PUBLISHED: dict[str, Any] = {
    "_class_name": "PriorTransformer",
    "_diffusers_version": "0.20.0",
    "added_emb_type": "prd",
    "additional_embeddings": 3,
    "attention_head_dim": WIDTH // HEADS,
    "clip_embed_dim": None,
    "dropout": 0.0,
    "embedding_dim": DIM,
    "embedding_proj_dim": None,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "norm_in_type": None,
    "num_attention_heads": HEADS,
    "num_embeddings": LENGTH,
    "num_layers": LAYERS,
}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The tensors of their PriorTransformer by name. The statistics are zeros there, as its constructor leaves them."""
    linear: dict[str, tuple[int, int]] = {
        "proj_in": (WIDTH, DIM),
        "embedding_proj": (WIDTH, DIM),
        "encoder_hidden_states_proj": (WIDTH, DIM),
        "proj_to_clip_embeddings": (DIM, WIDTH),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (1, LENGTH + 3, WIDTH),
        "prd_embedding": (1, 1, WIDTH),
    }
    norms = ["norm_out"]
    for layer in (f"transformer_blocks.{i}" for i in range(LAYERS)):
        linear |= {f"{layer}.attn1.{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        linear |= {f"{layer}.ff.net.0.proj": (4 * WIDTH, WIDTH), f"{layer}.ff.net.2": (WIDTH, 4 * WIDTH)}
        norms += [f"{layer}.norm1", f"{layer}.norm3"]
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes |= {f"{name}.{part}": (WIDTH,) for name in norms for part in ("weight", "bias")}
    made = {name: drawn(i, *shape) * 0.3 for i, (name, shape) in enumerate(shapes.items())}
    return made | {"clip_mean": torch.zeros(1, DIM), "clip_std": torch.zeros(1, DIM)}


@pytest.fixture
def prior(weights: dict[str, Tensor]) -> EclipsePrior:
    return EclipsePrior.from_tensors(PUBLISHED, weights)


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    """The layout of ECLIPSE-Community's repositories."""
    path = tmp_path / "ECLIPSE_Prior"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    save_file(weights, path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def text() -> TextEncoding:
    mask = torch.arange(LENGTH)[None] < torch.tensor(REAL)[:, None]
    rows = len(REAL)
    return TextEncoding(drawn(100, rows, DIM), drawn(101, rows, LENGTH, DIM), mask, torch.zeros(rows, 4, DIM))


def their_forward(weights: dict[str, Tensor], noise: Tensor, text: TextEncoding) -> Tensor:
    """[77 padded tokens, z_t, noise, query], causal, padding hidden; the output at the query, not scaled."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    B, d = len(noise), WIDTH // HEADS
    x = torch.cat(
        [
            linear("encoder_hidden_states_proj", text.tokens),
            linear("embedding_proj", text.embeds)[:, None],
            linear("proj_in", noise)[:, None],
            weights["prd_embedding"].repeat(B, 1, 1),
        ],
        dim=1,
    )
    x = x + weights["positional_embedding"]
    seen = torch.cat([text.mask, torch.ones(B, 3, dtype=torch.bool)], dim=1)
    bias = torch.ones(LENGTH + 3, LENGTH + 3).triu(1) * -1e4 + (~seen * -1e4)[:, None]  # [B, S, S]
    for layer in (f"transformer_blocks.{i}" for i in range(LAYERS)):
        h = norm(f"{layer}.norm1", x)
        q, k, v = (linear(f"{layer}.attn1.to_{n}", h).view(B, -1, HEADS, d).transpose(1, 2) for n in "qkv")
        chance = (q @ k.transpose(2, 3) / d**0.5 + bias[:, None]).softmax(dim=-1)
        x = x + linear(f"{layer}.attn1.to_out.0", (chance @ v).transpose(1, 2).flatten(2))
        h = F.gelu(linear(f"{layer}.ff.net.0.proj", norm(f"{layer}.norm3", x)))
        x = x + linear(f"{layer}.ff.net.2", h)
    return linear("proj_to_clip_embeddings", norm("norm_out", x)[:, -1])


def rows(text: TextEncoding, *which: int, length: int = LENGTH) -> TextEncoding:
    picked = [each[list(which)] for each in text]
    return TextEncoding(picked[0], picked[1][:, :length], picked[2][:, :length], picked[3])


@torch.no_grad()
def test_forward(prior: EclipsePrior, weights: dict[str, Tensor], text: TextEncoding) -> None:
    """Padded and without padding, together and alone."""
    noise = drawn(7, len(REAL), DIM)
    expected = their_forward(weights, noise, text)
    assert expected.std() > 0.1
    assert_close(prior(noise, **prior.read(text)), expected, rtol=1e-4, atol=1e-5)
    assert_close(prior.sample(text, noise=noise), expected, rtol=1e-4, atol=1e-5)
    for i, length in enumerate(REAL):
        made = prior.sample(rows(text, i, length=length), noise=noise[i : i + 1])
        assert_close(made, expected[i : i + 1], rtol=1e-4, atol=1e-5)


def test_noise(prior: EclipsePrior, weights: dict[str, Tensor], text: TextEncoding) -> None:
    """One row for each generator, which depends on its caption and that generator alone; noise matters."""

    def seeds(*values: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(value) for value in values]

    two = rows(text, 0, 1)
    made = prior.sample(two, seeds(1, 2, 3, 4))
    noise = torch.cat([drawn(seed, 1, DIM) for seed in (1, 2, 3, 4)])
    assert_close(made, their_forward(weights, noise, rows(text, 0, 0, 1, 1)), rtol=1e-4, atol=1e-5)
    assert_close(prior.sample(rows(text, 1), seeds(4)), made[3:])
    assert (made[0] - made[1]).abs().max() > 0.01
    torch.manual_seed(5)
    assert_close(prior.sample(two), prior.sample(two, noise=drawn(5, 2, DIM)))
    with pytest.raises(UserError, match="expected text of 3 rows, as x has, or of a divisor of it, got 2"):
        prior.sample(two, seeds(1, 2, 3))


def test_in_the_place_of_any_prior(
    prior: EclipsePrior, weights: dict[str, Tensor], text: TextEncoding
) -> None:
    """Neither scheduled nor guided: nothing else than captions and noise counts, which `noise` may bring."""
    numbers = dict.fromkeys(Settings.__dataclass_fields__, 1) | {"prior_guidance_scale": 4.0}
    settings = Settings(**numbers)
    seeds = image_seeds(torch.Generator().manual_seed(0), 3, 2)
    noise = drawn(9, 6, DIM)
    made = sample_prior(prior, None, text, rows(text, 0), seeds, settings, noise=noise)
    expected = their_forward(weights, noise, rows(text, 0, 0, 1, 1, 2, 2))
    assert_close(made, expected, rtol=1e-4, atol=1e-5)
    drawn_twice = [sample_prior(prior, None, text, rows(text, 0), seeds, settings) for _ in range(2)]
    assert_close(*drawn_twice)


def test_read_as_published(folder: Path, weights: dict[str, Tensor], text: TextEncoding) -> None:
    noise = drawn(7, len(REAL), DIM)
    prior: Any = load_prior(folder)
    assert isinstance(prior, EclipsePrior)
    assert dict(prior.config) | {"embed_dim": DIM, "heads": HEADS, "max_tokens": LENGTH} == dict(prior.config)
    assert_close(prior.sample(text, noise=noise), their_forward(weights, noise, text), rtol=1e-4, atol=1e-5)
    half: Any = load_prior(folder, dtype=torch.float16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float16}


def test_the_published_sizes() -> None:
    """33 million parameters, as the paper says of its prior for Karlo."""
    sizes = {"attention_head_dim": 32, "num_attention_heads": 16, "num_layers": 10, "embedding_dim": 768}
    with torch.device("meta"):
        prior = EclipsePrior(**EclipsePrior.sizes_of(PUBLISHED | sizes))
    assert 32e6 < sum(parameter.numel() for parameter in prior.parameters()) < 35e6


def test_saved_and_loaded(prior: EclipsePrior, text: TextEncoding, tmp_path: Path) -> None:
    """As any prior of this package."""
    prior.save_pretrained(tmp_path / "own")
    noise = drawn(7, len(REAL), DIM)
    for again in (load_network(PRIORS, tmp_path / "own"), load_prior(tmp_path / "own")):
        assert_close(again.sample(text, noise=noise), prior.sample(text, noise=noise))


def drop(folder: Path, name: str = "norm_out.bias") -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if key != name}, path)


def reshape(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"prd_embedding": torch.zeros(1, 1, 3)}, path)


def set_config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(PUBLISHED | values), encoding="utf-8")


def pickle_it(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def cut(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor missing": (
        drop,
        r"ECLIPSE_Prior: .*do not fit .*1 tensors are missing, .* norm_out.bias; take both",
    ),
    "of another shape": (reshape, "do not fit .* e.g. prd_embedding"),
    "another form": (
        lambda folder: set_config(folder, norm_in_type="layer"),
        "than Eclipse's: its norm_in_type is 'layer'",
    ),
    "with time": (lambda folder: set_config(folder, additional_embeddings=5), "positional_embedding"),
    "another network": (
        lambda folder: set_config(folder, _class_name="UNet2DModel"),
        "of a UNet2DModel, which is no prior",
    ),
    "a pickle": (
        pickle_it,
        r"model.bin is a pickle.* or write diffusion_pytorch_model.safetensors beside it by",
    ),
    "cut off": (cut, "is truncated"),
    "without configuration": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD)
def test_bad_repositories(folder: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_prior(folder)
