"""The autoregressive prior: codes of embeddings, causality, cached sampling, what it learns of a known distribution."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import AutoregressivePrior
from unclip.models.autoregressive_prior import CodeStream, draw
from unclip.models.codes import REACH
from unclip.train.presets import preset

D, C, K, V = 12, 20, 6, 16


def embeddings(n: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors spread unequally around a mean."""
    z = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * torch.linspace(1, 0.1, D)
    return F.normalize(z + 1, dim=-1)


def made(**changes: int) -> AutoregressivePrior:
    options = {"width": 32, "layers": 3, "heads": 2, "max_tokens": 9, "components": K, "buckets": V}
    return AutoregressivePrior(embed_dim=D, token_dim=C, **{**options, "similarity_buckets": 4, **changes})


@pytest.fixture
def prior() -> AutoregressivePrior:
    """Fitted to some pairs, with every parameter random."""
    model = made()
    model.fit_pca(embeddings(500))
    model.fit_pairs(embeddings(500), embeddings(500, seed=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture
def captions(text) -> SimpleNamespace:
    return SimpleNamespace(embeds=text["text_embeds"], tokens=text["text_tokens"], mask=text["text_mask"])


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(V, (3, K), generator=torch.Generator().manual_seed(3))


SIMILARITY = torch.tensor([0, 3, 1])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_axes_are_the_principal_components() -> None:
    model, z = made(), embeddings(300)
    kept = model.fit_pca(z)
    _, singular, axes = np.linalg.svd((z - z.mean(0)).double().numpy(), full_matrices=False)
    assert_close(model.embed_mean, z.mean(0))
    assert_close(model.scale.double().numpy(), singular[:K] / 300**0.5, rtol=1e-4, atol=1e-6)
    assert_close(np.abs((model.axes.double().numpy() * axes[:K]).sum(1)), np.ones(K), rtol=1e-5, atol=0)
    assert kept == pytest.approx((singular[:K] ** 2).sum() / (singular**2).sum())
    assert_close(model.coordinates(z).var(0, correction=0), torch.ones(K), rtol=1e-3, atol=0)


def test_codes_err_by_half_a_bucket_at_most_and_by_its_twelfth_in_the_mean_square() -> None:
    model = made(components=D, buckets=32)
    model.fit_pca(embeddings(4000))
    inside = torch.rand(4000, D, generator=torch.Generator().manual_seed(1)) * 2 * REACH - REACH
    z = model.embed_mean + (inside * model.scale) @ model.axes
    again = (model.encode(z).float() + 0.5) * (2 * REACH / 32) - REACH
    error, width = again - inside, 2 * REACH / 32
    assert error.abs().max() <= width / 2 + 1e-4
    assert_close(error.square().mean(), torch.tensor(width**2 / 12), rtol=0.02, atol=0)


@pytest.mark.parametrize("components", [4, D])
def test_decoded_codes_are_the_embedding_as_far_as_its_components_go(components: int) -> None:
    z, model = embeddings(1000), made(components=components, buckets=256)
    kept = model.fit_pca(z)
    z = z[(model.coordinates(z).abs() < REACH).all(1)]
    within = model.embed_mean + (z - model.embed_mean) @ model.axes.T @ model.axes
    decoded = model.decode(model.encode(z))
    assert_close(decoded, F.normalize(within, dim=-1), atol=5e-3, rtol=0)
    assert_close(decoded.norm(dim=1), torch.ones(len(z)))
    assert (kept == pytest.approx(1)) == (components == D)


def test_what_lies_out_of_reach_falls_into_the_last_bucket(prior: AutoregressivePrior) -> None:
    far = prior.embed_mean + 100 * prior.scale[0] * torch.stack([-prior.axes[0], prior.axes[0]])
    assert prior.encode(far)[:, 0].tolist() == [0, V - 1]


def test_buckets_of_the_similarity_hold_equal_shares() -> None:
    model = made(similarity_buckets=8)
    z, z_t = embeddings(8000), embeddings(8000, seed=1)
    model.fit_pca(z)
    model.fit_pairs(z, z_t)
    code = model.similarity_code(z, z_t)
    assert_close(code.bincount() / 8000, torch.full((8,), 1 / 8), atol=1e-3, rtol=0)
    order = (z * z_t).sum(1).argsort()
    assert (code[order].diff() >= 0).all()


def test_expected_coordinates_are_a_least_squares_fit() -> None:
    """Of z_i that are a linear function of z_t they are the coordinates themselves."""
    model, z_t = made(), embeddings(500, seed=1)
    z = z_t @ torch.randn(D, D, generator=torch.Generator().manual_seed(2)) * 0.3 + 0.1
    model.fit_pca(z)
    model.fit_pairs(z, z_t)
    expected = F.linear(z_t, model.expected_weight, model.expected_bias)
    assert_close(expected, model.coordinates(z), atol=0.2, rtol=0)
    assert (expected - model.coordinates(z)).square().mean() < 1e-3


@torch.no_grad()
def test_a_code_depends_on_those_before_it_alone(prior, text, codes) -> None:
    before = prior(codes, SIMILARITY, **text)
    for k in range(K):
        changed = codes.clone()
        changed[:, k] = (changed[:, k] + 5) % V
        after = prior(changed, SIMILARITY, **text)
        assert_close(after[:, : k + 1], before[:, : k + 1], atol=0, rtol=0)
        if k + 1 < K:
            assert (after[:, k + 1] - before[:, k + 1]).abs().amax() > 1e-4
    other = prior(codes, (SIMILARITY + 1) % 4, **text)
    assert ((other - before).abs().amax(dim=(0, 2)) > 1e-4).all()


@torch.no_grad()
def test_running_it_token_by_token_gives_the_logits_of_the_whole_sequence(prior, text, codes) -> None:
    whole = prior(codes, SIMILARITY, **text)
    stream = CodeStream(prior, prior.prefix(**text))
    tokens = [prior.similarity_in(SIMILARITY), *prior.code_in(codes[:, :-1]).unbind(1)]
    assert_close(torch.stack([stream.advance(token) for token in tokens], dim=1), whole)
    assert_close(prior(codes, SIMILARITY, **prior.prefix(**text)), whole)


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 1)])
def test_padding_changes_nothing(prior, text, codes, repad, left, right) -> None:
    padded = repad(text, left, right)
    assert_close(prior(codes, SIMILARITY, **padded), prior(codes, SIMILARITY, **text))


