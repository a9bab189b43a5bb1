"""Diffusion prior p(z_i | y) that looks things up: unCLIP's prior beside a memory of pictures' embeddings.

What a picture of a named thing looks like has to be known by heart, and a small network learns by heart slowly. Here
the embeddings of the training pictures are kept beside it; a caption recalls those whose own captions are most like it,
and the network only learns how to go from them to what was asked: take one as it is, or its subject in another style or
colour (retrieval-augmented diffusion, Blattmann et al. 2022; KNN-Diffusion, Sheynin et al. 2022).

Legend of shapes: B batch, L text tokens, D embedding size, C token-state size, W width, k neighbours, P key size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401 - pipelines look in a network's module for how it is loaded
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from unclip.models.layers import init_linear, zero_
from unclip.models.memory import NOBODY, EmbeddingMemory, Neighbours
from unclip.models.prior import DiffusionPrior, Encoded, PrefixCache

MOST_TEXTS = 4  # a caption and up to three things in it
HEAD_SIZE = 32  # of queries and keys of MovedValues
STEEPEST = 12.0  # logarithm: exp(12) is steeper than the last step of any schedule


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
        along, across, alike, none = (
            self.gains(time).clamp(max=STEEPEST).exp()[..., None].unbind(1)
        )  # each [B, 1]
        products = torch.einsum("bkd,bd->bk", values, x)
        norms = values.square().sum(-1)
        logits = (along * products - across * norms / 2) / x.shape[1] + alike * likeness
        logits = logits.masked_fill(likeness == 0, -torch.inf)
        weights = torch.cat([logits, none], dim=1).softmax(dim=1)[:, :-1]
        return torch.einsum("bk,bkd->bd", weights, values)


class MovedValues(nn.Module):
    """Attention over the recalled embeddings whose heads are linear maps of whole embeddings: Σ_m A_m Σ_k w_mk v_k.

    Where a thing stands, how large and in which colour is nearly linear in an embedding with a layout code, so a head
    can learn "to the left, in half its size" once for all things. It starts as zero.
    """

    def __init__(self, width: int, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * HEAD_SIZE)
        self.key = nn.Linear(width, heads * HEAD_SIZE)
        self.maps = nn.Linear(heads * embed_dim, embed_dim, bias=False)

    def forward(self, h: Tensor, neighbours: Tensor, values: Tensor) -> Tensor:
        """h [B, W], neighbours [B, k, W] (as tokens), values [B, k, D] -> [B, D]."""
        q = self.query(h).unflatten(-1, (self.heads, HEAD_SIZE))
        k = self.key(neighbours).unflatten(-1, (self.heads, HEAD_SIZE))
        weights = (torch.einsum("bmc,bkmc->bmk", q, k) * HEAD_SIZE**-0.5).softmax(dim=-1)
        return self.maps((weights @ values).flatten(1))


class RecallPrior(DiffusionPrior):
    """`DiffusionPrior` whose prefix goes on with k neighbours from its memory, and whose steps begin with a guess.

    The output is a mean of that guess and of the network's own prediction, weighed by the network in each dimension;
    its own prediction is made of what it knows by heart and of recalled embeddings moved (`MovedValues`).
    Takes and gives what `DiffusionPrior` does, so it serves every pipeline. Its memory holds scaled embeddings.
    """

    NEW_LAYERS = (
        "memory",
        "neighbour_in",
        "guess",
        "guess_in",
        "moved",
        "trust",
    )  # those that DiffusionPrior has not

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
        moves: int = 6,
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
        self.neighbours, self.least_likeness = neighbours, least_likeness
        self.memory = EmbeddingMemory(memory_size, embed_dim, key_dim)
        self.neighbour_in = nn.Linear(embed_dim + key_dim + 1 + MOST_TEXTS, width)
        self.guess = Guess(width)
        self.guess_in = nn.Linear(embed_dim, width)
        self.moved = MovedValues(width, embed_dim, moves)
        self.trust = nn.Linear(width, embed_dim)
        for layer in (self.neighbour_in, self.guess_in, self.moved.query, self.moved.key):
            init_linear(layer)
        for layer in (self.trust, self.moved.maps):
            zero_(layer)
        self.guess.reset()

    def read(self, text: Encoded) -> PrefixCache:
        """The prefix of encoded captions; the things that they name are looked up, too."""
        return self.prefix(text.tokens, text.mask, text.embeds, text.things)

    def prefix(
        self,
        text_tokens: Tensor,
        text_mask: Tensor,
        text_embeds: Tensor,
        things: Tensor | None = None,
        rows: Tensor | None = None,
        texts: Tensor | None = None,
    ) -> PrefixCache:
        """Keys and values of [text tokens, z_t, neighbours], and what the neighbours are.

        Args:
            text_tokens, text_mask, text_embeds: as of `DiffusionPrior.prefix`.
            things: [B, R, D], what to look up: the caption's embedding and those of up to MOST_TEXTS - 1 things that it
                names, zeros where there are fewer; without, the caption's alone.
            rows, texts: [B, k] int64, `Neighbours` that are known; without, those most like the caption and its things,
                where their likeness is at least `least_likeness`: "" is like nothing.
        """
        if things is None:
            things = text_embeds[:, None]
        if rows is None or texts is None:
            near = self.memory.neighbours(things, self.neighbours, self.least_likeness)
        else:
            near = Neighbours(rows, texts)
        values, likeness, difference = self.memory.read(things, near)
        whose = F.one_hot(near.texts, MOST_TEXTS) * (near.rows != NOBODY)[..., None]  # [B, k, MOST_TEXTS]
        features = torch.cat([values, difference, likeness[..., None], whose], dim=-1)
        tokens = self._prefix_tokens(text_tokens, text_mask, text_embeds)
        recalled = self.neighbour_in(features.to(tokens))
        cache = self._keys_and_values(torch.cat([tokens, recalled], dim=1), text_mask)
        found = {"recalled": values, "likeness": likeness, "recalled_tokens": recalled}
        return PrefixCache({**cache, **{name: tensor.to(tokens) for name, tensor in found.items()}})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        text_mask: Tensor,
        text_tokens: Tensor | None = None,
        text_embeds: Tensor | None = None,
        things: Tensor | None = None,
        rows: Tensor | None = None,
        texts: Tensor | None = None,
        prefix_keys: Tensor | None = None,
        prefix_values: Tensor | None = None,
        recalled: Tensor | None = None,
        likeness: Tensor | None = None,
        recalled_tokens: Tensor | None = None,
    ) -> Tensor:
        """Predict the scaled image embedding.

        Args:
            x: [B, D], noised image embedding in the scaled space (see `normalize`).
            t: [B], time in the units of the training schedule.
            text_mask, text_tokens, text_embeds, things, rows, texts: as `prefix` takes them; a text of fewer rows P
                serves B / P rows of x in succession each. Or, in their place,
            prefix_keys, prefix_values, recalled, likeness, recalled_tokens: what `prefix` made of them, as in
                `forward(x, t, **prefix)`.

        Returns: [B, D], the clean embedding in the scaled space.
        Raises: UserError if neither the text nor a prefix of as many rows is given.
        """
        made: Any = {
            "prefix_keys": prefix_keys,
            "prefix_values": prefix_values,
            "recalled": recalled,
            "likeness": likeness,
            "recalled_tokens": recalled_tokens,
            "text_mask": text_mask,
        }
        text = {"text_tokens": text_tokens, "text_mask": text_mask, "text_embeds": text_embeds}
        looked_up = {"things": things, "rows": rows, "texts": texts}
        text |= {name: tensor for name, tensor in looked_up.items() if tensor is not None}
        cache = self.text_cache(len(x), PrefixCache(made), text)
        time, noised, query = self._step_tokens(x, t).unbind(1)
        guess = self.guess(x.to(time), time, cache["recalled"], cache["likeness"])
        h = self._at_query(torch.stack([time, noised, self.guess_in(guess), query], dim=1), cache)
        own = self.out(h) + self.moved(h, cache["recalled_tokens"], cache["recalled"])
        return torch.lerp(own, guess, self.trust(h).sigmoid())
