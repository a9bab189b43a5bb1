"""The recalling prior: its guess is the closed-form posterior mean; "" recalls nothing; the prior's interface."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import DiffusionPrior, RecallPrior
from unclip.models.memory import NOBODY
from unclip.models.recall_prior import Guess


def test_the_guess_is_the_posterior_mean_over_known_embeddings() -> None:
    """With the gains that a schedule implies it is Bayes' rule, computed here from Gaussian densities."""
    B, k, D, alpha, sigma = 4, 3, 6, 0.8, 0.5
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(B, k, D, generator=generator)
    x = torch.randn(B, D, generator=generator)
    likeness = torch.rand(B, k, generator=generator) + 0.1
    alike = 2.5
    guess = Guess(width=5)
    guess.reset()
    none = -8.0
    gains = torch.tensor([D * alpha / sigma**2, D * alpha**2 / sigma**2, alike]).log()
    with torch.no_grad():
        guess.gains.bias.copy_(torch.cat([gains, torch.tensor([none])]))
        got = guess(x, torch.randn(B, 5), values, likeness)
    density = torch.distributions.Normal(alpha * values, sigma).log_prob(x[:, None]).sum(-1)
    nothing = torch.distributions.Normal(torch.zeros(B, D), sigma).log_prob(x).sum(-1, keepdim=True)
    logits = torch.cat([density + alike * likeness, nothing + torch.tensor(none).exp()], dim=1)
    weights = logits.softmax(dim=1)[:, :k]
    assert_close(got, (weights[..., None] * values).sum(1))


def test_the_guess_bears_half_precision() -> None:
    """Embeddings of full size and gains as steep as they can be: it picks the nearest, and is a number."""
    guess = Guess(width=4).half()
    guess.reset()
    with torch.no_grad():
        guess.gains.bias.fill_(20.0)
    values = torch.randn(2, 3, 384, generator=torch.Generator().manual_seed(0)).half()
    made = guess(values[:, 1], torch.zeros(2, 4).half(), values, torch.full((2, 3), 0.9).half())
    assert made.dtype is torch.float16
    assert_close(made, values[:, 1])


def test_nobody_is_no_guess() -> None:
    guess = Guess(width=5)
    made = guess(torch.randn(2, 6), torch.randn(2, 5), torch.zeros(2, 3, 6), torch.zeros(2, 3))
    assert torch.equal(made, torch.zeros(2, 6))


@torch.no_grad()
def test_the_prefix_serves_for_the_caption(recall_prior, text, noised) -> None:
    z, t = noised["z"], noised["t"]
    expected = recall_prior(z, t, **text)
    assert expected.shape == z.shape
    cache = recall_prior.prefix(**text)
    assert_close(recall_prior(z, t, **cache), expected)
    twice = recall_prior(z.repeat_interleave(2, 0), t.repeat_interleave(2), **text)
    assert_close(twice[::2], expected)
    rows = recall_prior.memory.neighbours(text["text_embeds"], 3)
    assert_close(recall_prior(z, t, **text, rows=rows), expected)


@torch.no_grad()
def test_captions_of_unequal_length_join_for_guidance(recall_prior, text, noised) -> None:
    short = {"text_tokens": text["text_tokens"][:, :2], "text_mask": text["text_mask"][:, :2]}
    short["text_embeds"] = text["text_embeds"].flip(0)
    z, t = noised["z"], noised["t"]
    first, second = recall_prior.prefix(**short).aligned(recall_prior.prefix(**text))
    joined = {name: torch.cat([first[name], second[name]]) for name in first}
    both = recall_prior(torch.cat([z, z]), torch.cat([t, t]), **joined)
    assert_close(both, torch.cat([recall_prior(z, t, **short), recall_prior(z, t, **text)]))


