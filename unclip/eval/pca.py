"""Pictures from ever more principal components of z_i (unCLIP, figure 7): what CLIP sees first, and what last.

    z_k = mean + V_k V_k^T (z - mean), made as long as z again

V_k are the first k axes of image embeddings, by decreasing variance. With all of them z_k = z.

Shapes: B pictures, D width of the embeddings, K axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.errors import UserError
from unclip.models.codes import principal_components


@dataclass(frozen=True)
class Basis:
    """Mean [D] and orthonormal axes [K, D] of image embeddings, by decreasing variance."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, z: Tensor) -> Basis:
        """All principal components of embeddings [N, D].

        Raises:
            UserError: fewer than two of them.
        """
        mean, axes, _ = principal_components(z)
        return cls(mean.float(), axes.float())

    def keep(self, z: Tensor, k: int) -> Tensor:
        """Embeddings [B, D] of the first k components -> [B, D] of unit norm."""
        axes = self.axes[:k].to(z)
        mean = self.mean.to(z)
        return F.normalize(mean + (z - mean) @ axes.T @ axes, dim=-1)

    def counts(self, wanted: Sequence[int] | None = None) -> list[int]:
        """How many components to keep in turn: those wanted, or powers of two below K, and K.

        Raises:
            UserError: one is below 1 or above K.
        """
        K = len(self.axes)
        if wanted is None:
            return [2**i for i in range(K.bit_length()) if 2**i < K] + [K]
        if wrong := [k for k in wanted if not 1 <= k <= K]:
            raise UserError(f"components must lie between 1 and {K}, which this basis has; got {wrong[0]}")
        return list(wanted)


def frames(basis: Basis, z: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Embeddings of k components for each k, then z itself: [B, len(counts) + 1, D], and how each is called."""
    kept = [basis.keep(z, k) for k in counts]
    return torch.stack([*kept, F.normalize(z, dim=-1)], dim=1), [*(f"k = {k}" for k in counts), "all"]