def test_greedy_sampling_takes_the_likeliest_code_each_time(prior, text, captions, monkeypatch) -> None:
    """Its codes, fed back with the similarity that was drawn, are the largest logits of the whole sequence."""
    drawn: list[torch.Tensor] = []
    decode = prior.decode
    monkeypatch.setattr(prior, "decode", lambda codes: drawn.append(codes) or decode(codes))
    prior.sample(captions, generators(0, 1, 2), temperature=0)
    (codes,) = drawn
    similarity = torch.stack(
        [2 + (torch.rand(K + 1, generator=g)[0] * 2).long() for g in generators(0, 1, 2)]
    )
    assert torch.equal(prior(codes, similarity, **text).argmax(-1), codes)


def test_a_row_depends_on_its_caption_and_generator_alone(prior, captions) -> None:
    together = prior.sample(captions, generators(7, 8, 9))
    assert_close(together.norm(dim=1), torch.ones(3))
    for i, seed in enumerate((7, 8, 9)):
        row = SimpleNamespace(**{name: value[i : i + 1] for name, value in vars(captions).items()})
        assert_close(prior.sample(row, generators(seed)), together[i : i + 1])
    several = prior.sample(captions, generators(7, 1, 8, 2, 9, 3))
    assert_close(several[::2], together)
    assert (several[1::2] - together).abs().amax() > 1e-2


def test_similarities_are_drawn_from_the_upper_half(prior, captions) -> None:
    """With a network that says nothing but the similarity's bucket."""
    one = SimpleNamespace(**{name: value[:1] for name, value in vars(captions).items()})
    seen: list[torch.Tensor] = []
    prior.similarity_in.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    prior.sample(one, generators(*range(400)))
    assert_close(seen[0].bincount(minlength=4) / 400, torch.tensor([0, 0, 0.5, 0.5]), atol=0.08, rtol=0)


def test_draws_follow_the_distribution() -> None:
    p = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    chances = (torch.arange(1000) + 0.5) / 1000  # evenly spread, so the counts are exact
    logits = p.log().expand(1000, -1)

    def shares(temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
        return draw(logits, chances, temperature, top_p).bincount(minlength=5) / 1000

    assert_close(shares(), p, atol=2e-3, rtol=0)
    assert_close(shares(temperature=0.5), p.square() / p.square().sum(), atol=2e-3, rtol=0)
    assert_close(shares(top_p=0.6), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=2e-3, rtol=0)
    assert_close(shares(top_p=0.1), torch.tensor([0.0, 1, 0, 0, 0]))
    assert_close(shares(temperature=0), torch.tensor([0.0, 1, 0, 0, 0]))
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logits[:2], ends, 1.0, 1.0).tolist() == [4, 0]


