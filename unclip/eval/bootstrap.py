"""Means and quantiles with confidence intervals from resampling (Efron's percentile bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean or quantile over `n` cases, and the ends of its interval."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for a JSON report."""
        return asdict(self)


def bootstrap(values: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate a mean from one value a case [N] with its 95 % percentile interval.

    Shares (all values 0 or 1) that are exactly 0 or 1 have no spread to resample; they get Wilson's interval,
    so that nought out of ten does not look as certain as nought out of a thousand.

    Raises:
        ValueError: no values.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"expected at least one value in a flat sequence, got shape {list(x.shape)}")
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        return _wilson(x[0], len(x))
    rng = np.random.default_rng(seed)
    means = x[rng.integers(len(x), size=(resamples, len(x)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(x.mean()), float(low), float(high), len(x))


def bootstrap_quantile(
    values: Sequence[float] | np.ndarray, quantile: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Estimate a quantile (0..1) of values [N] with its 95 % percentile interval.

    Raises:
        ValueError: no values.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"expected at least one value in a flat sequence, got shape {list(x.shape)}")
    rng = np.random.default_rng(seed)
    found = np.quantile(x[rng.integers(len(x), size=(resamples, len(x)))], quantile, axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(float(np.quantile(x, quantile)), float(low), float(high), len(x))


def told_apart(a: Mapping[str, float], b: Mapping[str, float]) -> int:
    """1 if estimate a is larger than b, -1 if b is, 0 if sampling may explain the difference.

    That is, if they differ by no more than the root of the sum of the squared half widths of their intervals. Estimates
    on the same cases are rather too seldom told apart.
    """
    gap = a["value"] - b["value"]
    noise = math.hypot(*((each["high"] - each["low"]) / 2 for each in (a, b)))
    return 0 if abs(gap) <= noise else int(math.copysign(1, gap))


def _wilson(share: float, n: int) -> Estimate:
    """Wilson's score interval of a share that is 0 or 1."""
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    width = z2 / (n + z2)
    return Estimate(share, max(0.0, share - width), min(1.0, share + width), n)
