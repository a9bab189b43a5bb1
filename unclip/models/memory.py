"""A memory of pictures' embeddings that a caption can be looked up in.

Each picture has a key, made of what its captions say, and a value, its image embedding. Keys compare captions by what
they show and hardly by how: the projection is Fisher's linear discriminant, which shrinks the directions in which
captions of one subject differ (wording, style) and keeps those that tell subjects apart.

Of two things beside or above one another the memory composes a value that it has not: what a shrunk, shifted thing adds
to an embedding with a layout code is nearly linear in the thing's own embedding.

Legend of shapes: B batch, D embedding size, P key size, M pictures, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError

NOBODY = -1  # in the place of a neighbour that there is not
SHRINKAGE = 0.1  # added to the covariance within subjects, in parts of its largest eigenvalue
AT_ONCE = 1_024  # captions looked up together, so that memory stays bounded
PAIRS = 2  # arrangements of two things: side by side, one above the other
LEVELS = 16  # that a number of a value may have: half a byte each
SAMPLE = 200_000  # numbers that the levels are fitted to
ROUNDS = 200  # of the fit
RIDGE = 300.0  # of the fit of compositions, whose inputs have about unit variance
FAMILIAR = 0.85  # likeness of a caption to a picture from which on there is nothing to compose


class Recalled(NamedTuple):
    """What the memory holds of k neighbours of each caption; zeros where there is nobody."""

    values: Tensor  # [B, k, D], in the space they were stored in
    likeness: Tensor  # [B, k], cosine of the caption's key and the neighbour's
    difference: Tensor  # [B, k, P], the caption's key less the neighbour's


class EmbeddingMemory(nn.Module):
    """M keys of 8 bits and values of 4 bits a number, as buffers: they are saved with the network, not trained.

    Values are rounded to the levels that lose least (Lloyd 1982), fitted to all of them after each is scaled to unit
    mean square; two numbers share a byte. What is read has a cosine of .995 to what was stored.
    """

    center: Tensor
    projection: Tensor
    keys: Tensor
    values: Tensor
    value_scale: Tensor
    levels: Tensor
    compositions: Tensor

    def __init__(self, size: int, embed_dim: int, key_dim: int) -> None:
        super().__init__()
        if not 0 < key_dim <= embed_dim:
            raise UserError(f"key_dim: expected 1 to embed_dim = {embed_dim}, got {key_dim}")
        self.register_buffer("center", torch.zeros(embed_dim))
        self.register_buffer("projection", torch.zeros(embed_dim, key_dim))
        self.register_buffer("keys", torch.zeros(size, key_dim, dtype=torch.int8))
        self.register_buffer("values", torch.zeros(size, (embed_dim + 1) // 2, dtype=torch.uint8))
        self.register_buffer("value_scale", torch.ones(size))
        self.register_buffer("levels", torch.zeros(LEVELS))
        self.register_buffer("compositions", torch.zeros(PAIRS, 3 * embed_dim + 1, embed_dim))

    def fit_keys(self, captions: Tensor, subjects: Tensor) -> None:
        """Fit the projection, in closed form.

        Args:
            captions: [Q, D] embeddings z_t of captions, several of each subject.
            subjects: [Q] int64, which subject each shows.
        """
        captions = captions.double()  # few captions make matrices that are nearly singular
        _, which = subjects.unique(return_inverse=True)
        count = torch.bincount(which)
        means = (
            captions.new_zeros(len(count), captions.shape[1]).index_add(0, which, captions) / count[:, None]
        )
        within = torch.cov((captions - means[which]).T, correction=0)
        values, vectors = torch.linalg.eigh(within)
        floor = SHRINKAGE * values[-1].clamp(min=1e-8)
        whiten = vectors * (values.clamp(min=0) + floor).rsqrt()
        total = whiten.T @ torch.cov(captions.T, correction=0) @ whiten
        strongest = torch.linalg.eigh((total + total.T) / 2)[1][:, -self.projection.shape[1] :]
        self.center.copy_(captions.mean(0))
        self.projection.copy_(whiten @ strongest)

    def store(self, captions: Tensor, values: Tensor) -> None:
        """Fill the memory: of each picture the mean embedding of its captions [M, D] and its value [M, D]."""
        self.keys.copy_((self.key(captions) * 127).round())
        scale = values.square().mean(dim=1).sqrt().clamp(min=1e-8)
        values = values / scale[:, None]
        self.value_scale.copy_(scale)
        self.levels.copy_(lloyd_levels(values, LEVELS))
        codes = F.pad(nearest_level(values, self.levels), (0, values.shape[1] % 2)).to(torch.uint8)
        self.values.copy_(codes[:, ::2] * LEVELS + codes[:, 1::2])

    def key(self, text_embeds: Tensor) -> Tensor:
        """Captions' embeddings [..., D] -> keys [..., P] of unit norm, float32."""
        return F.normalize((text_embeds.float() - self.center.float()) @ self.projection.float(), dim=-1)

    def neighbours(self, text_embeds: Tensor, count: int, least_likeness: float = -1.0) -> Tensor:
        """The pictures whose keys are most like the captions', best first.

        Args:
            text_embeds: [B, D].
            count: k, how many.
            least_likeness: pictures less like the caption than this are no neighbours.

        Returns: [B, k] int64, NOBODY where there is none.
        """
        keys, k = self.keys.float().T / 127, min(count, len(self.keys))
        best = [(self.key(each) @ keys).topk(k, dim=1) for each in text_embeds.split(AT_ONCE)]
        likeness, rows = (torch.cat(found) for found in zip(*best, strict=True))
        return F.pad(rows.masked_fill(likeness < least_likeness, NOBODY), (0, count - k), value=NOBODY)

    def read(self, text_embeds: Tensor, neighbours: Tensor) -> Recalled:
        """What is stored of the neighbours [B, k] of captions [B, D]."""
        there = (neighbours != NOBODY)[..., None]
        rows = neighbours.clamp(min=0)
        keys = self.keys[rows].float() / 127 * there
        own = self.key(text_embeds)[:, None]
        packed = self.values[rows].long()
        codes = torch.stack([packed // LEVELS, packed % LEVELS], dim=-1).flatten(-2)[..., : len(self.center)]
        values = self.levels.float()[codes] * self.value_scale[rows].float()[..., None] * there
        return Recalled(values, (keys * own).sum(-1), (own - keys) * there)

    def fit_compositions(self, text_embeds: Tensor, things: Tensor, values: Tensor) -> None:
        """Fit how two things make a picture, by ridge regression.

        Args:
            text_embeds: [Q, D] of captions of scenes. things: [Q, 4, D], the embeddings of what they name, by place.
            values: [Q, D], the scenes' own, in the space of the memory's.
        """
        for pair in range(PAIRS):
            these = _named(things)[:, pair]
            if these.any():
                x = self._parts(text_embeds[these], things[these], pair)
                ridge = RIDGE * torch.eye(x.shape[1])
                self.compositions[pair] = torch.linalg.solve(x.T @ x + ridge, x.T @ values[these].float())

    def compose(self, text_embeds: Tensor, things: Tensor) -> Tensor:
        """The values of captions that name two things, where no picture's captions are like them.

        Args: text_embeds [B, D], things [B, 4, D] (zeros where there are none).
        Returns: [B, D] float32, zeros where there is nothing to compose.
        """
        result = torch.zeros(text_embeds.shape, device=text_embeds.device)
        named = _named(things)
        if not named.any():  # as nearly always: nothing has to be looked up
            return result
        unknown = self.read(text_embeds, self.neighbours(text_embeds, 1)).likeness[:, 0] < FAMILIAR
        for pair in range(PAIRS):
            these = named[:, pair] & unknown
            if these.any() and self.compositions[pair].any():
                x = self._parts(text_embeds[these], things[these], pair)
                result[these] = x @ self.compositions[pair].float()
        return result

    def _parts(self, text_embeds: Tensor, things: Tensor, pair: int) -> Tensor:
        """[value of the first thing, of the second, z_t of unit variance, 1] -> [B, 3D + 1]."""
        pictures = [
            self.read(thing, self.neighbours(thing, 1)).values[:, 0]
            for thing in things[:, 2 * pair : 2 * pair + 2].unbind(1)
        ]
        z_t = text_embeds.float() * text_embeds.shape[1] ** 0.5
        return torch.cat([*pictures, z_t, torch.ones_like(z_t[:, :1])], dim=1)


def lloyd_levels(values: Tensor, count: int) -> Tensor:
    """The levels [count], in order, to which numbers are rounded with least squared error (Lloyd 1982)."""
    x = values.flatten()[:: max(1, values.numel() // SAMPLE)].float()
    levels = x.quantile((torch.arange(count, device=x.device) + 0.5) / count)
    for _ in range(ROUNDS):
        codes = nearest_level(x, levels)
        hits = torch.bincount(codes, minlength=count)
        means = torch.zeros_like(levels).index_add(0, codes, x) / hits.clamp(min=1)
        levels = torch.where(hits > 0, means, levels).sort().values
    return levels


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Which of the levels, in order, each number is nearest to, int64."""
    return torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)


def _named(things: Tensor) -> Tensor:
    """Which pairs of things [B, 4, D] are there, [B, PAIRS] bool."""
    return things.any(dim=-1).unflatten(1, (PAIRS, 2)).all(dim=-1)
