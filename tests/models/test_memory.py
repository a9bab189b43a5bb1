"""The memory: few bits are enough, the nearest are found, keys tell subjects apart and not styles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models.memory import NOBODY, EmbeddingMemory, lloyd_levels, nearest_level

M, D, P = 40, 24, 16


@pytest.fixture
def captions() -> torch.Tensor:
    return F.normalize(torch.randn(M, D, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture
def memory(captions: torch.Tensor) -> EmbeddingMemory:
    memory = EmbeddingMemory(M, D, P)
    memory.fit_keys(captions.repeat(2, 1), torch.arange(M).repeat(2))
    memory.store(captions, 3 * captions.flip(1))
    return memory


def test_each_caption_finds_its_own_picture_and_reads_its_value(memory, captions) -> None:
    near = memory.neighbours(captions, 3)
    assert torch.equal(near[:, 0], torch.arange(M))
    values, likeness, difference = memory.read(captions, near)
    error = values[:, 0] - 3 * captions.flip(1)
    assert_close(error.square().mean(), torch.tensor(9 / D * 0.0095), atol=0, rtol=0.15)
    assert_close(likeness[:, 0], torch.ones(M), atol=0.01, rtol=0)
    assert difference[:, 0].abs().amax() < 0.01
    expected = (memory.key(captions) @ memory.key(captions).T).topk(3, dim=1).values
    assert_close(likeness, expected, atol=0.02, rtol=0)


def test_levels_are_those_that_lose_least() -> None:
    """16 levels of a normal distribution lose .009497 of its variance (Max 1960, table I); two of a coin nothing."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    levels = lloyd_levels(x, 16)
    assert_close(
        (x - levels[nearest_level(x, levels)]).square().mean(), torch.tensor(0.009497), atol=2e-4, rtol=0
    )
    coin = torch.tensor([-1.0, 3.0]).repeat(500)
    assert_close(lloyd_levels(coin, 2), torch.tensor([-1.0, 3.0]))


def test_an_odd_number_of_entries_is_read_as_it_was_stored(captions) -> None:
    memory = EmbeddingMemory(M, D - 1, P)
    memory.store(captions[:, 1:], captions[:, 1:])
    read = memory.read(captions[:, 1:], torch.arange(M)[:, None]).values[:, 0]
    assert read.shape == (M, D - 1)
    assert F.cosine_similarity(read, captions[:, 1:]).min() > 0.97


def test_many_captions_are_looked_up_in_parts(memory, captions, monkeypatch) -> None:
    whole = memory.neighbours(captions, 5)
    monkeypatch.setattr("unclip.models.memory.AT_ONCE", 7)
    assert torch.equal(memory.neighbours(captions, 5), whole)


def test_nobody_is_like_a_caption_that_is_like_nothing(memory, captions) -> None:
    near = memory.neighbours(captions[:2], 3, least_likeness=0.99)
    assert near.tolist() == [[0, NOBODY, NOBODY], [1, NOBODY, NOBODY]]
    recalled = memory.read(captions[:2], near)
    assert all(not part[:, 1:].any() for part in recalled)


def test_more_neighbours_than_pictures(captions) -> None:
    memory = EmbeddingMemory(2, D, P)
    memory.fit_keys(captions, torch.arange(M))
    memory.store(captions[:2], captions[:2])
    near = memory.neighbours(captions[:1], 5)
    assert sorted(near[0].tolist()) == [NOBODY] * 3 + [0, 1]
    assert near[0, 0] == 0


def test_two_things_are_composed_as_scenes_were(memory, captions, monkeypatch) -> None:
    """Scenes whose value is a linear map of the two things' values: a pair never seen together comes out right."""
    monkeypatch.setattr("unclip.models.memory.RIDGE", 1e-4)
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(2, 2, D, D, generator=generator)
    first, second = torch.randint(M, (2, 400), generator=generator)
    pair = torch.arange(400) % 2
    values = memory.read(captions, torch.arange(M)[:, None]).values[:, 0]

    def scene(i: torch.Tensor, j: torch.Tensor, pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        things = torch.zeros(len(i), 2, 2, D)
        things[torch.arange(len(i)), pair] = torch.stack([captions[i], captions[j]], dim=1)
        made = torch.einsum("bd,bde->be", values[i], maps[pair, 0])
        return things.flatten(1, 2), made + torch.einsum("bd,bde->be", values[j], maps[pair, 1])

    z_t = F.normalize(torch.randn(400, D, generator=generator), dim=-1)
    things, made = scene(first, second, pair)
    memory.fit_compositions(z_t, things, made)
    i, j, pair = torch.tensor([3, 8, 8]), torch.tensor([5, 8, 1]), torch.tensor([0, 1, 0])
    things, made = scene(i, j, pair)
    assert_close(memory.compose(z_t[:3], things), made, rtol=0.01, atol=0.01)


def test_there_is_nothing_to_compose_for_one_thing_or_a_familiar_caption(memory, captions) -> None:
    things = torch.zeros(3, 4, D)
    things[0, :2] = captions[:2]  # but the caption itself is a picture's
    things[1, 1:3] = captions[:2]  # a right and an upper one are no pair
    z_t = torch.cat([captions[:1], -captions[:2]])
    assert not memory.compose(z_t, things).any()  # nothing is fitted yet
    memory.compositions.fill_(1.0)
    assert not memory.compose(z_t, things).any()
    things[2, 2:] = captions[:2]
    assert memory.compose(z_t, things).any(dim=1).tolist() == [False, False, True]


def test_keys_tell_subjects_apart_and_not_styles() -> None:
    """Captions = subject + a louder style: plain likeness finds the style, the discriminant the subject."""
    generator = torch.Generator().manual_seed(1)
    subjects, styles = torch.randn(30, D, generator=generator), 1.1 * torch.randn(5, D, generator=generator)
    captions = (subjects[:, None] + styles).flatten(0, 1)  # [30 * 5, D]
    which = torch.arange(30).repeat_interleave(5)
    held = which * 5 + which % 5 == torch.arange(150)  # one style of each subject
    memory = EmbeddingMemory(120, D, P)
    memory.fit_keys(captions[~held], which[~held])
    memory.store(captions[~held], captions[~held])
    found = which[~held][memory.neighbours(captions[held], 1)[:, 0]]
    likeness = F.normalize(captions[held], dim=-1) @ F.normalize(captions[~held], dim=-1).T
    plain = which[~held][likeness.argmax(1)]
    assert float((found == which[held]).float().mean()) > 0.9
    assert float((plain == which[held]).float().mean()) < 0.6


def test_a_key_longer_than_an_embedding_is_refused() -> None:
    with pytest.raises(UserError, match="key_dim: expected 1 to embed_dim = 8, got 9"):
        EmbeddingMemory(4, 8, 9)
