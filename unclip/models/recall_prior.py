"""Diffusion prior p(z_i | y) that looks things up: unCLIP's prior beside a memory of pictures' embeddings.

What a picture of a named thing looks like has to be known by heart, and a small network learns by heart slowly. Here
the embeddings of the training pictures are kept beside it; a caption recalls those whose own captions are most like it,
and the network only learns how to go from them to what was asked: take one as it is, or its subject in another style or
colour (retrieval-augmented diffusion, Blattmann et al. 2022; KNN-Diffusion, Sheynin et al. 2022).

Legend of shapes: B batch, L text tokens, D embedding size, C token-state size, W width, k neighbours, P key size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401 - pipelines look in a network's module for how it is loaded
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.caption_prior import Encoded, PrefixCache
from unclip.models.layers import init_linear, zero_
from unclip.models.memory import NOBODY, EmbeddingMemory
from unclip.models.prior import DiffusionPrior

STEEPEST = 12.0  # logarithm of a gain: there a neighbour that is a little nearer than the others is certain


class Guess(nn.Module):
    """The clean embedding, were it one of a few that are known: posterior mean over them (Karras et al. 2022, eq. 57).

    Of x = α z + σ ε with z one of v_1 … v_k with the chances p_k the mean of z is Σ w_k v_k, where
    log w_k = α/σ² x·v_k - α²/2σ² |v_k|² + log p_k. A network knows no schedule, so α/σ² and α²/σ² are learned functions
    of time, and so is how much a neighbour's likeness to the caption counts. That it is none of them, v = 0, is one
    more possibility.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Linear(width, 4)

    def reset(self) -> None:
        """Start where the most like is the likeliest, whatever x is."""
        zero_(self.gains)
        with torch.no_grad():
            self.gains.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 2.0]))

    def forward(self, x: Tensor, time: Tensor, values: Tensor, likeness: Tensor) -> Tensor:
        """x [B, D], time [B, W] (embedded), values [B, k, D], likeness [B, k], 0 for nobody -> [B, D]."""
        gains = self.gains(time).float().clamp(max=STEEPEST).exp()  # too steep for half precision
        along, across, alike, none = gains[..., None].unbind(1)  # each [B, 1]
        v = values.float()
        products = torch.einsum("bkd,bd->bk", v, x.float()) / x.shape[1]
        logits = along * products - across * v.square().mean(-1) / 2 + alike * likeness.float()
        logits = logits.masked_fill(likeness == 0, -torch.inf)
        weights = torch.cat([logits, none], dim=1).softmax(dim=1)[:, :-1]
        return torch.einsum("bk,bkd->bd", weights, v).to(x)


class RecallPrior(DiffusionPrior):
    """`DiffusionPrior` whose prefix goes on with k neighbours from its memory, and whose steps begin with a guess.

    The output is a mean of that guess and of the network's own prediction, weighed by the network in each dimension.
    Takes and gives what `DiffusionPrior` does, so it serves every pipeline. Its memory holds scaled embeddings.
    """

    NEW_LAYERS = ("memory", "neighbour_in", "guess", "guess_in", "trust")  # those that DiffusionPrior has not

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        token_dim: int = 384,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        max_tokens: int = 32,
        dropout: float = 0.0,
        time_scale: float = 1.0,
        schedule: str = "cosine",
        prediction_type: str = "sample",
        memory_size: int = 1,
        key_dim: int = 96,
        neighbours: int = 8,
        least_likeness: float = 0.6,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            token_dim=token_dim,
            width=width,
            layers=layers,
            heads=heads,
            max_tokens=max_tokens,
            dropout=dropout,
            time_scale=time_scale,
            schedule=schedule,
            prediction_type=prediction_type,
        )
        if neighbours < 1 or not -1 <= least_likeness <= 1:
            raise UserError(
                "expected neighbours of at least 1 and least_likeness, a cosine, of -1 to 1, "
                f"got {neighbours} and {least_likeness}"
            )
        self.neighbours, self.least_likeness = neighbours, least_likeness
        self.memory = EmbeddingMemory(memory_size, embed_dim, key_dim)
        self.neighbour_in = nn.Linear(embed_dim + key_dim + 2, width)
        self.guess = Guess(width)
        self.guess_in = nn.Linear(embed_dim, width)
        self.trust = nn.Linear(width, embed_dim)
        for layer in (self.neighbour_in, self.guess_in):
            init_linear(layer)
        zero_(self.trust)
        self.guess.reset()

    def read(self, text: Encoded) -> PrefixCache:
        """The prefix of encoded captions; two things that they name are composed."""
        composed = self.memory.compose(text.embeds, text.things)
        return self.prefix(text.tokens, text.mask, text.embeds, composed)

    def prefix(
        self,
        text_tokens: Tensor,
        text_mask: Tensor,
        text_embeds: Tensor,
        composed: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> PrefixCache:
        """Keys and values of [text tokens, z_t, neighbours], and what the neighbours are.

        Args:
            text_tokens, text_mask, text_embeds: as of `DiffusionPrior.prefix`.
            composed: [B, D], what `EmbeddingMemory.compose` made of captions: the only neighbour where it is not zero.
            rows: [B, k] int64, the neighbours in the memory, NOBODY for none; without, those most like the caption,
                where their likeness is at least `least_likeness`: "" is like nothing.
        """
        if rows is None:
            rows = self.memory.neighbours(text_embeds, self.neighbours, self.least_likeness)
        if composed is None:
            composed = torch.zeros_like(text_embeds)
        alone = composed.any(dim=1, keepdim=True)  # as if a picture's captions said just that
        rows = rows.masked_fill(alone, NOBODY)
        first = F.pad(alone, (0, rows.shape[1] - 1))
        values, likeness, difference = self.memory.read(text_embeds, rows)
        values = torch.where(first[..., None], composed[:, None].to(values), values)
        likeness = likeness.masked_fill(first, 1.0)
        there = ((rows != NOBODY) | first).to(values)
        features = torch.cat([values, difference, likeness[..., None], there[..., None]], dim=-1)
        tokens = self._prefix_tokens(text_tokens, text_mask, text_embeds)
        tokens = torch.cat([tokens, self.neighbour_in(features.to(tokens))], dim=1)
        cache = self._keys_and_values(tokens, text_mask)
        return PrefixCache({**cache, "recalled": values.to(tokens), "likeness": likeness.to(tokens)})

    def predict(self, x: Tensor, t: Tensor, prefix: PrefixCache) -> Tensor:
        """As of the prior; the guess stands before the query."""
        time, noised, query = self._step_tokens(x, t).unbind(1)
        guess = self.guess(x.to(time), time, prefix["recalled"], prefix["likeness"])
        h = self._at_query(torch.stack([time, noised, self.guess_in(guess), query], dim=1), prefix)
        return torch.lerp(self.out(h), guess, self.trust(h).sigmoid())
