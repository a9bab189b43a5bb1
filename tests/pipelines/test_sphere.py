"""Arcs and means on the sphere against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from unclip.pipelines.sphere import slerp, spherical_mean


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arcs(mean: Tensor, to: Tensor) -> Tensor:
    """Directions from a unit vector [D] to others [n, D] along the sphere, as long as the arcs."""
    cosine = to @ mean
    across = F.normalize(to - cosine[:, None] * mean, dim=-1)
    return across * cosine.clamp(-1, 1).acos()[:, None]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_is_shoemakes_formula(share: float) -> None:
    a, b = points(2, 50, 8)
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (u * v).sum(-1, keepdim=True).acos()
    expected = (((1 - share) * angle).sin() * u + (share * angle).sin() * v) / angle.sin()
    lengths = (1 - share) * a.norm(dim=-1, keepdim=True) + share * b.norm(dim=-1, keepdim=True)
    assert_close(slerp(a, b, share), lengths * expected)
    assert_close(slerp(b, a, 1 - share), slerp(a, b, share))


def test_a_share_for_each_row() -> None:
    a, b, shares = points(4, 8), points(4, 8, seed=1), torch.tensor([0.0, 0.3, 0.6, 1.0])
    together = slerp(a, b, shares)
    for i, share in enumerate(shares.tolist()):
        assert_close(together[i], slerp(a[i], b[i], share), rtol=1e-6, atol=1e-6)
    assert_close(together[0], a[0], rtol=1e-6, atol=1e-6)
    assert_close(together[3], b[3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dimensions", [2, 12])
def test_angles_grow_evenly(dimensions: int) -> None:
    a, b = F.normalize(points(2, dimensions), dim=-1)
    way = torch.stack([slerp(a, b, k / 10) for k in range(11)])
    steps = (way[:-1] * way[1:]).sum(-1).acos()
    assert_close(steps, (a @ b).acos().expand(10) / 10)


def test_small_angles_keep_their_digits() -> None:
    a = torch.tensor([1.0, 0.0])
    for angle in (1e-3, 1e-5, 1e-7):
        b = torch.tensor([math.cos(angle), math.sin(angle)])
        assert_close(slerp(a, b, 0.5)[1].item(), angle / 2, rtol=1e-4, atol=0)
    assert_close(slerp(a, a, 0.3), a, rtol=0, atol=0)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_weighted_arcs_to_a_mean_cancel(n: int) -> None:
    vectors = points(n, 12)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = spherical_mean(vectors, weights)
    share = weights / weights.sum()
    assert_close(mean.norm(), (share * vectors.norm(dim=-1)).sum())
    residue = (share[:, None] * arcs(F.normalize(mean, dim=-1), F.normalize(vectors, dim=-1))).sum(0)
    assert_close(residue, torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(spherical_mean(vectors, 5 * weights), mean)


def test_the_order_of_vectors_does_not_matter() -> None:
    vectors, weights = points(5, 12), torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1], dtype=torch.float64)
    turned = torch.tensor([3, 1, 4, 0, 2])
    assert_close(
        spherical_mean(vectors[turned], weights[turned]),
        spherical_mean(vectors, weights),
        rtol=1e-6,
        atol=1e-6,
    )
    turn = torch.linalg.qr(points(12, 12, seed=3))[0]  # nor where the sphere's poles are
    assert_close(
        spherical_mean(vectors @ turn, weights), spherical_mean(vectors, weights) @ turn, rtol=1e-6, atol=1e-6
    )


def test_all_the_weight_on_one() -> None:
    vectors = points(3, 12)
    assert_close(spherical_mean(vectors, torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)), vectors[1])


def test_the_mean_of_axes_is_their_diagonal() -> None:
    assert_close(spherical_mean(torch.eye(4), torch.ones(4)), torch.full((4,), 0.5))


def test_a_batch_is_its_rows() -> None:
    vectors, weights = points(6, 3, 12), points(6, 3, seed=2).abs()
    for i, mean in enumerate(spherical_mean(vectors, weights)):
        assert_close(mean, spherical_mean(vectors[i], weights[i]))


def test_opposite_vectors_have_a_finite_mean() -> None:
    a = F.normalize(points(12), dim=-1)
    half = slerp(a, -a, 0.5)
    assert half.isfinite().all()
    assert_close(half.norm(), torch.tensor(1.0, dtype=torch.float64))
