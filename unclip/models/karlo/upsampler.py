"""The public upsampler 64 -> 256: a U-Net for all steps but the last, and another one for that, as Karlo has it.

Legend of shapes: B batch, S side of the large picture, s of the small one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from unclip.models.karlo.take import own_config
from unclip.models.winograd import use_winograd


class KarloUpsampler(ModelMixin, ConfigMixin):
    """Two of diffusers' U-Nets, `first` and `last`, which see the enlarged small picture beside the noised large one.

    Args:
        first_config, last_config: of the two.
        factor: how much larger the picture becomes.
        schedule, prediction_type: how they were trained.
    """

    knows_noise_level = False

    @register_to_config
    def __init__(
        self,
        first_config: dict[str, Any],
        last_config: dict[str, Any],
        factor: int = 4,
        schedule: str = "cosine",
        prediction_type: str = "epsilon",
    ) -> None:
        super().__init__()
        self.first, self.last = UNet2DModel(**first_config), UNet2DModel(**last_config)
        self.factor = factor
        use_winograd(self)

    @classmethod
    def from_diffusers(cls, first: Any, last: Any, factor: int = 4) -> KarloUpsampler:
        """Two U-Nets of diffusers as this class, on the same tensors."""
        with torch.device("meta"):
            upsampler = cls(own_config(first), own_config(last), factor)
        upsampler.first.load_state_dict(first.state_dict(), assign=True)
        upsampler.last.load_state_dict(last.state_dict(), assign=True)
        return upsampler.train(first.training)

    def forward(
        self, x: Tensor, t: Tensor, *, low_res: Tensor, noise_level: Tensor, last: bool = False
    ) -> Tensor:
        """Predict the noise in a picture.

        Args:
            x: [B, 3, S, S], noised picture (clean ones lie in [-1, 1]). t: [B] in 0..999.
            low_res: [B, 3, s, s] in [-1, 1].
            noise_level: not known to this network.
            last: whether it is the last step.

        Returns: [B, 3, S, S].
        """
        # antialias changes the kernel of the bicubic filter: it is what the network was trained on.
        enlarged = F.interpolate(
            low_res.float(), x.shape[2:], mode="bicubic", align_corners=False, antialias=True
        )
        network = self.last if last else self.first
        both = torch.cat([x, enlarged], dim=1).to(network.dtype, memory_format=torch.channels_last)
        return network(both, t, return_dict=False)[0]
