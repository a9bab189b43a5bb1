"""The public decoder p(x | z_i, y): a U-Net that predicts the noise and its variance (unCLIP §2.1, GLIDE 2112.10741).

The network is diffusers' UNet2DConditionModel, which is kept up; what told it of z_i and the caption was not, and is
`UnCLIPTextProjModel`. What they make of the conditions is computed once for all steps.

Legend of shapes: B batch, S picture side, L text tokens, C token-state size, D embedding size, K context tokens of z_i.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from unclip.errors import UserError
from unclip.models.caption_prior import Encoded
from unclip.models.karlo.attention import ContextProcessor, context_attentions
from unclip.models.karlo.take import own_config, with_tensors_of
from unclip.models.karlo.text_proj import UnCLIPTextProjModel
from unclip.models.winograd import use_winograd


class KarloDecoder(ModelMixin, ConfigMixin):
    """diffusers' U-Net and its projections of z_i and the caption, as one network.

    Args:
        unet_config, text_proj_config: of the two.
        schedule, prediction_type, learned_variance: how it was trained.
    """

    needs_captions = True  # that of "" where there is none
    knows_noise_level = False

    @register_to_config
    def __init__(
        self,
        unet_config: dict[str, Any],
        text_proj_config: dict[str, Any],
        schedule: str = "cosine",
        prediction_type: str = "epsilon",
        learned_variance: bool = True,
    ) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**unet_config)
        self.text_proj = UnCLIPTextProjModel(**text_proj_config)
        use_winograd(self.unet)
        self.attentions = {name: ContextProcessor(name) for name in context_attentions(self.unet)}
        for name, attention in context_attentions(self.unet).items():
            cast(Any, attention).set_processor(self.attentions[name])

    @classmethod
    def from_diffusers(cls, unet: Any, text_proj: Any) -> KarloDecoder:
        """A U-Net and a text projection of diffusers as this class, on the same tensors.

        Raises:
            UserError: the two do not fit together.
        """
        own = with_tensors_of(text_proj, UnCLIPTextProjModel, **own_config(text_proj))
        _check_fit(unet, own)
        with torch.device("meta"):
            decoder = cls(own_config(unet), own_config(own))
        decoder.text_proj = own
        decoder.unet.load_state_dict(unet.state_dict(), assign=True)
        return decoder.train(unet.training)

    @property
    def sample_size(self) -> int:
        """S."""
        return int(self.unet.config.sample_size)

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.text_proj.embed_dim

    def conditions(self, image_embeds: Tensor | None, text: Encoded) -> dict[str, Tensor]:
        """What `forward` takes besides x and t, for one branch of guidance.

        Args:
            image_embeds: [B, D], z_i of CLIP's own length; None for the learned embedding that stands for none.
            text: of B captions.
        """
        tokens = text.tokens.masked_fill(~text.mask[..., None], 0)
        context, added = self.text_proj(image_embeds, text.embeds, tokens)
        mask = F.pad(text.mask, (self.text_proj.context_tokens, 0), value=True)
        made = {
            name: self.attentions[name].keys_and_values(attention, context)
            for name, attention in context_attentions(self.unet).items()
        }
        return {"added": added, "context_mask": mask, **made}

    def forward(
        self, x: Tensor, t: Tensor, *, added: Tensor, context_mask: Tensor, **context: Tensor
    ) -> Tensor:
        """Predict the noise in a picture and its variance.

        Args:
            x: [B, 3, S, S], noised picture (clean ones lie in [-1, 1]). t: [B] in 0..999.
            added, context_mask, context: as `conditions` made them.

        Returns: [B, 6, S, S], the noise and 2v - 1 (Improved DDPM, eq. 15).
        """
        options = {"context": context, "context_mask": context_mask}
        return self.unet(x, t, None, class_labels=added, cross_attention_kwargs=options, return_dict=False)[0]


def _check_fit(unet: Any, text_proj: UnCLIPTextProjModel) -> None:
    """Raise UserError unless the U-Net takes what the projections make."""
    if not context_attentions(unet):
        raise UserError(
            "this U-Net attends to no context as unCLIP's does: expected SimpleCrossAttn blocks, got "
            f"{', '.join(unet.config.down_block_types)}"
        )
    config = text_proj.config
    expected = {
        "cross_attention_dim": (unet.config.cross_attention_dim, config.cross_attention_dim),
        "time_embed_dim": (unet.time_embedding.linear_2.out_features, config.time_embed_dim),
    }
    for name, (wanted, found) in expected.items():
        if wanted != found:
            raise UserError(
                f"text_proj belongs to another decoder: its {name} is {found}, the decoder's is {wanted}"
            )