@torch.no_grad()
def test_two_things_that_a_caption_names_are_its_only_neighbour(recall_prior, text) -> None:
    recall_prior.memory.compositions.normal_(generator=torch.Generator().manual_seed(0))
    things = torch.zeros(3, 4, 12)
    things[1, :2] = text["text_embeds"][[0, 2]]
    encoded = SimpleNamespace(
        embeds=text["text_embeds"], tokens=text["text_tokens"], mask=text["text_mask"], things=things
    )
    read, alone = recall_prior.read(encoded), recall_prior.prefix(**text)
    assert_close(read["recalled"][[0, 2]], alone["recalled"][[0, 2]])
    assert_close(read["recalled"][1, 0], recall_prior.memory.compose(text["text_embeds"], things)[1])
    assert not read["recalled"][1, 1:].any()
    assert read["likeness"][1].tolist() == [1, 0, 0]


@torch.no_grad()
def test_a_caption_that_is_like_nothing_recalls_nothing(recall_prior, text, noised) -> None:
    recall_prior.least_likeness = 2.0
    cache = recall_prior.prefix(**text)
    assert not cache["recalled"].any()
    rows = torch.full((3, 3), NOBODY)
    nobody = recall_prior.prefix(**text, rows=rows)
    z, t = noised["z"], noised["t"]
    assert_close(recall_prior(z, t, **cache), recall_prior(z, t, **nobody))


@torch.no_grad()
def test_untrained_with_one_neighbour_it_is_halfway_to_it(text) -> None:
    """At low noise a fresh one trusts its guess and its own prediction alike."""
    fresh = RecallPrior(
        embed_dim=12, token_dim=20, width=32, layers=1, heads=2, memory_size=1, key_dim=4, neighbours=1
    )
    torch.manual_seed(0)
    fresh.memory.fit_keys(torch.randn(20, 12), torch.arange(20))
    value = torch.randn(1, 12)
    fresh.memory.store(text["text_embeds"][:1], value)
    one = {name: tensor[:1] for name, tensor in text.items()}
    guess = fresh(value, torch.zeros(1), **one)
    own = fresh.out(fresh._at_query(_step(fresh, value, one), fresh.prefix(**one)))
    known = fresh.memory.read(one["text_embeds"], fresh.memory.neighbours(one["text_embeds"], 1))
    drawn = fresh.guess(value, fresh._step_tokens(value, torch.zeros(1))[:, 0], known.values, known.likeness)
    assert_close(guess, (own + drawn) / 2)


def _step(prior: RecallPrior, x: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
    time, noised, query = prior._step_tokens(x, torch.zeros(1)).unbind(1)
    cache = prior.prefix(**text)
    guess = prior.guess(x, time, cache["recalled"], cache["likeness"])
    return torch.stack([time, noised, prior.guess_in(guess), query], dim=1)


@torch.no_grad()
def test_the_memory_keeps_its_bits_in_half_precision(recall_prior, text, noised, tmp_path) -> None:
    expected = recall_prior(noised["z"], noised["t"], **text)
    recall_prior.half().save_pretrained(tmp_path)
    for dtype in (None, torch.float16):
        loaded = RecallPrior.from_pretrained(tmp_path, torch_dtype=dtype)
        assert (loaded.memory.values.dtype, loaded.memory.keys.dtype) == (torch.uint8, torch.int8)
        assert_close(loaded.float()(noised["z"], noised["t"], **text), expected, atol=0.02, rtol=0.02)


def test_what_is_new_beside_the_prior(recall_prior) -> None:
    own = {name.split(".")[0] for name in recall_prior.state_dict()}
    base = {
        name.split(".")[0]
        for name in DiffusionPrior(embed_dim=12, token_dim=20, width=32, heads=2).state_dict()
    }
    assert own - base == set(RecallPrior.NEW_LAYERS)


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"least_likeness": 1.5}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected neighbours of at least 1"):
        RecallPrior(**options)


def test_missing_text_is_named(recall_prior, noised) -> None:
    with pytest.raises(UserError, match="or the prefix that prefix"):
        recall_prior(noised["z"], noised["t"], text_mask=torch.ones(3, 5, dtype=torch.bool))
