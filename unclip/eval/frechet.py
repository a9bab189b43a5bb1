"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

FD = |m_1 - m_2|² + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

FID is this figure with Inception features and 50,000 pictures. With any other network it gets that network's
name (FD-MobileNetV2), and it comes with the numbers of pictures, since few pictures bias it upwards: compare
it only with the distance of as many real pictures.

Shapes: N pictures, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from unclip.errors import UserError
from unclip.eval.bootstrap import CONFIDENCE, Estimate

RESAMPLES = 100


@dataclass(frozen=True)
class Gaussian:
    """Mean [F] and covariance [F,F] in float64, of `n` samples."""

    mean: Tensor
    covariance: Tensor
    n: int


def fit_gaussian(features: Tensor) -> Gaussian:
    """Fit a Gaussian to features [N,F]; the covariance is the unbiased one.

    Raises:
        UserError: fewer than two samples.
    """
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"a covariance needs features [N, F] with N >= 2, got {list(features.shape)}")
    x = features.double()
    centred = x - x.mean(0)
    return Gaussian(x.mean(0), centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians; 0 for equal ones.

    tr (C_1 C_2)^{1/2} is the sum of the singular values of C_1^{1/2} C_2^{1/2}, which needs no square root of
    a matrix that is not symmetric.
    """
    shift = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(_square_root(a.covariance) @ _square_root(b.covariance)).sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding may bring equal Gaussians just below zero


class FrechetTo:
    """Distances of small sets to one large set of features [N,F], with intervals.

    Of n samples X about their mean, tr (C_1 C_2)^{1/2} is the sum of the roots of the eigenvalues of the n x n matrix
    X C_2 X^T / (n - 1): a resample costs no decomposition of an F x F matrix.
    """

    def __init__(self, features: Tensor) -> None:
        self.all = fit_gaussian(features)

    def estimate(self, features: Tensor, seed: int = 0) -> Estimate:
        """The distance of features [n,F] with its 95 % interval: 1.96 deviations of the bootstrap to either side.

        Not its quantiles: a resample has fewer different pictures, and fewer pictures are always farther away.

        Raises:
            UserError: fewer than two samples.
        """
        fit_gaussian(features)
        x = features.double() - self.all.mean
        inner, spread = x @ x.T, x @ self.all.covariance @ x.T
        n = len(x)
        value = self._distance(inner, spread, torch.arange(n))
        rng = np.random.default_rng(seed)
        again = [
            self._distance(inner, spread, torch.from_numpy(rng.integers(n, size=n))) for _ in range(RESAMPLES)
        ]
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(np.std(again, ddof=1))
        return Estimate(value, max(0.0, value - half), value + half, n)

    def _distance(self, inner: Tensor, spread: Tensor, rows: Tensor) -> float:
        """Of the samples `rows` [n], from the inner products [n,n] of x less the large set's mean, plain and by C_2."""
        n = len(rows)
        inner, spread = inner[rows][:, rows], spread[rows][:, rows]
        shift = inner.mean()
        own = (inner.diagonal().sum() - n * shift) / (n - 1)
        centred = spread - spread.mean(0) - spread.mean(1, keepdim=True) + spread.mean()
        overlap = (torch.linalg.eigvalsh(centred).clamp(min=0) / (n - 1)).sqrt().sum()
        return max(0.0, float(shift + own + self.all.covariance.trace() - 2 * overlap))


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
