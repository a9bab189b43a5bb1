"""The diffusion prior: prefix cache, causality, padding, embedding scale."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import DiffusionPrior


def whole_sequence(prior, z, t, text_tokens, text_mask, text_embeds):
    """The prior without any cache: one pass of all tokens under one causal mask."""
    prefix = prior._prefix_tokens(text_tokens, text_mask, text_embeds)
    h = torch.cat([prefix, prior._step_tokens(z, t)], dim=1)
    B, S = h.shape[:2]
    real = torch.cat([text_mask, torch.ones(B, S - text_mask.shape[1], dtype=torch.bool)], dim=1)
    mask = (torch.ones(S, S, dtype=torch.bool).tril() & real[:, None]) | torch.eye(S, dtype=torch.bool)
    for block in prior.blocks:
        h = block.advance(h, mask[:, None], *block.heads_of(h))
    return prior.out(prior.norm_out(h[:, -1]))


@torch.no_grad()
def test_cached_prefix_gives_the_output_of_the_whole_sequence(prior, text, noised):
    whole = whole_sequence(prior, noised["z"], noised["t"], **text)
    assert whole.shape == noised["z"].shape
    assert_close(prior(noised["z"], noised["t"], **prior.prefix(**text)), whole)
    assert_close(prior(noised["z"], noised["t"], **text), whole)


def test_one_text_serves_several_rows_forward_and_backward(prior, text, noised):
    z, t = torch.randn(6, 12), torch.rand(6)
    repeated = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in text.items()}
    gradients = []
    for made in (prior(z, t, **text), whole_sequence(prior, z, t, **repeated)):
        prior.zero_grad()
        made.square().sum().backward()
        gradients.append((made.detach(), [p.grad.clone() for p in prior.parameters() if p.grad is not None]))
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert_close(prior(z, t, **prior.prefix(**text).repeat(2)), gradients[0][0])


@torch.no_grad()
def test_prefixes_of_unequal_length_join(prior, text, noised):
    """Guidance: the null caption is shorter than the prompt and both go through the network in one batch."""
    short = {"text_tokens": text["text_tokens"][:, :2], "text_mask": text["text_mask"][:, :2]}
    short["text_embeds"] = text["text_embeds"].flip(0)
    long_prefix, short_prefix = prior.prefix(**text), prior.prefix(**short)
    z, t = noised["z"], noised["t"]
    length = long_prefix["text_mask"].shape[1]
    joined = {name: torch.cat([short_prefix.pad_to(length)[name], long_prefix[name]]) for name in long_prefix}
    both = prior(torch.cat([z, z]), torch.cat([t, t]), **joined)
    assert_close(both, torch.cat([prior(z, t, **short), prior(z, t, **text)]))
    padded = short_prefix.pad_to(5)
    assert {name: tensor.shape for name, tensor in padded.items()} == {
        name: tensor.shape for name, tensor in long_prefix.items()
    }
    with pytest.raises(UserError, match="has 5"):
        long_prefix.pad_to(2)


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 1)])
def test_padding_changes_nothing(prior, text, noised, repad, left, right):
    expected = prior(noised["z"], noised["t"], **text)
    padded = repad(text, left, right)
    assert_close(prior(noised["z"], noised["t"], **padded), expected)
    assert_close(prior(noised["z"], noised["t"], **prior.prefix(**padded)), expected)


@torch.no_grad()
def test_earlier_keys_do_not_see_later_tokens(prior, text):
    changed = {**text, "text_tokens": text["text_tokens"].clone()}
    changed["text_tokens"][:, 2].neg_()
    before, after = prior.prefix(**text), prior.prefix(**changed)
    for name in ("prefix_keys", "prefix_values"):
        assert_close(after[name][..., :2, :], before[name][..., :2, :], atol=0, rtol=0)
        assert (after[name][:, -1, :, 3:] - before[name][:, -1, :, 3:]).abs().amax() > 1e-4  # later ones do
    unseen = prior.prefix(**{**text, "text_embeds": -text["text_embeds"]})
    assert_close(unseen["prefix_keys"][..., :5, :], before["prefix_keys"][..., :5, :], atol=0, rtol=0)


@torch.no_grad()
def test_order_of_the_caption_matters(prior, text, noised):
    swapped = {**text, "text_tokens": text["text_tokens"][:, [1, 0, 2, 3, 4]]}
    output = prior(noised["z"], noised["t"], **text)
    assert (prior(noised["z"], noised["t"], **swapped) - output).abs().amax() > 1e-4


def test_normalize_gives_zero_mean_unit_variance_and_inverts(prior):
    z = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)) * 0.06 + 0.02
    prior.set_embed_statistics(z.mean(0), z.std(0))
    scaled = prior.normalize(z)
    assert_close(scaled.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    assert_close(scaled.std(0), torch.ones(12))
    assert_close(prior.denormalize(scaled), z)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tokens": None}, "expected text_tokens, text_mask, text_embeds, or the prefix"),
        ({"text_tokens": torch.zeros(3, 5, 7)}, r"text_tokens \[B, L, 20\]"),
        ({"text_mask": torch.ones(3, 5)}, "bool text_mask"),
        (
            {"text_tokens": torch.zeros(3, 10, 20), "text_mask": torch.ones(3, 10, dtype=torch.bool)},
            "at most 9",
        ),
    ],
)
def test_wrong_conditions_are_explained(prior, text, noised, change, message):
    with pytest.raises(UserError, match=message):
        prior(noised["z"], noised["t"], **{**text, **change})


def test_wrong_sizes_are_explained(prior, text, noised):
    with pytest.raises(UserError, match="prefix of 3 rows, as many as x, got 6"):
        prior(noised["z"], noised["t"], **prior.prefix(**text).repeat(2))
    for rows in (2, 4):
        with pytest.raises(UserError, match=f"text of {rows} rows, as x has, or of a divisor of it, got 3"):
            prior(torch.zeros(rows, 12), torch.zeros(rows), **text)
    with pytest.raises(UserError, match="positive std"):
        prior.set_embed_statistics(torch.zeros(12), torch.zeros(12))
    with pytest.raises(UserError, match="multiple of heads"):
        DiffusionPrior(width=30, heads=4)
