"""How two sets of pictures compare as sets: what of one lies within the other, and how varied they are.

precision, recall   Kynkäänniemi et al. 2019 (1904.06991): the share of made pictures within the real ones' manifold,
                    and of real ones within the made ones'; a manifold is the union of balls around a set's features,
                    each reaching to its k-th neighbour
CMMD                Jayasumana et al. 2024 (2401.09603): maximum mean discrepancy of CLIP embeddings with a Gaussian
                    kernel, unbiased, so that unlike a Fréchet distance it does not fall with more pictures
diversity           mean cosine distance of features over the pairs of pictures of one prompt

Shapes: N real and M made pictures, F features, P prompts, S seeds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unclip.errors import UserError

NEIGHBOUR = 3  # k of the paper
CMMD_BANDWIDTH, CMMD_SCALE = (
    10.0,
    1000.0,
)  # sigma, and the factor that makes the figure readable, both the paper's


def within(points: Tensor, manifold: Tensor, k: int = NEIGHBOUR) -> np.ndarray:
    """Which of `points` [M,F] lie within the manifold of features [N,F] -> bool [M].

    precision = within(made, real).mean(), recall = within(real, made).mean(), for sets of equal size.

    Raises:
        UserError: the manifold has no k-th neighbours.
    """
    if len(manifold) <= k:
        raise UserError(f"a manifold of {k} neighbours needs more than {k} pictures, got {len(manifold)}")
    manifold, points = manifold.double(), points.double()
    # Each point is its own nearest: the k-th neighbour is the (k + 1)-th smallest distance.
    reach = _distances(manifold, manifold).kthvalue(k + 1, dim=1).values
    return (_distances(points, manifold) <= reach).any(1).numpy()


def cmmd(made: Tensor, real: Tensor) -> float:
    """CMMD of unit-norm CLIP embeddings [M,F] and [N,F]; about 0 for two samples of one distribution.

    Raises:
        UserError: fewer than two pictures in a set.
    """
    if min(len(made), len(real)) < 2:
        raise UserError(f"CMMD needs at least 2 pictures a set, got {len(made)} and {len(real)}")
    made, real = made.double(), real.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-_distances(a, b).square() / (2 * CMMD_BANDWIDTH**2))

    def own(a: Tensor) -> Tensor:
        # 1 - k keeps the digits that a kernel as wide as this one loses beside 1; a pair with itself is left out.
        return (1 - kernel(a, a)).sum() / (len(a) * (len(a) - 1))

    return float(CMMD_SCALE * (2 * (1 - kernel(made, real)).mean() - own(made) - own(real)))


def diversity(features: Tensor) -> np.ndarray:
    """Mean cosine distance over the pairs of each prompt's pictures: unit features [P,S,F] -> [P] in [0, 2].

    Raises:
        UserError: one seed alone.
    """
    S = features.shape[1]
    if S < 2:
        raise UserError(f"diversity compares pictures of one prompt: expected at least 2 seeds, got {S}")
    similarity = features.double() @ features.double().transpose(1, 2)  # [P, S, S]
    pairs = torch.triu(torch.ones(S, S, dtype=torch.bool), diagonal=1)
    return (1 - similarity[:, pairs]).mean(1).numpy()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [len(a), len(b)]; the sure way, not by dot products: those of a point to itself are 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
