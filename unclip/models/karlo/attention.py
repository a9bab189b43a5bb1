"""Attention of the public decoder over its picture and its context, whose keys and values are computed once a run.

Legend of shapes: B batch, C channels, H x W picture, T = H * W, S context tokens, h heads, d = C / h.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextProcessor:
    """In the place of diffusers' AttnAddedKVProcessor: takes the context's keys and values as they were computed.

    Args:
        place: under which name they are found.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    def keys_and_values(self, attention: Any, context: Tensor) -> Tensor:
        """Of a context [B, S, W]: [B, S, 2, h, d], rows first and tokens second, as conditions of a denoiser are."""
        both = torch.stack([attention.add_k_proj(context), attention.add_v_proj(context)], dim=2)
        return both.unflatten(3, (attention.heads, -1))

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context: dict[str, Tensor] | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, C, H, W] -> same; `context` as `keys_and_values` made it, `context_mask` [B, S], True = seen."""
        assert context is not None
        assert context_mask is not None
        x = attn.group_norm(hidden_states).flatten(2).transpose(1, 2)  # [B, T, C]
        q = attn.to_q(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k, v = context[self.place].permute(2, 0, 3, 1, 4)  # each [B, h, S, d]
        mask = context_mask
        if not attn.only_cross_attention:
            own = (
                project(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
                for project in (attn.to_k, attn.to_v)
            )
            k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), own, strict=True))
            mask = F.pad(mask, (0, x.shape[1]), value=True)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        y = attn.to_out[1](attn.to_out[0](y.transpose(1, 2).flatten(2)))
        return hidden_states + y.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


def context_attentions(unet: Any) -> dict[str, nn.Module]:
    """Place -> each attention of a U-Net that has keys and values of a context beside its own."""
    return {
        name.replace(".", "_"): module
        for name, module in unet.named_modules()
        if getattr(module, "add_k_proj", None) is not None
    }
