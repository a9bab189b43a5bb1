"""The regression prior: its linear map against least squares, what the transformer adds, and z_t taken as it is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import RegressionPrior
from unclip.models.ridge import ridge_map
from unclip.train.presets import preset

D, C = 12, 20


def made(layers: int, embed_dim: int = D) -> RegressionPrior:
    """With a random linear map and statistics; the transformer as it begins."""
    torch.manual_seed(0)
    model = RegressionPrior(
        embed_dim=embed_dim, token_dim=C, width=32, layers=layers, heads=2, max_tokens=9
    ).eval()
    generator = torch.Generator().manual_seed(1)
    model.weight.copy_(torch.randn(embed_dim, embed_dim, generator=generator))
    model.bias.copy_(torch.randn(embed_dim, generator=generator))
    model.set_embed_statistics(torch.linspace(-0.2, 0.2, embed_dim), torch.linspace(0.1, 0.4, embed_dim))
    return model


@pytest.fixture
def prior() -> RegressionPrior:
    """With every parameter random."""
    model = made(layers=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


@pytest.fixture
def captions(text) -> SimpleNamespace:
    return SimpleNamespace(embeds=text["text_embeds"], tokens=text["text_tokens"], mask=text["text_mask"])


def pairs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x + 0.5, dim=-1), F.normalize(y + x, dim=-1)


def test_the_linear_map_is_that_of_least_squares() -> None:
    z_t, z_i = pairs(200)
    model = RegressionPrior(embed_dim=D, token_dim=C, layers=0)
    model.fit_linear(z_t, z_i, ridge=0)
    with_ones = np.concatenate([z_t.double().numpy(), np.ones((200, 1))], axis=1)
    solution, *_ = np.linalg.lstsq(with_ones, z_i.double().numpy(), rcond=None)
    assert_close(model.weight.double().numpy(), solution[:D].T, atol=1e-5, rtol=1e-5)
    assert_close(model.bias.double().numpy(), solution[D], atol=1e-5, rtol=1e-5)


def test_a_ridge_is_least_squares_with_a_row_of_penalty_for_each_entry() -> None:
    x, y = (each.double() for each in pairs(200))
    X, Y = x - x.mean(0), y - y.mean(0)
    penalty = (0.1 * X.var(0, correction=0).mean() * 200).sqrt() * torch.eye(D, dtype=torch.float64)
    solution, *_ = np.linalg.lstsq(
        torch.cat([X, penalty]).numpy(), F.pad(Y, (0, 0, 0, D)).numpy(), rcond=None
    )
    weight, bias = ridge_map(x, y, ridge=0.1)
    assert_close(weight.numpy(), solution.T)
    assert_close(bias, y.mean(0) - weight @ x.mean(0))


def test_a_planted_linear_map_is_found() -> None:
    """Also where z_t does not fill its space: what it says nothing of stays zero."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = torch.randn(100, D, generator=generator, dtype=torch.float64)
    weight, bias = ridge_map(x, x @ planted.T + 3, ridge=0)
    assert_close(weight, planted)
    assert_close(bias, torch.full((D,), 3.0, dtype=torch.float64))
    flat = x * (torch.arange(D) < 5)
    weight, _ = ridge_map(flat, flat @ planted.T, ridge=0)
    assert_close(weight, planted * (torch.arange(D) < 5))


@torch.no_grad()
def test_without_layers_it_is_one_matrix(text, captions) -> None:
    model = made(layers=0)
    assert list(model.parameters()) == []
    assert model.state_dict().keys() == {"weight", "bias", "embed_mean", "embed_std"}
    expected = text["text_embeds"] @ model.weight.T + model.bias
    assert_close(model.denormalize(model(**text)), expected)
    assert_close(model.sample(captions), F.normalize(expected, dim=-1))


@torch.no_grad()
def test_the_transformer_begins_at_the_linear_prior(text) -> None:
    assert_close(made(layers=2)(**text), made(layers=0)(**text), atol=0, rtol=0)


