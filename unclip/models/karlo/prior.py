"""The prior of Karlo and of Kandinsky 2.x: a causal transformer over [text tokens, z_t, t, noised z_i, query].

It is unCLIP's diffusion prior (§2.2) in the form in which public weights came, diffusers' PriorTransformer. Here the
caption is computed once for all steps and pictures, without its padding: nothing in front sees what follows.

Legend of shapes: B batch, L text tokens, C token-state size, D embedding size, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.caption_prior import CaptionPrior
from unclip.models.karlo.take import with_tensors_of
from unclip.models.layers import sincos
from unclip.models.prior import NoisedPrior


class PriorBlock(BasicTransformerBlock):
    """diffusers' block, which can continue from the keys and values of earlier tokens, as `CausalBlock` does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, width // heads, activation_fn="gelu", attention_bias=True)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, T, W], mask [B, 1, T, S], past keys and values [B, H, S-T, d] -> [B, T, W]."""
        q, k, v = self.heads_of(x)
        return self.advance(x, mask, q, torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2))

    def heads_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of x [B, T, W], each [B, H, T, d]."""
        x, attention = self.norm1(x), self.attn1
        parts = (attention.to_q(x), attention.to_k(x), attention.to_v(x))
        return tuple(part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)

    def advance(self, x: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The rest of the block once the queries of x and all keys and values are known."""
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attn1.to_out[0](seen.transpose(1, 2).flatten(2))
        return x + self.ff(self.norm3(x))


class PublicPrior(CaptionPrior):
    """What the public priors share: a caption read by the layers of diffusers' PriorTransformer, of the same names.

    Subclasses call `register_layers` in their constructor.
    """

    step_tokens: int  # those behind z_t, the query among them

    def register_layers(
        self, embed_dim: int, token_dim: int, width: int, layers: int, heads: int, max_tokens: int
    ) -> None:
        self.proj_in = nn.Linear(embed_dim, width)
        self.embedding_proj = nn.Linear(embed_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(token_dim, width)
        self.positional_embedding = nn.Parameter(torch.zeros(1, max_tokens + 1 + self.step_tokens, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer_blocks = nn.ModuleList([PriorBlock(width, heads) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, embed_dim)
        self.clip_mean = nn.Parameter(torch.zeros(1, embed_dim))
        self.clip_std = nn.Parameter(torch.ones(1, embed_dim))

    @classmethod
    def sizes_of(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """The constructor's arguments, read off the configuration of a PriorTransformer.

        Raises:
            UserError: it is of another form than the public ones.
        """
        width = config["num_attention_heads"] * config["attention_head_dim"]
        dim = config["embedding_dim"]
        expected = {
            "additional_embeddings": (1 + cls.step_tokens,),
            "norm_in_type": (None,),
            "embedding_proj_norm_type": (None,),
            "encoder_hid_proj_type": ("linear",),
            "added_emb_type": ("prd",),
            "time_embed_act_fn": ("silu",),
            "time_embed_dim": (None, width),
            "embedding_proj_dim": (None, dim),
            "clip_embed_dim": (None, dim),
        }
        for name, allowed in expected.items():
            if config.get(name, allowed[0]) not in allowed:
                raise UserError(
                    f"this PriorTransformer is of another kind than {cls.__name__.removesuffix('Prior')}'s: its {name} "
                    f"is {config[name]!r}, expected {allowed[0]!r}"
                )
        return {
            "embed_dim": dim,
            "token_dim": dim,
            "width": width,
            "layers": config["num_layers"],
            "heads": config["num_attention_heads"],
            "max_tokens": config["num_embeddings"],
        }

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """As `CaptionPrior` calls them."""
        return self.transformer_blocks

    @property
    def out(self) -> nn.Linear:
        """As `NoisedPrior` calls it."""
        return self.proj_to_clip_embeddings

    def _prefix_tokens(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> Tensor:
        """[text tokens, z_t] -> [B, L+1, W]. Positions count real tokens only; z_t has the first one behind all."""
        dtype, positions = self.prd_embedding.dtype, self.positional_embedding[0]
        tokens = self.encoder_hidden_states_proj(text_tokens.to(dtype).masked_fill(~text_mask[..., None], 0))
        places = (text_mask.cumsum(dim=1) - 1).clamp(min=0)
        z_t = self.embedding_proj(text_embeds.to(dtype)) + positions[-self.step_tokens - 1]
        return torch.cat([tokens + positions[places], z_t[:, None]], dim=1)


class KarloPrior(NoisedPrior, PublicPrior, ModelMixin, ConfigMixin):
    """Predicts the scaled image embedding from a noised one and a caption, as diffusers' PriorTransformer does.

    Has the tensors of that class. Embeddings keep the length that CLIP's projection gives them.

    Args:
        embed_dim, token_dim: D and C. max_tokens: the text tokens that have a position.
        schedule, prediction_type: how it was trained.
    """

    step_tokens = 3  # t, noised z_i, query

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 768,
        token_dim: int = 768,
        width: int = 2048,
        layers: int = 20,
        heads: int = 32,
        max_tokens: int = 77,
        schedule: str = "cosine",
        prediction_type: str = "sample",
    ) -> None:
        super().__init__()
        self.time_embedding = TimestepEmbedding(width, width)
        self.register_layers(embed_dim, token_dim, width, layers, heads, max_tokens)

    @classmethod
    def from_diffusers(cls, prior: Any) -> KarloPrior:
        """A PriorTransformer of diffusers as this class, on the same tensors.

        Raises:
            UserError: it is of another form than Karlo's and Kandinsky's.
        """
        return with_tensors_of(prior, cls, **cls.sizes_of(prior.config))

    def normalize(self, z: Tensor) -> Tensor:
        """Image embeddings [..., D] -> scaled space."""
        return (z - self.clip_mean) / self.clip_std

    def denormalize(self, z: Tensor) -> Tensor:
        """Scaled space [..., D] -> image embeddings."""
        return z * self.clip_std + self.clip_mean

    def to_embeds(self, z: Tensor) -> Tensor:
        """Scaled space [..., D] -> image embeddings as the decoder takes them: of CLIP's own length."""
        return self.denormalize(z)

    def _step_tokens(self, x: Tensor, t: Tensor) -> Tensor:
        """[t, noised z_i, query] -> [B, 3, W]."""
        B, dtype = len(x), self.prd_embedding.dtype
        time = self.time_embedding(sincos(t.expand(B), self.prd_embedding.shape[-1]).to(dtype))
        tokens = torch.stack([time, self.proj_in(x.to(dtype)), self.prd_embedding[:, 0].expand(B, -1)], dim=1)
        return tokens + self.positional_embedding[:, -self.step_tokens :]
