"""ECLIPSE's prior (Patel et al. 2023, arXiv 2312.04655): z_i from a caption and noise in one pass, without time.

A causal transformer over [text tokens, z_t, noise, query]: Karlo's without its time, and of a thirtieth of its size. It
was trained by squared error and a contrastive loss; its output is z_i, and nothing is denoised, guided or scaled.

Legend of shapes: B batch, P captions, L text tokens, D embedding size, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unclip.errors import UserError
from unclip.models.caption_prior import Encoded
from unclip.models.karlo.prior import PublicPrior


class EclipsePrior(PublicPrior, ModelMixin, ConfigMixin):
    """Predicts z_i from a caption and noise, as ECLIPSE's PriorTransformer does.

    Has the tensors of that class; `clip_mean` and `clip_std` among them, which nothing uses. Embeddings have about the
    length that CLIP's projection gives them.

    Args:
        embed_dim, token_dim: D and the size of a token state. max_tokens: the text tokens that have a position.
    """

    step_tokens = 2  # noise, query

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 768,
        token_dim: int = 768,
        width: int = 512,
        layers: int = 10,
        heads: int = 16,
        max_tokens: int = 77,
    ) -> None:
        super().__init__()
        self.register_layers(embed_dim, token_dim, width, layers, heads, max_tokens)

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EclipsePrior:
        """A published prior: what its config.json says and its weights hold; these are taken as they are.

        Raises:
            UserError: it is of another form, or a tensor is missing, left over or of another shape.
        """
        with torch.device("meta"):
            prior = cls(**cls.sizes_of(config))
        own = {name: tensor.shape for name, tensor in prior.state_dict().items()}
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += [name for name in own if name in tensors and tensors[name].shape != own[name]]
        if wrong:
            raise UserError(
                f"the weights do not fit the config.json beside them: {len(wrong)} tensors are missing, left over or "
                f"of another shape, e.g. {wrong[0]}; take both from one repository"
            )
        prior.load_state_dict(dict(tensors), assign=True)
        return prior.eval()

    def forward(self, noise: Tensor, **text: Tensor) -> Tensor:
        """Predict the image embedding.

        Args:
            noise: [B, D], of unit variance.
            text: as of `NoisedPrior.forward`.

        Returns: [B, D], as the decoder takes it.
        """
        B, query = len(noise), self.prd_embedding
        tokens = torch.stack([self.proj_in(noise.to(query.dtype)), query[:, 0].expand(B, -1)], dim=1)
        tokens = tokens + self.positional_embedding[:, -self.step_tokens :]
        return self.out(self._at_query(tokens, self._prefix_for(B, text)))

    @torch.no_grad()
    def sample(
        self,
        text: Encoded,
        generators: Sequence[torch.Generator] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The image embeddings of captions, [B, D] of CLIP's own length.

        Args:
            text: P captions.
            generators: one for each of B rows, those of the first caption first; B is a multiple of P. Without, a row
                for each caption, drawn by torch's own.
            noise: [B, D] in place of what they draw.
        """
        config: Any = self.config
        prefix, device = self.read(text), self.prd_embedding.device
        rows = prefix.rows if generators is None else len(generators)
        if noise is None:
            own = None if generators is None else list(generators)
            noise = randn_tensor((rows, config.embed_dim), generator=own, device=device)
        return self(noise.to(device), **prefix.for_rows(rows))
