"""Between embeddings: they are directions, so the way from one to another is an arc (unCLIP §3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.diffusion.schedule import at_least_float32

ROUNDS = 50  # of the mean of three or more; that of two is exact after the first


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From a (share 0) to b (share 1) along the arc between them; lengths go linearly along.

    Args: a, b: [..., D]. share: a number, or [...] for one of each row; all are broadcast.
    Returns: [..., D].
    """
    shares = torch.as_tensor(share, dtype=a.dtype, device=a.device)[..., None]
    a, b, shares = torch.broadcast_tensors(a, b, shares)
    weights = torch.stack([1 - shares[..., 0], shares[..., 0]], dim=-1)
    return spherical_mean(torch.stack([a, b], dim=-2), weights)


def spherical_mean(vectors: Tensor, weights: Tensor) -> Tensor:
    """The point whose weighted arcs to all vectors cancel out (Buss & Fillmore 2001); of two the slerp.

    Args:
        vectors: [..., n, D], of any lengths; the mean's length is the weighted mean of theirs.
        weights: [..., n], none negative, at least one positive.

    Returns: [..., D].
    """
    dtype = vectors.dtype
    vectors = at_least_float32(vectors)  # 1e-12 is 0 in half precision
    weights = weights.to(vectors)
    weights = weights / weights.sum(-1, keepdim=True)
    lengths = vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    points = vectors / lengths
    # Begin at the heaviest: what lies opposite has a direction from there, too, whichever it is.
    mean = points.gather(
        -2, weights.argmax(-1)[..., None, None].expand(*points.shape[:-2], 1, points.shape[-1])
    )
    for _ in range(ROUNDS if vectors.shape[-2] > 2 else 1):
        step = (weights[..., None] * _log(mean, points)).sum(-2, keepdim=True)
        mean = _exp(mean, step)
    return (mean * (weights[..., None] * lengths).sum(-2, keepdim=True)).squeeze(-2).to(dtype)


def _log(origin: Tensor, points: Tensor) -> Tensor:
    """Directions from a point [..., 1, D] to others [..., n, D] along the sphere, as long as the arcs."""
    cosine = (origin * points).sum(-1, keepdim=True).clamp(-1, 1)
    across = points - cosine * origin
    length = across.norm(dim=-1, keepdim=True)
    # atan2 keeps small angles that acos of a number near 1 rounds away.
    return across / length.clamp(min=1e-12) * torch.atan2(length, cosine)


def _exp(origin: Tensor, step: Tensor) -> Tensor:
    """Where a step leads along the sphere."""
    angle = step.norm(dim=-1, keepdim=True)
    return angle.cos() * origin + angle.sin() * step / angle.clamp(min=1e-12)
