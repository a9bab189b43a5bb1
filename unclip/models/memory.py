"""A memory of pictures' embeddings that a caption can be looked up in.

Each picture has a key, made of what its captions say, and a value, its image embedding. Keys compare captions by what
they show and hardly by how: the projection is Fisher's linear discriminant, which shrinks the directions in which
captions of one subject differ (wording, style) and keeps those that tell subjects apart.

Legend of shapes: B batch, R texts looked up for each caption (itself and the things it names), D embedding size,
P key size, M pictures, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError

NOBODY = -1  # in the place of a neighbour that there is not
SHRINKAGE = 0.1  # added to the covariance within subjects, in parts of its largest eigenvalue


class Neighbours(NamedTuple):
    """Who is like a caption, best first."""

    rows: Tensor  # [B, k] int64, of the memory; NOBODY where there is none
    texts: Tensor  # [B, k] int64, which of the caption's R texts each is like

    def without(self, hidden: Tensor, count: int) -> Neighbours:
        """The first `count` of those that are not hidden [B, k]."""
        rows = self.rows.masked_fill(hidden, NOBODY)
        order = (rows == NOBODY).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
        return Neighbours(rows.gather(1, order), self.texts.gather(1, order))


class Recalled(NamedTuple):
    """What the memory holds of k neighbours of each caption; zeros where there is nobody."""

    values: Tensor  # [B, k, D], in the space they were stored in
    likeness: Tensor  # [B, k], cosine of the caption's key and the neighbour's
    difference: Tensor  # [B, k, P], the caption's key less the neighbour's


class EmbeddingMemory(nn.Module):
    """M keys and values in 8 bits each, as buffers: they are saved with the network, not trained."""

    center: Tensor
    projection: Tensor
    keys: Tensor
    values: Tensor
    value_scale: Tensor

    def __init__(self, size: int, embed_dim: int, key_dim: int) -> None:
        super().__init__()
        if not 0 < key_dim <= embed_dim:
            raise UserError(f"key_dim: expected 1 to embed_dim = {embed_dim}, got {key_dim}")
        self.register_buffer("center", torch.zeros(embed_dim))
        self.register_buffer("projection", torch.zeros(embed_dim, key_dim))
        self.register_buffer("keys", torch.zeros(size, key_dim, dtype=torch.int8))
        self.register_buffer("values", torch.zeros(size, embed_dim, dtype=torch.int8))
        self.register_buffer("value_scale", torch.ones(size))

    def fit_keys(self, captions: Tensor, subjects: Tensor) -> None:
        """Fit the projection, in closed form.

        Args:
            captions: [Q, D] embeddings z_t of captions, several of each subject.
            subjects: [Q] int64, which subject each shows.
        """
        captions = captions.float()
        _, which = subjects.unique(return_inverse=True)
        count = torch.bincount(which)
        means = torch.zeros(len(count), captions.shape[1]).index_add(0, which, captions) / count[:, None]
        within = torch.cov((captions - means[which]).T, correction=0)
        values, vectors = torch.linalg.eigh(within)
        floor = SHRINKAGE * values[-1].clamp(min=1e-8)
        whiten = vectors * (values.clamp(min=0) + floor).rsqrt()
        total = whiten.T @ torch.cov(captions.T, correction=0) @ whiten
        strongest = torch.linalg.eigh(total)[1][:, -self.projection.shape[1] :]
        self.center.copy_(captions.mean(0))
        self.projection.copy_(whiten @ strongest)

    def store(self, captions: Tensor, values: Tensor) -> None:
        """Fill the memory: of each picture the mean embedding of its captions [M, D] and its value [M, D]."""
        scale = values.abs().amax(dim=1).clamp(min=1e-8) / 127
        self.keys.copy_((self.key(captions) * 127).round())
        self.values.copy_((values / scale[:, None]).round())
        self.value_scale.copy_(scale)

    def key(self, text_embeds: Tensor) -> Tensor:
        """Captions' embeddings [B, D] -> keys [B, P] of unit norm, float32."""
        return F.normalize((text_embeds.float() - self.center.float()) @ self.projection.float(), dim=-1)

    def neighbours(self, texts: Tensor, count: int, least_likeness: float = -1.0) -> Neighbours:
        """The pictures whose keys are most like the captions': the nearest of each text, then the second, and so on.

        Args:
            texts: [B, R, D] embeddings, zeros where a caption has fewer.
            count: k, how many in all.
            least_likeness: pictures less like a text than this are no neighbours.
        """
        B, R, _ = texts.shape
        each = min(count, len(self.keys))
        best = (self.key(texts) @ (self.keys.float().T / 127)).topk(each, dim=-1)
        lost = (best.values < least_likeness) | ~texts.any(dim=-1, keepdim=True)
        rows = best.indices.masked_fill(lost, NOBODY).transpose(1, 2).flatten(1)  # [B, each * R], by rank
        which = torch.arange(R, device=texts.device).repeat(each).expand(B, -1)
        rows, which = (F.pad(found, (0, count), value=fill) for found, fill in ((rows, NOBODY), (which, 0)))
        return Neighbours(rows, which).without(rows == NOBODY, count)

    def read(self, texts: Tensor, neighbours: Neighbours) -> Recalled:
        """What is stored of the neighbours of captions with texts [B, R, D]."""
        there = (neighbours.rows != NOBODY)[..., None]
        rows = neighbours.rows.clamp(min=0)
        keys = self.keys[rows].float() / 127 * there
        own = self.key(texts).gather(1, neighbours.texts[..., None].expand(-1, -1, keys.shape[-1]))
        values = self.values[rows].float() * self.value_scale[rows].float()[..., None] * there
        return Recalled(values, (keys * own).sum(-1), (own - keys) * there)