@torch.no_grad()
def test_the_identity_gives_the_text_embedding(text, captions) -> None:
    prior = RegressionPrior.identity(D, C)
    assert_close(prior(**text), text["text_embeds"], atol=0, rtol=0)
    assert_close(prior.sample(captions), text["text_embeds"])
    assert prior.config.token_dim == C


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 3])
def test_a_prefix_stands_for_the_text(prior, text, layers) -> None:
    network = prior if layers else made(layers=0)
    prefix = network.prefix(**text)
    assert_close(network(**prefix), network(**text), atol=0, rtol=0)
    assert_close(network(**prefix.repeat(2)), network(**text).repeat_interleave(2, dim=0))


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 1)])
def test_padding_changes_nothing(prior, text, repad, left, right) -> None:
    assert_close(prior(**repad(text, left, right)), prior(**text))


def test_a_row_depends_on_its_caption_alone(prior, captions) -> None:
    together = prior.sample(captions)
    assert_close(together.norm(dim=1), torch.ones(3))
    for i in range(3):
        row = SimpleNamespace(**{name: value[i : i + 1] for name, value in vars(captions).items()})
        assert_close(prior.sample(row), together[i : i + 1])
    changed = SimpleNamespace(**{**vars(captions), "tokens": -captions.tokens})
    assert (prior.sample(changed) - together).abs().amax() > 1e-3  # it reads the tokens


@pytest.mark.parametrize("layers", [0, 3])
def test_every_generator_has_a_row(prior, captions, layers) -> None:
    network = prior if layers else made(layers=0)
    made_of = network.sample(captions, [torch.Generator() for _ in range(6)])
    assert_close(made_of, network.sample(captions).repeat_interleave(2, dim=0))
    with pytest.raises(UserError, match="expected text of 4 rows"):
        network.sample(captions, [torch.Generator() for _ in range(4)])


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 3])
def test_saved_prior_loads_and_gives_the_same(prior, captions, layers, tmp_path) -> None:
    network = prior if layers else made(layers=0)
    expected = network.sample(captions)
    network.save_pretrained(tmp_path / "whole")
    loaded = RegressionPrior.from_pretrained(tmp_path / "whole")
    assert_close(loaded.sample(captions), expected, atol=0, rtol=0)
    network.half().save_pretrained(tmp_path / "half")
    half = RegressionPrior.from_pretrained(tmp_path / "half").float()
    assert_close(half.sample(captions), expected, atol=3e-3, rtol=0)


@torch.no_grad()
def test_half_precision_weights_run(prior, text) -> None:
    output = prior.to(torch.bfloat16)(**text)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_gradient_reaches_every_parameter(prior, text) -> None:
    prior(**text).square().mean().backward()
    silent = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().amax() > 0]
    assert silent == []


@pytest.mark.parametrize("name", ["emoji", "linear"])
def test_the_presets_are_small(name: str) -> None:
    with torch.device("meta"):
        network = RegressionPrior(embed_dim=384, token_dim=384, **preset("prior-regression", name).model)
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    assert numbers < {"emoji": 0.9e6, "linear": 0.15e6}[name]


def test_mistakes_are_explained(prior, text) -> None:
    z_t, z_i = pairs(5)
    with pytest.raises(UserError, match=r"expected z_t and z_i \[N, 12\], got \(5, 11\)"):
        prior.fit_linear(z_t[:, :11], z_i)
    for x, y, ridge in ((z_t, z_i[:4], 0.1), (z_t[:0], z_i[:0], 0.1), (z_t, z_i, -1.0)):
        with pytest.raises(UserError, match="one caption's embedding for each picture's"):
            prior.fit_linear(x, y, ridge)
    for network in (prior, made(layers=0)):
        with pytest.raises(UserError, match="got no text_tokens"):
            network(text_mask=text["text_mask"], text_embeds=text["text_embeds"])
