"""Diffusion prior p(z_i | y) without attention over time steps: a residual MLP told the caption as one vector.

unCLIP's prior (§2.2, `DiffusionPrior`) sends caption, time and noised z_i through one transformer. Here the caption is
pooled once, by a few learned queries over its token states beside z_t, and what is computed at every step is an MLP on
z_i alone, as in the diffusion loss of MAR (Li et al. 2024). A caption costs a fraction of the transformer's time in
training (BENCHMARKS.md); docs/experiments.md says what that buys.

Legend of shapes: B batch, L text tokens, D embedding size, C token-state size, Q queries, E condition size, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.models.layers import ScalarEmbedding, ScaledEmbeddings, TokenInput, init_linear, zero_
from unclip.models.prior import ReadsText, TextCache


class PooledText(nn.Module):
    """A caption's token states and its embedding z_t -> one vector [B, E].

    Each query is a weighted mean of the token states; the weights look at the states and at their places, so the
    order of words is not lost. States and z_t are scaled by the statistics of the training captions.
    """

    def __init__(self, embed_dim: int, token_dim: int, size: int, queries: int, max_tokens: int) -> None:
        super().__init__()
        self.token_dim, self.max_tokens = token_dim, max_tokens
        for name, dim in (("text", embed_dim), ("token", token_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        self.text_mean: Tensor
        self.text_std: Tensor
        self.token_mean: Tensor
        self.token_std: Tensor
        self.weigh = nn.Linear(token_dim, queries)
        self.places = nn.Parameter(torch.empty(max_tokens, queries))
        self.inner = nn.Linear(embed_dim + queries * token_dim, 2 * size)
        self.out = nn.Linear(2 * size, size)

    def forward(self, tokens: Tensor, mask: Tensor, embeds: Tensor) -> Tensor:
        """tokens [B, L, C], mask [B, L] bool (True = real; at least one each), embeds [B, D] -> [B, E]."""
        TokenInput.check(tokens, mask, self.token_dim, self.max_tokens)
        tokens = tokens.to(self.token_mean.dtype).masked_fill(~mask[..., None], 0)
        tokens = (tokens - self.token_mean) / self.token_std
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)  # of real tokens, so padding shifts nothing
        weights = (self.weigh(tokens) + self.places[places]).masked_fill(~mask[..., None], -torch.inf)
        pooled = weights.softmax(dim=1).transpose(1, 2) @ tokens  # [B, Q, C]
        z_t = (embeds.to(tokens.dtype) - self.text_mean) / self.text_std
        return self.out(F.silu(self.inner(torch.cat([z_t, pooled.flatten(1)], dim=1))))


class ConditionedBlock(nn.Module):
    """Residual MLP block whose hidden layer is shifted by a condition; starts as the identity."""

    def __init__(self, width: int, hidden: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.shift = nn.Linear(size, hidden, bias=False)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, W], condition [B, E] -> [B, W]."""
        return x + self.out(F.silu(self.inner(self.norm(x)) + self.shift(condition)))


class MLPPrior(ReadsText, ScaledEmbeddings, ModelMixin, ConfigMixin):
    """Predicts the scaled image embedding z_i from a noised one and a pooled caption.

    Takes and gives what `DiffusionPrior` does, so either serves every pipeline. `schedule` and `prediction_type` say
    how the network was trained; the network itself only multiplies t by `time_scale`.
    """

    EMBED_LAYERS: tuple[str, ...] = ()  # it cannot grow to longer embeddings

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        token_dim: int = 384,
        width: int = 768,
        hidden: int = 1536,
        layers: int = 2,
        condition: int = 512,
        queries: int = 4,
        max_tokens: int = 32,
        time_scale: float = 1.0,
        schedule: str = "cosine",
        prediction_type: str = "sample",
    ) -> None:
        super().__init__()
        self.register_embed_statistics(embed_dim)
        self.text_in = PooledText(embed_dim, token_dim, condition, queries, max_tokens)
        self.time_in = ScalarEmbedding(condition, time_scale)
        self.noised_in = nn.Linear(embed_dim, width)
        blocks = [ConditionedBlock(width, hidden, condition) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, embed_dim)
        self.apply(init_linear)
        nn.init.normal_(self.text_in.places)
        for layer in (self.out, *(block.out for block in blocks)):
            zero_(layer)

    def set_text_statistics(self, embeds: Tensor, tokens: Tensor) -> None:
        """Scale captions by a sample of those to train on: z_t [M, D] and token states [T, C] of any of them."""
        for name, rows in (("text", embeds), ("token", tokens)):
            getattr(self.text_in, f"{name}_mean").copy_(rows.float().mean(0))
            getattr(self.text_in, f"{name}_std").copy_(rows.float().std(0).clamp(min=1e-4))

    def prefix(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> TextCache:
        """The caption as one vector, to be given to `forward` at every step in place of the text.

        Args: text_tokens [B, L, C], text_mask [B, L] bool (True = real), text_embeds [B, D] of unit norm.
        """
        return TextCache(text_vector=self.text_in(text_tokens, text_mask, text_embeds))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        text_vector: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """Predict the scaled image embedding.

        Args:
            x: [B, D], noised image embedding in the scaled space (see `normalize`).
            t: [B], time in the units of the training schedule.
            text_vector: what `prefix` makes of the text, as in `forward(x, t, **prefix)`; or, in its place,
            text_tokens, text_mask, text_embeds: as `prefix` takes them; a text of fewer rows P serves B / P rows of x
                in succession each.

        Returns: [B, D], the clean embedding in the scaled space.
        Raises: UserError if neither the text nor a prefix of as many rows is given.
        """
        made: Any = {"text_vector": text_vector}
        text = {"text_tokens": text_tokens, "text_mask": text_mask, "text_embeds": text_embeds}
        vector = self.text_cache(len(x), TextCache(made), text)["text_vector"]
        condition = F.silu(vector + self.time_in(t.expand(len(x))))
        h = self.noised_in(x.to(condition.dtype))
        for block in self.blocks:
            h = block(h, condition)
        return self.out(self.norm_out(h))
