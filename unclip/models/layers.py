"""Pieces shared by the networks: sin-cos features, attention, adaLN-zero block, scaling of embeddings.

Legend of shapes: B batch, T tokens, W width, H heads, d = W / H, D embedding size.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.errors import UserError

LEAST_LIKENESS = 0.5  # cosine of the mean embeddings of two sets that one CLIP may have made


def sincos(values: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of scalars (Vaswani 2017, §3.5), [...] -> [..., dim] float32; `dim` is even."""
    exponents = torch.arange(dim // 2, dtype=torch.float32, device=values.device) / (dim // 2)
    frequencies = torch.exp(-math.log(max_period) * exponents)
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_positions_2d(grid: int, dim: int) -> Tensor:
    """Fixed positions of a grid x grid field, row-major, [grid * grid, dim]; `dim` is a multiple of 4."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([sincos(rows.flatten(), dim // 2), sincos(columns.flatten(), dim // 2)], dim=-1)


class ScalarEmbedding(nn.Module):
    """Scalar (time or noise level) -> vector: sin-cos features of `scale * value`, then a two-layer MLP."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale
        self.inner = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, value: Tensor) -> Tensor:  # [B] -> [B, dim]
        features = sincos(value.float() * self.scale, self.dim).to(self.inner.weight.dtype)
        return self.out(F.silu(self.inner(features)))


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys (a stabiliser at high learning rates).

    Split in two so that a caller can keep keys and values: `heads_of` gives q, k, v and `attend` uses them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // heads, bias=False)
        self.key_norm = nn.LayerNorm(width // heads, bias=False)
        self.out = nn.Linear(width, width)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, W] -> queries, keys, values, each [B, H, T, d]."""
        B, T, W = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4).unbind()
        return self.query_norm(q), self.key_norm(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, H, T, d] over k, v [B, H, S, d] -> [B, T, W]; mask [B, H, T, S] or broadcast, True = seen."""
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(*self.heads_of(x), mask)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), about as large as a plain MLP of hidden size 4 W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(64, int(width * 8 / 3) // 64 * 64)
        self.inner = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Parameter-free layer norm of x [B, T, W], scaled and shifted by [B, 1, W] vectors."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class AdaLNBlock(nn.Module):
    """Transformer block whose norms are driven by a condition vector (DiT, Peebles & Xie 2023, adaLN-zero).

    It starts as the identity once its user has set `modulation` to zero, after any other initialisation.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, W], condition [B, W] (activated), mask [B, H, T, T] or broadcast, True = seen."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.dropout(self.attention(modulate(x, shift1, scale1), mask)))
        return torch.addcmul(x, gate2, self.dropout(self.feed_forward(modulate(x, shift2, scale2))))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer; use with `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def zero_(module: nn.Linear | nn.Conv2d) -> None:
    """Set weight and bias to zero, in place."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class ScaledEmbeddings(nn.Module):
    """Mix-in for networks that see image embeddings scaled to zero mean and unit variance in each dimension.

    A unit-norm embedding of size D has entries of about 1/sqrt(D), far too small beside unit noise; unCLIP
    multiplies by 17.2, here the statistics of the training set are stored with the weights as buffers [D].
    """

    embed_mean: Tensor
    embed_std: Tensor

    def register_embed_statistics(self, embed_dim: int) -> None:
        self.register_buffer("embed_mean", torch.zeros(embed_dim))
        self.register_buffer("embed_std", torch.ones(embed_dim))

    def set_embed_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the mean and standard deviation [D] of the training set's image embeddings."""
        if mean.shape != self.embed_mean.shape or std.shape != self.embed_std.shape or not (std > 0).all():
            raise UserError(
                f"expected a mean and a positive std of shape {tuple(self.embed_mean.shape)}, got "
                f"{tuple(mean.shape)} and {tuple(std.shape)} with a smallest std of {std.min():.3g}: "
                "compute both from embeddings of this network's embed_dim"
            )
        self.embed_mean.copy_(mean)
        self.embed_std.copy_(std)

    def normalize(self, z: Tensor) -> Tensor:
        """Image embeddings [..., D] -> scaled space."""
        return (z - self.embed_mean) / self.embed_std

    def denormalize(self, z: Tensor) -> Tensor:
        """Scaled space [..., D] -> image embeddings (not renormalised to unit length)."""
        return z * self.embed_std + self.embed_mean


def warn_of_another_clip(name: str, known: Tensor, met: Tensor) -> None:
    """A UserWarning if the mean embedding [D] that a network knows and the one it meets are far apart.

    Args:
        name: of the network, as the warning calls it. known, met: all zeros where nothing is known.
    """
    likeness = F.cosine_similarity(known, met, dim=0).item()
    if known.any() and met.any() and likeness < LEAST_LIKENESS:
        warnings.warn(
            f"the mean image embedding of {name} differs from CLIP's (cosine {likeness:.2f}): "
            "was it trained on embeddings of this CLIP?",
            stacklevel=3,
        )


class TokenInput(nn.Module):
    """Token states of a caption [B, L, C] -> the width of the network [B, L, W]; checks what it is given."""

    def __init__(self, token_dim: int, width: int, max_tokens: int) -> None:
        super().__init__()
        self.token_dim, self.max_tokens = token_dim, max_tokens
        self.norm = nn.LayerNorm(token_dim)
        self.linear = nn.Linear(token_dim, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, L, C], mask [B, L] bool -> [B, L, W]; raises UserError as `check` does."""
        self.check(tokens, mask, self.token_dim, self.max_tokens)
        # Padding may hold anything, even not-a-number, which a mask in the attention would not stop.
        tokens = tokens.to(self.linear.weight.dtype).masked_fill(~mask[..., None], 0)
        return self.linear(self.norm(tokens))

    @staticmethod
    def check(tokens: Tensor, mask: Tensor, token_dim: int, max_tokens: int) -> None:
        """Raise UserError unless tokens [B, L, C] and mask [B, L] bool fit together and L <= max_tokens."""
        shape = tuple(tokens.shape)
        if len(shape) != 3 or shape[2] != token_dim or mask.shape != shape[:2] or mask.dtype != torch.bool:
            raise UserError(
                f"expected text_tokens [B, L, {token_dim}] and a bool text_mask [B, L], got {shape} and "
                f"{mask.dtype} {tuple(mask.shape)}: encode it with the CLIP this network was trained with"
            )
        if shape[1] > max_tokens:
            raise UserError(f"expected at most {max_tokens} text tokens, got {shape[1]}: shorten the caption")
