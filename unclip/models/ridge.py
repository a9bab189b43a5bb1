"""Ridge regression in closed form: the linear map of embeddings that a prior begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.errors import UserError

RIDGE = 1e-3


def ridge_map(x: Tensor, y: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The map y ≈ W x + b with the least squared error, and a penalty on W: weight [E, D] and bias [E], float64.

    With centred rows X and Y the map is W = ((X'X/N + ridge · tr(X'X/N)/D · I)⁻¹ X'Y/N)', so `ridge` is relative to the
    mean variance of an entry of x. Sums are in double precision; what x says nothing of (ridge=0, a singular X'X) is 0.

    Args: x [N, D], y [N, E]. ridge: 0 for plain least squares.
    Raises: UserError if there are no pairs, or not as many of either, or `ridge` is negative.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0 or not ridge >= 0:
        raise UserError(
            f"expected pairs x [N, D] and y [N, E] and a ridge of at least 0, got {tuple(x.shape)}, "
            f"{tuple(y.shape)} and {ridge:g}: give one caption's embedding for each picture's"
        )
    D = x.shape[1]
    x_mean, y_mean = x.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
    X, Y = x.double() - x_mean, y.double() - y_mean
    covariance = X.T @ X / len(X)
    penalty = ridge * covariance.diagonal().mean() * torch.eye(D, dtype=X.dtype, device=X.device)
    weight = torch.linalg.lstsq(covariance + penalty, X.T @ Y / len(X), driver="gelsd").solution.T
    return weight, y_mean - weight @ x_mean
