"""Degradations against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unclip.data import degradations


def picture(size=24, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_down_is_the_mean_of_blocks():
    x = picture()
    small = degradations.down(x, 4)
    assert small.shape == (2, 3, 6, 6)
    torch.testing.assert_close(small[0, 1, 2, 3], x[0, 1, 8:12, 12:16].mean())
    assert degradations.down(x, 1) is x
    with pytest.raises(ValueError, match="multiples of 5"):
        degradations.down(x, 5)


def test_gaussian_blur_has_the_variance_asked_for_and_keeps_the_sum():
    x = torch.zeros(2, 1, 41, 41)
    x[:, :, 20, 20] = 1.0
    blurred = degradations.gaussian_blur(x, torch.tensor([1.0, 2.5]))
    places = torch.arange(41.0) - 20
    for sigma, found in zip((1.0, 2.5), blurred[:, 0], strict=True):
        torch.testing.assert_close(found.sum(), torch.tensor(1.0))
        variance = (found.sum(0) * places**2).sum()
        torch.testing.assert_close(variance, torch.tensor(sigma**2), rtol=0.03, atol=0.0)
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(degradations.gaussian_blur(flat, 3.0), flat)


def test_no_blur_leaves_the_picture_as_it_is():
    x = picture()
    assert degradations.gaussian_blur(x, 0.0) is x
    torch.testing.assert_close(degradations.gaussian_blur(x, torch.tensor([0.0, 1.0]))[0], x[0])
    with pytest.raises(ValueError, match="sigma >= 0"):
        degradations.gaussian_blur(x, -1.0)


def test_bsr_keeps_shape_and_range_and_follows_its_generator():
    x = picture(32, 3)
    once = degradations.bsr(x, np.random.default_rng(0))
    assert once.shape == x.shape
    assert once.abs().max() <= 1.0
    torch.testing.assert_close(once, degradations.bsr(x, np.random.default_rng(0)))
    assert not torch.equal(once, degradations.bsr(x, np.random.default_rng(1)))
    weak = degradations.bsr(x, np.random.default_rng(0), strength=0.1)
    assert (weak - x).abs().mean() < (once - x).abs().mean()
    with pytest.raises(ValueError, match="strength"):
        degradations.bsr(x, np.random.default_rng(0), strength=2.0)
