"""Image embeddings as short sequences of whole numbers: principal components, each put into one of a few buckets.

unCLIP §2.2: the AR prior predicts z_i "in a sequence of discrete codes": 319 principal components of 1,024, in the
order of their eigenvalues, hold nearly all there is of CLIP's image embeddings, so the codes go from coarse to fine.

Legend of shapes: N embeddings to fit to, B batch, D embedding size, K components.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError

REACH = 3.5  # standard deviations to either side that the buckets of a component cover


def principal_components(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of embeddings z [N, D], in closed form: mean [D], orthonormal axes [D, D] by decreasing variance, variances [D].

    Raises:
        UserError: fewer than two of them.
    """
    if z.ndim != 2 or len(z) < 2:
        raise UserError(f"components need at least two embeddings [N, D], got {tuple(z.shape)}")
    mean = z.mean(0, dtype=torch.float64)
    centred = z.double() - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(z))  # ascending, columns
    axes = vectors.T.flip(0)
    # An axis has no direction of its own: the largest entry is made positive, so that every machine agrees.
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return mean, axes * largest.sign(), variances.flip(0).clamp(min=0)


class CodedEmbeddings(nn.Module):
    """Mix-in for networks that see image embeddings as codes; what they mean is stored with the weights as buffers."""

    embed_mean: Tensor  # [D]
    axes: Tensor  # [K, D], orthonormal rows, by decreasing variance
    scale: Tensor  # [K], the standard deviation along each
    buckets: int

    def register_codes(self, embed_dim: int, components: int, buckets: int) -> None:
        if not 1 <= components <= embed_dim or buckets < 2:
            raise UserError(
                f"expected components from 1 to embed_dim={embed_dim} and at least 2 buckets, "
                f"got {components} and {buckets}"
            )
        self.buckets = buckets
        self.register_buffer("embed_mean", torch.zeros(embed_dim))
        self.register_buffer("axes", torch.eye(components, embed_dim))
        self.register_buffer("scale", torch.ones(components))

    @torch.no_grad()
    def fit_pca(self, z: Tensor) -> float:
        """Find mean, principal components and their scale from embeddings z [N, D], in closed form.

        Returns: the share of the variance that the components keep.
        Raises: UserError if z has another size, or too few rows to have a variance.
        """
        K, D = self.axes.shape
        if z.ndim == 2 and z.shape[1] != D:
            raise UserError(f"expected embeddings of size {D}, got {tuple(z.shape)}")
        mean, axes, variances = principal_components(z)
        self.embed_mean.copy_(mean)
        self.axes.copy_(axes[:K])
        self.scale.copy_(variances[:K].sqrt().clamp(min=1e-6))
        return float(variances[:K].sum() / variances.sum())

    def coordinates(self, z: Tensor) -> Tensor:
        """Embeddings [B, D] along the axes, in standard deviations: [B, K] float32."""
        return (z.float() - self.embed_mean.float()) @ self.axes.float().T / self.scale.float()

    def encode(self, z: Tensor) -> Tensor:
        """Embeddings [B, D] -> codes [B, K] int64 in 0 … buckets - 1.

        Buckets are of equal width w and cover `REACH` standard deviations to either side; what lies further out falls
        into the last one. Within them the middle of a bucket errs by at most w/2 = `REACH` / `buckets` standard
        deviations, in the mean square by w²/12: with 64 buckets 0.1 % of the variance.
        """
        codes = ((self.coordinates(z) + REACH) * (self.buckets / (2 * REACH))).floor()
        return codes.clamp(0, self.buckets - 1).long()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K] -> the embeddings in the middle of their buckets, [B, D] of unit norm, float32."""
        coordinates = (codes.float() + 0.5) * (2 * REACH / self.buckets) - REACH
        z = self.embed_mean.float() + (coordinates * self.scale.float()) @ self.axes.float()
        return F.normalize(z, dim=-1)
