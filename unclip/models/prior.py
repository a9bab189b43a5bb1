"""Diffusion prior p(z_i | y): CLIP image embedding from a caption (unCLIP §2.2).

A causal transformer over [text tokens, z_t, t, noised z_i, query]; its output at the learned query is the
prediction of z_i itself, in the scaled space.

Legend of shapes: B batch, L text tokens, D embedding size, C token-state size, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.models.caption_prior import CaptionPrior, PrefixCache
from unclip.models.layers import ScalarEmbedding, ScaledEmbeddings


class NoisedPrior(CaptionPrior):
    """What every diffusion prior does: a noised z_i and its time follow the caption, and a query is asked for z_i.

    Subclasses have `normalize`, `denormalize` and `_step_tokens`, and the layer `out`.
    """

    if TYPE_CHECKING:

        def normalize(self, z: Tensor) -> Tensor: ...
        def denormalize(self, z: Tensor) -> Tensor: ...
        def _step_tokens(self, x: Tensor, t: Tensor) -> Tensor: ...

        out: Any

    def forward(self, x: Tensor, t: Tensor, **text: Tensor) -> Tensor:
        """Predict the scaled image embedding.

        Args:
            x: [B, D], noised image embedding in the scaled space (see `normalize`).
            t: [B], time in the units of the training schedule.
            text: the arguments of `prefix`; a text of fewer rows P serves B / P rows of x in succession each, and is
                computed once for them. Or, in their place, what `prefix` made of them: `forward(x, t, **prefix)`.

        Returns: [B, D], the clean embedding in the scaled space.
        Raises: UserError if neither the text nor a prefix of as many rows is given.
        """
        return self.predict(x, t, self._prefix_for(len(x), text))

    def predict(self, x: Tensor, t: Tensor, prefix: PrefixCache) -> Tensor:
        """`forward` behind a prefix of as many rows as x [B, D] has -> [B, D]."""
        return self.out(self._at_query(self._step_tokens(x, t), prefix))

    def to_embeds(self, z: Tensor) -> Tensor:
        """Scaled space [..., D] -> image embeddings as the decoder takes them: of unit norm."""
        return F.normalize(self.denormalize(z), dim=-1)


class DiffusionPrior(NoisedPrior, ScaledEmbeddings, ModelMixin, ConfigMixin):
    """Predicts the scaled image embedding z_i from a noised one and a caption (unCLIP §2.2).

    `schedule` and `prediction_type` say how the network was trained, for whoever makes a denoiser of it; the
    network itself only multiplies t by `time_scale` (1 for t in 0..999, 1000 for t in [0, 1]).
    """

    EMBED_LAYERS = ("text_embed_in", "noised_in", "out")  # those with a dimension of the embeddings' size

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
    ) -> None:
        super().__init__()
        self.register_embed_statistics(embed_dim)
        self.register_caption_input(embed_dim, token_dim, width, max_tokens)
        self.time_in = ScalarEmbedding(width, time_scale)
        self.noised_in = nn.Linear(embed_dim, width)
        self.query = nn.Parameter(torch.empty(width))
        self.register_blocks(width, layers, heads, dropout)
        self.out = nn.Linear(width, embed_dim)
        self.initialize(self.query)

    def _step_tokens(self, x: Tensor, t: Tensor) -> Tensor:
        """[t, noised z_i, query] -> [B, 3, W]."""
        B = x.shape[0]
        z_i = self.noised_in(x.to(self.query.dtype))
        return torch.stack([self.time_in(t.expand(B)), z_i, self.query.expand(B, -1)], dim=1)
