"""How the public decoder is told of z_i and the caption (unCLIP §2.1): added to the time, and as context tokens.

Legend of shapes: B batch, L text tokens, C token-state size, D embedding size, K context tokens of z_i, W width of the
context, E size of the time embedding.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class UnCLIPTextProjModel(ModelMixin, ConfigMixin):
    """Projects CLIP's embeddings and token states to what the decoder's U-Net takes.

    Has the configuration and the tensors of diffusers' deprecated class of this name.
    """

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
    ) -> None:
        super().__init__()
        D, K = clip_embeddings_dim, clip_extra_context_tokens
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(D))
        self.embedding_proj = nn.Linear(D, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(D, time_embed_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(D, K * cross_attention_dim)
        self.encoder_hidden_states_proj = nn.Linear(D, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)
        self.context_tokens, self.embed_dim = K, D

    def forward(
        self, image_embeds: Tensor | None, text_embeds: Tensor, text_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Project one branch of guidance.

        Args:
            image_embeds: [B, D], z_i; None for the learned embedding that stands for none.
            text_embeds, text_tokens: z_t [B, D] and the token states [B, L, C] of the captions.

        Returns: the context [B, K + L, W], z_i's tokens first, and what is added to the time embedding [B, E].
        """
        if image_embeds is None:
            image_embeds = self.learned_classifier_free_guidance_embeddings.expand(len(text_embeds), -1)
        image_embeds, text_embeds = image_embeds.to(self.dtype), text_embeds.to(self.dtype)
        added = self.clip_image_embeddings_project_to_time_embeddings(image_embeds)
        added = added + self.embedding_proj(text_embeds)
        # The projection holds the K tokens as its fastest dimension: [B, W * K] -> [B, K, W].
        own = self.clip_extra_context_tokens_proj(image_embeds)
        own = own.unflatten(1, (-1, self.context_tokens)).transpose(1, 2)
        text = self.encoder_hidden_states_proj(text_tokens.to(self.dtype))
        return torch.cat([own, self.text_encoder_hidden_states_norm(text)], dim=1), added
