"""Precision, recall, CMMD and diversity on sets whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.eval.distribution import CMMD_SCALE, cmmd, diversity, within


def normal(n: int, seed: int, dimensions: int = 4) -> torch.Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))


def test_a_set_lies_within_itself_and_not_far_away() -> None:
    real = normal(50, 0)
    assert within(real, real).all()
    assert not within(real + 100, real).any()


def test_the_balls_reach_to_the_kth_neighbour() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    # With k = 1 the balls are [-1, 1], [0, 2], [1, 3] and [2, 18].
    points = torch.tensor([[-1.0], [-1.1], [3.0], [17.9], [18.1]])
    assert within(points, line, k=1).tolist() == [True, False, True, True, False]


def test_one_kind_of_picture_is_precise_and_does_not_recall() -> None:
    real, narrow = normal(400, 0), 0.05 * normal(400, 1)
    assert within(narrow, real).mean() == 1
    assert within(real, narrow).mean() < 0.05
    wide = 5 * normal(400, 1)
    assert within(wide, real).mean() < 0.3
    assert within(real, wide).mean() > 0.95


def test_cmmd_is_that_of_its_kernel() -> None:
    made, real = F.normalize(normal(5, 0), dim=1), F.normalize(normal(7, 1), dim=1)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.exp(-(a - b).double().square().sum() / 200))

    def mean(a: torch.Tensor) -> float:
        return float(np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]))

    across = np.mean([kernel(a, b) for a in made for b in real])
    assert_close(cmmd(made, real), CMMD_SCALE * (mean(made) + mean(real) - 2 * across), rtol=1e-6, atol=1e-9)


def test_cmmd_is_unbiased_and_grows_with_the_shift() -> None:
    same = [cmmd(normal(40, 2 * i), normal(40, 2 * i + 1)) for i in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5
    near, far = (cmmd(normal(200, 0) + shift, normal(200, 1)) for shift in (0.5, 1.0))
    assert 5 * np.std(same) < near < far
    # For normals and a wide kernel it is |shift|² / sigma² to first order.
    assert_close(far, CMMD_SCALE * 4 / 100, rtol=0.25, atol=0)


def test_diversity_is_the_mean_distance_of_a_prompts_pictures() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = torch.stack([torch.stack(each) for each in ([x, x, x], [x, y, -x], [x, y, y])])
    assert_close(diversity(features), np.array([0.0, 4 / 3, 2 / 3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: within(normal(5, 0), normal(3, 0)), "more than 3 pictures, got 3"),
        (lambda: cmmd(normal(1, 0), normal(3, 0)), "at least 2 pictures a set, got 1 and 3"),
        (lambda: diversity(torch.ones(4, 1, 3)), "at least 2 seeds, got 1"),
    ],
)
def test_too_few_pictures_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
