"""The memory: 8 bits are enough, the nearest are found, keys tell subjects apart and not styles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models.memory import NOBODY, EmbeddingMemory, Neighbours

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
    near = memory.neighbours(captions[:, None], 3)
    assert torch.equal(near.rows[:, 0], torch.arange(M))
    assert not near.texts.any()
    values, likeness, difference = memory.read(captions[:, None], near)
    assert_close(values[:, 0], 3 * captions.flip(1), atol=3 / 127 / 2 + 1e-6, rtol=0)
    assert_close(likeness[:, 0], torch.ones(M), atol=0.01, rtol=0)
    assert difference[:, 0].abs().amax() < 0.01
    expected = (memory.key(captions) @ memory.key(captions).T).topk(3, dim=1).values
    assert_close(likeness, expected, atol=0.02, rtol=0)


def test_the_texts_of_a_caption_take_turns(memory, captions) -> None:
    """Two things: the nearest of each, then the second of each; a text of zeros finds nobody."""
    texts = torch.stack([torch.zeros(2, D), captions[[3, 5]], captions[[8, 9]]], dim=1)
    near = memory.neighbours(texts, 4)
    assert near.texts.tolist() == [[1, 2, 1, 2]] * 2
    assert near.rows[:, :2].tolist() == [[3, 8], [5, 9]]
    alone = memory.neighbours(captions[[3], None], 2)
    assert torch.equal(near.rows[:1, ::2], alone.rows)


def test_nobody_is_like_a_caption_that_is_like_nothing(memory, captions) -> None:
    near = memory.neighbours(captions[:2, None], 3, least_likeness=0.99)
    assert near.rows.tolist() == [[0, NOBODY, NOBODY], [1, NOBODY, NOBODY]]
    recalled = memory.read(captions[:2, None], near)
    assert all(not part[:, 1:].any() for part in recalled)


def test_more_neighbours_than_pictures(captions) -> None:
    memory = EmbeddingMemory(2, D, P)
    memory.fit_keys(captions, torch.arange(M))
    memory.store(captions[:2], captions[:2])
    near = memory.neighbours(captions[:1, None], 5)
    assert sorted(near.rows[0].tolist()) == [NOBODY] * 3 + [0, 1]
    assert near.rows[0, 0] == 0


def test_hidden_neighbours_make_room_for_the_next() -> None:
    near = Neighbours(torch.tensor([[7, 3, 9, NOBODY]]), torch.tensor([[0, 1, 0, 0]]))
    left = near.without(near.rows == 7, 3)
    assert left.rows.tolist() == [[3, 9, NOBODY]]
    assert left.texts[0, :2].tolist() == [1, 0]


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
    found = which[~held][memory.neighbours(captions[held][:, None], 1).rows[:, 0]]
    likeness = F.normalize(captions[held], dim=-1) @ F.normalize(captions[~held], dim=-1).T
    plain = which[~held][likeness.argmax(1)]
    assert float((found == which[held]).float().mean()) > 0.9
    assert float((plain == which[held]).float().mean()) < 0.6


def test_a_key_longer_than_an_embedding_is_refused() -> None:
    with pytest.raises(UserError, match="key_dim: expected 1 to embed_dim = 8, got 9"):
        EmbeddingMemory(4, 8, 9)
