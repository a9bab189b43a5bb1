"""What every prior shares: a caption read by causal transformer blocks, once, and tokens that follow it.

unCLIP's priors (§2.2) are causal transformers over [text tokens, z_t, …]. What follows differs: a noised z_i, the
codes of z_i one after another, or a query alone. Nothing in front sees what follows, so the keys and values of the
caption are the same for every step and every candidate: `prefix` computes them once.

Legend of shapes: B batch, L text tokens, D embedding size, C token-state size, W width, H heads, d = W / H,
N layers, T new tokens, S = tokens seen (prefix and new).
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.layers import Attention, FeedForward, TokenInput, init_linear


class Encoded(Protocol):
    """Captions as CLIP gives them: `unclip.clip.TextEncoding`."""

    @property
    def embeds(self) -> Tensor: ...  # [B, D]

    @property
    def tokens(self) -> Tensor: ...  # [B, L, C]

    @property
    def mask(self) -> Tensor: ...  # [B, L]

    @property
    def things(self) -> Tensor: ...  # [B, 4, D]


class PrefixCache(dict[str, Tensor]):
    """What a prior makes of captions once: `forward(x, t, **cache)` takes it for the text at every step.

    Keys and values of [text tokens, z_t] in every layer (of a subclass, of what follows them, too): `prefix_keys` and
    `prefix_values` [B, N, H, L+1, d], `text_mask` [B, L] bool. A plain dict of batch-first tensors, so it serves as the
    conditions of a denoiser.
    """

    @property
    def rows(self) -> int:
        """How many captions there are."""
        return len(self["text_mask"])

    def repeat(self, n: int) -> PrefixCache:
        """Each row n times in succession: n candidates per caption."""
        return PrefixCache({name: tensor.repeat_interleave(n, dim=0) for name, tensor in self.items()})

    def for_rows(self, count: int) -> PrefixCache:
        """Repeated to serve `count` rows.

        Raises: UserError if that is no multiple of the number of captions.
        """
        if self.rows == 0 or count % self.rows:
            raise UserError(
                f"expected text of {count} rows, as x has, or of a divisor of it, got {self.rows}"
            )
        return self.repeat(count // self.rows)

    def aligned(self, other: PrefixCache) -> tuple[PrefixCache, PrefixCache]:
        """Both in such a form that torch.cat joins their tensors: padded to the longer one's number of text tokens."""
        length = max(cache["text_mask"].shape[1] for cache in (self, other))
        return self.pad_to(length), other.pad_to(length)

    def pad_to(self, length: int) -> PrefixCache:
        """The same cache for `length` >= L text tokens; the added ones stand in front and are masked out."""
        added = length - self["text_mask"].shape[1]
        if added < 0:
            raise UserError(f"cannot pad a prefix to {length} text tokens: it has {length - added}")
        padded = {
            "prefix_keys": F.pad(self["prefix_keys"], (0, 0, added, 0)),
            "prefix_values": F.pad(self["prefix_values"], (0, 0, added, 0)),
            "text_mask": F.pad(self["text_mask"], (added, 0)),
        }
        return PrefixCache({**self, **padded})


