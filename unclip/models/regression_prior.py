"""Regression prior: z_i as a function of the caption, in one pass and without chance.

Kandinsky's ablation found a linear map of z_t to be as good a prior as any (Razzhigaev et al. 2023, arXiv 2310.03502);
ECLIPSE trains a small transformer by squared error and a contrastive loss (Patel et al. 2023, arXiv 2312.04655). Here
the second corrects the first: z_i = W z_t + b + what a query behind [text tokens, z_t] adds. Without layers it is the
linear prior alone.

Legend of shapes: B batch, N pairs to fit to, L text tokens, D embedding size, C token-state size, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.caption_prior import CaptionPrior, Encoded, PrefixCache
from unclip.models.layers import ScaledEmbeddings, zero_
from unclip.models.ridge import RIDGE, ridge_map


class RegressionPrior(CaptionPrior, ScaledEmbeddings, ModelMixin, ConfigMixin):
    """Predicts z_i from a caption: a linear map of z_t and, where `layers` > 0, a transformer's correction of it.

    The map is fitted in closed form (`fit_linear`) and not trained; the correction begins at zero, so training begins
    at the linear prior.
    """

    unit_norm = True  # of the embeddings that it gives
    weight: Tensor  # [D, D]
    bias: Tensor  # [D]

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        token_dim: int = 384,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        max_tokens: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_embed_statistics(embed_dim)
        self.register_buffer("weight", torch.zeros(embed_dim, embed_dim))
        self.register_buffer("bias", torch.zeros(embed_dim))
        self.layers = layers
        if layers > 0:
            self.register_caption_input(embed_dim, token_dim, width, max_tokens)
            self.query = nn.Parameter(torch.empty(width))
            self.register_blocks(width, layers, heads, dropout)
            self.out = nn.Linear(width, embed_dim)
            self.initialize(self.query)
            zero_(self.out)

    @classmethod
    def identity(cls, embed_dim: int, token_dim: int, unit_norm: bool = True) -> RegressionPrior:
        """The prior that gives z_t for z_i: what a real one has to beat (unCLIP §5.1)."""
        prior = cls(embed_dim=embed_dim, token_dim=token_dim, layers=0)
        prior.unit_norm = unit_norm
        prior.weight.copy_(torch.eye(embed_dim))
        return prior.eval()

    @torch.no_grad()
    def fit_linear(self, z_t: Tensor, z_i: Tensor, ridge: float = RIDGE) -> None:
        """Set the linear map to the ridge regression of z_i on z_t, in closed form.

        Args: z_t, z_i: [N, D], the embedding of a caption and of its picture. ridge: as of `ridge_map`.
        Raises: UserError if they are of another size, or as `ridge_map` does.
        """
        D = len(self.bias)
        if z_t.shape[-1] != D or z_i.shape[-1] != D:
            raise UserError(f"expected z_t and z_i [N, {D}], got {tuple(z_t.shape)} and {tuple(z_i.shape)}")
        weight, bias = ridge_map(z_t, z_i, ridge)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def prefix(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> PrefixCache:
        """As of `CaptionPrior`, and `text_embeds` [B, D], which the linear map takes."""
        if self.layers:
            cache = super().prefix(text_tokens, text_mask, text_embeds)
        else:  # keys and values in no layer
            B, L = text_mask.shape
            nothing = text_embeds.new_empty(B, 0, 1, L + 1, 1)
            cache = PrefixCache(prefix_keys=nothing, prefix_values=nothing, text_mask=text_mask)
        return PrefixCache({**cache, "text_embeds": text_embeds})

    def forward(self, **text: Tensor) -> Tensor:
        """Predict the scaled image embedding.

        Args: text: the arguments of `prefix`, or what it made of them.
        Returns: [B, D] in the scaled space (see `normalize`).
        Raises: UserError if there is no text.
        """
        prefix = self._prefix_for(None, text)
        z = self.normalize(F.linear(prefix["text_embeds"].to(self.weight), self.weight, self.bias))
        if not self.layers:
            return z
        query = self.query.expand(prefix.rows, 1, -1)
        return z + self.out(self._at_query(query, prefix))

    @torch.no_grad()
    def sample(self, text: Encoded, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """The image embeddings of captions, [B, D] of unit norm; without chance.

        Args: generators: taken as other priors take them, one for each row: they only say how many rows B there are, a
            multiple of the number of captions. Without, one row for each caption.
        """
        prefix = self.read(text)
        if generators is not None:
            prefix = prefix.for_rows(len(generators))
        z = self.denormalize(self(**prefix))
        return F.normalize(z, dim=-1) if self.unit_norm else z