def test_it_learns_the_frequencies_of_three_pictures() -> None:
    """Two codes, of which neither says alone which of the three it is: the joint distribution has to be right."""
    torch.manual_seed(0)
    corners = torch.eye(3, D)
    z = corners[torch.tensor([0] * 5 + [1] * 3 + [2] * 2)].repeat(2, 1)
    model = made(components=2, layers=1, similarity_buckets=2)
    model.fit_pca(z)
    z_t = F.normalize(torch.ones(1, D), dim=-1)
    text = {"text_tokens": torch.ones(1, 1, C), "text_mask": torch.ones(1, 1, dtype=torch.bool)}
    codes, similarity = model.encode(z), torch.arange(20) // 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        logits = model(codes, similarity, **text, text_embeds=z_t)
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chances = torch.tensor([0.5, 0.3, 0.2])
    assert_close(loss.detach(), -(chances * chances.log()).sum() / 2, atol=0.01, rtol=0)
    caption = SimpleNamespace(embeds=z_t, tokens=text["text_tokens"], mask=text["text_mask"])
    drawn = model.eval().sample(caption, generators(*range(1000)), top_p=1)
    likeness, which = (drawn @ corners.T).max(dim=1)
    assert (likeness > 0.95).float().mean() > 0.97
    assert_close(which.bincount(minlength=3) / 1000, chances, atol=0.05, rtol=0)  # three deviations


@torch.no_grad()
def test_saved_prior_loads_and_draws_the_same(prior, captions, text, codes, tmp_path) -> None:
    prior.save_pretrained(tmp_path / "whole")
    loaded = AutoregressivePrior.from_pretrained(tmp_path / "whole")
    assert_close(loaded.sample(captions, generators(0, 1, 2)), prior.sample(captions, generators(0, 1, 2)))
    expected = prior(codes, SIMILARITY, **text)
    prior.half().save_pretrained(tmp_path / "half")
    half = AutoregressivePrior.from_pretrained(tmp_path / "half").float()
    assert_close(half(codes, SIMILARITY, **text), expected, atol=0.02, rtol=0)
    assert_close(half.sample(captions, generators(0, 1, 2)).norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_half_precision_weights_run(prior, captions) -> None:
    z = prior.to(torch.bfloat16).sample(captions, generators(0, 1, 2))
    assert z.dtype == torch.float32
    assert_close(z.norm(dim=1), torch.ones(3))


def test_gradient_reaches_every_parameter(prior, text, codes) -> None:
    prior(codes, SIMILARITY, **text).square().mean().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None] == []
    unused = {"code_in.weight", "similarity_in.weight", "positions"}  # rows of what is not in the batch
    assert all(p.grad.abs().amax() > 0 for name, p in prior.named_parameters() if name not in unused)


def test_the_emoji_preset_is_small() -> None:
    with torch.device("meta"):
        network = AutoregressivePrior(embed_dim=384, token_dim=384, **preset("prior-ar", "emoji").model)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) < 1.1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": 13}, "components from 1 to embed_dim=12"),
        ({"buckets": 1}, "at least 2 buckets"),
        ({"similarity_buckets": 3}, "expected an even number"),
    ],
)
def test_impossible_sizes_are_refused(change, message) -> None:
    with pytest.raises(UserError, match=message):
        made(**change)


def test_mistakes_are_explained(prior, text, captions, codes) -> None:
    with pytest.raises(UserError, match=r"expected codes \[B, 6\] and a similarity \[B\], got \(3, 5\)"):
        prior(codes[:, :5], SIMILARITY, **text)
    with pytest.raises(UserError, match="got no text_embeds"):
        prior(codes, SIMILARITY, text_tokens=text["text_tokens"], text_mask=text["text_mask"])
    with pytest.raises(UserError, match=r"expected embeddings of size 12, got \(4, 5\)"):
        prior.fit_pca(torch.zeros(4, 5))
    with pytest.raises(UserError, match=r"at least two embeddings \[N, D\], got \(1, 12\)"):
        prior.fit_pca(torch.zeros(1, D))
    with pytest.raises(UserError, match="expected text of 4 rows"):
        prior.sample(captions, generators(0, 1, 2, 3))
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UserError, match="expected a temperature of at least 0, and top_p above 0"):
            prior.sample(captions, generators(0, 1, 2), **options)
