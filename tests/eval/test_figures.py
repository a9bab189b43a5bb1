"""The figures themselves, against closed forms and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.frechet import Gaussian, fit_gaussian, frechet_distance
from unclip.eval.retrieval import chance, label_numbers, neighbours, ranks


def gaussian(mean: list[float], covariance: torch.Tensor) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), covariance.double(), 100)


def test_frechet_distance_of_commuting_gaussians() -> None:
    # With a shared eigenbasis, FD = |m1 - m2|² + Σ (sqrt λ1 - sqrt λ2)².
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    a = gaussian([0, 0, 0], basis @ torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()) @ basis.T)
    b = gaussian([1, 2, 2], basis @ torch.diag(torch.tensor([4.0, 1.0, 0.0]).double()) @ basis.T)
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 1 + 9, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_two_by_two_gaussians() -> None:
    # tr (AB)^{1/2} = sqrt(tr AB + 2 sqrt det AB) for 2×2 matrices.
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    root = ((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * root).item()
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_samples_than_features() -> None:
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    fitted = fit_gaussian(x)
    assert_close(fitted.covariance, torch.cov(x.double().T))
    assert frechet_distance(fitted, fitted) == pytest.approx(0, abs=1e-6)
    shifted = fit_gaussian(x + 2)
    assert frechet_distance(fitted, shifted) == pytest.approx(20 * 4, rel=1e-5)
    with pytest.raises(UserError, match="N >= 2"):
        fit_gaussian(x[:1])


def test_ranks_are_those_of_the_best_right_picture() -> None:
    gallery = torch.eye(4)
    queries = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
    # Query 0 wants "c" (third), query 1 "a" (fourth) or the other "a" (second), query 2 what is not there.
    found = ranks(queries, gallery, ["c", "a", "x"], ["a", "b", "c", "a"])
    assert found.tolist() == [3, 1, 5]


def test_an_encoder_that_sees_no_difference_gets_no_credit() -> None:
    same = torch.ones(6, 3)
    assert ranks(same, same, list("abcdef"), list("abcdef")).tolist() == [6] * 6


def test_ranks_do_not_depend_on_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(600, 8, generator=generator) for _ in range(2))
    labels = [i % 40 for i in range(600)]
    found = ranks(queries, gallery, labels, labels)
    one_by_one = [ranks(queries[i : i + 1], gallery, labels[i : i + 1], labels)[0] for i in range(0, 600, 97)]
    assert found[::97].tolist() == one_by_one


def test_chance_is_met_by_random_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [i % 10 for i in range(50)]
    queries, gallery = (torch.randn(n, 16, generator=generator) for n in (4000, 50))
    found = ranks(queries, gallery, [i % 10 for i in range(4000)], labels)
    for k in (1, 5):
        assert (found <= k).mean() == pytest.approx(chance(range(10), labels, k), abs=0.04)
    assert chance(["a"], ["a", "b", "b", "b"]) == pytest.approx(0.25)
    assert chance(["a"], ["a", "b", "b", "b"], k=2) == pytest.approx(0.5)


def test_neighbours_leave_out_what_is_forbidden() -> None:
    gallery = torch.eye(3)
    query = torch.tensor([[0.9, 0.5, 0.1]])
    assert neighbours(query, gallery, 2).tolist() == [[0, 1]]
    assert neighbours(query, gallery, 2, torch.tensor([[True, False, False]])).tolist() == [[1, 2]]


def test_label_numbers_are_shared() -> None:
    first, second = label_numbers([("a", 1), ("b", 1)], [("b", 1), ("c", 1)])
    assert first.tolist() == [0, 1]
    assert second.tolist() == [1, 2]


def test_bootstrap_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        estimate = bootstrap(rng.random(60) < 0.3, seed=trial, resamples=400)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_is_repeatable_and_ordered() -> None:
    values = np.random.default_rng(1).normal(size=50)
    estimate = bootstrap(values, seed=3)
    assert estimate == bootstrap(values, seed=3)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(values.mean())


def test_bootstrap_of_nothing_but_misses_is_not_certain() -> None:
    ten, thousand = bootstrap([0] * 10), bootstrap([0] * 1000)
    assert ten.value == ten.low == 0
    assert ten.high == pytest.approx(0.2775, abs=1e-3)  # Wilson, 0 of 10
    assert thousand.high < 0.01
    assert bootstrap([1] * 10).low == pytest.approx(1 - 0.2775, abs=1e-3)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])