class CausalBlock(nn.Module):
    """Pre-norm transformer block that can continue from the keys and values of earlier tokens."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, T, W], mask [B, 1, T, S], past keys and values [B, H, S-T, d] -> [B, T, W]."""
        q, k, v = self.heads_of(x)
        return self.advance(x, mask, q, torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2))

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, each [B, H, T, d]."""
        return self.attention.heads_of(self.attention_norm(x))

    def advance(self, x: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The rest of the block once the queries of x and all keys and values are known."""
        x = x + self.dropout(self.attention.attend(q, k, v, mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class CaptionPrior(nn.Module):
    """Mix-in for networks that read a caption and go on from there.

    Subclasses call `register_caption_input` and `register_blocks` in their constructor, their own layers between and
    behind them, and `initialize` at its end.
    """

    def register_caption_input(self, embed_dim: int, token_dim: int, width: int, max_tokens: int) -> None:
        self.token_in = TokenInput(token_dim, width, max_tokens)
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        self.text_embed_in = nn.Linear(embed_dim, width)

    def register_blocks(self, width: int, layers: int, heads: int, dropout: float) -> None:
        self.blocks = nn.ModuleList([CausalBlock(width, heads, dropout) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(width)

    def initialize(self, *learned_tokens: Tensor) -> None:
        """Random weights for linear layers, small normal ones for positions and learned tokens, in place."""
        self.apply(init_linear)
        for parameter in (self.positions, *learned_tokens):
            nn.init.normal_(parameter, std=0.02)

    def _prefix_tokens(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> Tensor:
        """[text tokens, z_t] -> [B, L+1, W]. Positions count real tokens only, so padding shifts nothing."""
        tokens = self.token_in(text_tokens, text_mask)
        places = (text_mask.cumsum(dim=1) - 1).clamp(min=0)
        # Unit norm -> unit variance per dimension, the scale of the other inputs.
        z_t = self.text_embed_in(text_embeds.to(self.positions.dtype) * text_embeds.shape[1] ** 0.5)
        return torch.cat([tokens + self.positions[places], z_t[:, None]], dim=1)

    @staticmethod
    def _mask(text_mask: Tensor, T: int, S: int) -> Tensor:
        """What the last T of S tokens see, [B, 1, T, S]: themselves and every earlier token but padding."""
        real = F.pad(text_mask, (0, S - text_mask.shape[1]), value=True)  # [B, S]
        rows = torch.arange(S - T, S, device=text_mask.device)[:, None]
        columns = torch.arange(S, device=text_mask.device)
        # A padding token sees itself, since a softmax over nothing is not a number.
        return ((columns < rows) & real[:, None] | (columns == rows))[:, None]

    def prefix(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> PrefixCache:
        """Keys and values of [text tokens, z_t], to be given to `forward` at every step in place of the text.

        Args: text_tokens [B, L, C], text_mask [B, L] bool (True = real), text_embeds [B, D] of unit norm.
        """
        return self._keys_and_values(self._prefix_tokens(text_tokens, text_mask, text_embeds), text_mask)

    def _keys_and_values(self, x: Tensor, text_mask: Tensor) -> PrefixCache:
        """Of tokens x [B, S, W] that begin with L text tokens, in every layer."""
        S = x.shape[1]
        mask = self._mask(text_mask, S, S)
        keys, values = [], []
        for i, block in enumerate(cast("list[CausalBlock]", self.blocks)):
            q, k, v = block.heads_of(x)
            keys.append(k)
            values.append(v)
            if i + 1 < len(self.blocks):  # nothing reads the prefix behind the last layer
                x = block.advance(x, mask, q, k, v)
        return PrefixCache(
            prefix_keys=torch.stack(keys, dim=1),
            prefix_values=torch.stack(values, dim=1),
            text_mask=text_mask,
        )

    def read(self, text: Encoded) -> PrefixCache:
        """The prefix of encoded captions."""
        return self.prefix(text.tokens, text.mask, text.embeds)

    def _prefix_for(self, rows: int | None, text: dict[str, Tensor]) -> PrefixCache:
        """What `forward` was given for the text, the arguments of `prefix` or what it made of them, to serve `rows`.

        Raises: UserError if neither is there, or of another number of rows; None takes as many as there are.
        """
        if "prefix_keys" in text:
            made = PrefixCache(text)
            if rows not in (None, made.rows):
                raise UserError(
                    f"expected a prefix of {rows} rows, as many as x, got {made.rows}: "
                    "give every candidate its own by PrefixCache.repeat"
                )
            return made
        names = ("text_tokens", "text_mask", "text_embeds")
        if missing := [name for name in names if text.get(name) is None]:
            raise UserError(
                f"expected {', '.join(names)}, or the prefix that prefix() makes of them; got no {', '.join(missing)}"
            )
        made = self.prefix(**text)
        return made if rows is None else made.for_rows(rows)

    def _behind(self, h: Tensor, prefix: PrefixCache) -> Tensor:
        """New tokens [B, T, W] behind a prefix of B rows, through every block -> [B, T, W], before `norm_out`."""
        keys, values = prefix["prefix_keys"], prefix["prefix_values"]
        mask = self._mask(prefix["text_mask"], h.shape[1], h.shape[1] + keys.shape[3])
        pasts = zip(keys.unbind(1), values.unbind(1), strict=True)
        for block, past in zip(self.blocks, pasts, strict=True):
            h = block(h, mask, past)
        return h

    def _at_query(self, h: Tensor, prefix: PrefixCache) -> Tensor:
        """New tokens [B, T, W], the query last, behind the prefix -> what the query has learned, [B, W]."""
        return self.norm_out(self._behind(h, prefix)[:, -1])
