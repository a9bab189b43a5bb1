"""The MLP prior: one vector for a caption, whatever its padding; the order of words; the transformer's interface."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import MLPPrior
from unclip.models.prior import TextCache


@torch.no_grad()
def test_the_vector_of_a_caption_serves_for_the_caption(mlp_prior, text, noised):
    z, t = noised["z"], noised["t"]
    expected = mlp_prior(z, t, **text)
    assert expected.shape == z.shape
    cache = mlp_prior.prefix(**text)
    assert isinstance(cache, TextCache)
    assert cache.rows == 3
    assert_close(mlp_prior(z, t, **cache), expected)
    twice = mlp_prior(z.repeat_interleave(2, 0), t.repeat_interleave(2), **text)
    assert_close(twice[::2], expected)
    assert_close(twice[1::2], expected)


@torch.no_grad()
def test_captions_of_unequal_length_join_for_guidance(mlp_prior, text, noised):
    short = {"text_tokens": text["text_tokens"][:, :2], "text_mask": text["text_mask"][:, :2]}
    short["text_embeds"] = text["text_embeds"].flip(0)
    z, t = noised["z"], noised["t"]
    first, second = mlp_prior.prefix(**short).aligned(mlp_prior.prefix(**text))
    joined = {name: torch.cat([first[name], second[name]]) for name in first}
    both = mlp_prior(torch.cat([z, z]), torch.cat([t, t]), **joined)
    assert_close(both, torch.cat([mlp_prior(z, t, **short), mlp_prior(z, t, **text)]))


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 1)])
def test_padding_changes_nothing(mlp_prior, text, noised, repad, left, right):
    expected = mlp_prior(noised["z"], noised["t"], **text)
    assert_close(mlp_prior(noised["z"], noised["t"], **repad(text, left, right)), expected)


@torch.no_grad()
def test_order_of_the_caption_matters(mlp_prior, text, noised):
    swapped = {**text, "text_tokens": text["text_tokens"][:, [1, 0, 2, 3, 4]]}
    output = mlp_prior(noised["z"], noised["t"], **text)
    assert (mlp_prior(noised["z"], noised["t"], **swapped) - output).abs().amax() > 1e-4


@torch.no_grad()
def test_untrained_it_predicts_the_mean_embedding(text, noised):
    fresh = MLPPrior(embed_dim=12, token_dim=20, width=32, hidden=48, condition=24, queries=2)
    assert_close(fresh(noised["z"], noised["t"], **text), torch.zeros(3, 12), atol=0, rtol=0)


@torch.no_grad()
def test_captions_are_scaled_by_their_statistics(text):
    """Captions shifted and stretched give the same vector once the statistics are theirs."""
    fresh = MLPPrior(embed_dim=12, token_dim=20, width=32, hidden=48, condition=24, queries=2)
    text = {**text, "text_mask": torch.ones(3, 5, dtype=torch.bool)}
    vectors = []
    for scale, shift in ((1.0, 0.0), (3.0, -2.0)):
        states, embeds = text["text_tokens"] * scale + shift, text["text_embeds"] * scale + shift
        fresh.set_text_statistics(embeds, states.flatten(0, 1))
        vectors.append(fresh.prefix(states, text["text_mask"], embeds)["text_vector"])
    assert_close(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tokens": None}, "expected text_tokens, text_mask, text_embeds, or the prefix"),
        ({"text_tokens": torch.zeros(3, 5, 7)}, r"text_tokens \[B, L, 20\]"),
        (
            {"text_tokens": torch.zeros(3, 10, 20), "text_mask": torch.ones(3, 10, dtype=torch.bool)},
            "at most 9",
        ),
    ],
)
def test_wrong_conditions_are_explained(mlp_prior, text, noised, change, message):
    with pytest.raises(UserError, match=message):
        mlp_prior(noised["z"], noised["t"], **{**text, **change})


def test_wrong_numbers_of_rows_are_explained(mlp_prior, text, noised):
    with pytest.raises(UserError, match="prefix of 3 rows, as many as x, got 6"):
        mlp_prior(noised["z"], noised["t"], **mlp_prior.prefix(**text).repeat(2))
    with pytest.raises(UserError, match="text of 4 rows, as x has, or of a divisor of it, got 3"):
        mlp_prior(torch.zeros(4, 12), torch.zeros(4), **text)
