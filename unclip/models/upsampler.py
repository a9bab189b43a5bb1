"""Upsampler p(x_high | x_low): a small fully convolutional U-Net without attention or text (unCLIP §2.1).

It works on pixel-unshuffled pictures: with factor 4 the noised picture becomes 48 channels at exactly the
resolution of the low-resolution picture, which is simply put beside it. Every normalisation is per pixel, so
the result at a pixel depends on its surroundings alone: the network trains on crops and runs at any size.

Legend of shapes: B batch, H, W picture sides, f = factor, h = H / f, w = W / f, C channels of a level,
E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.layers import ScalarEmbedding, zero_


def pixel_norm(x: Tensor) -> Tensor:
    """Layer norm over the channels of each pixel, [B, C, h, w]; needs no copy in channels-last memory."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the features before each scaled and shifted by the condition (FiLM).

    Starts as the identity.
    """

    def __init__(self, channels: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.film = nn.Linear(embed, 4 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        zero_(self.conv2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, C, h, w], condition [B, E] (activated) -> [B, C, h, w]."""
        scale1, shift1, scale2, shift2 = self.film(condition)[:, :, None, None].chunk(4, dim=1)
        y = self.conv1(F.silu(torch.addcmul(shift1, pixel_norm(x), 1 + scale1)))
        y = F.silu(torch.addcmul(shift2, pixel_norm(y), 1 + scale2))
        return x + self.conv2(self.dropout(y))


class Stage(nn.Module):
    """The residual blocks of one level in one direction."""

    def __init__(self, channels: int, embed: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResidualBlock(channels, embed, dropout) for _ in range(blocks)])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, condition)
        return x


class Upsampler(ModelMixin, ConfigMixin):
    """Denoiser of a picture `factor` times the size of a given one.

    Predicts the difference to the bicubically enlarged low-resolution picture, so untrained it returns that
    enlargement. `channels` holds one entry per level, from h x w downwards by halves. The defaults are the
    size of the emoji model's 64 -> 256 upsampler; its 256 -> 1024 upsampler has channels (48, 64).

    `schedule` and `prediction_type` say how the network was trained, for whoever makes a denoiser of it; the
    network itself only multiplies t by `time_scale` (1 for t in 0..999, 1000 for t in [0, 1]).
    """

    knows_noise_level = True

    @register_to_config
    def __init__(
        self,
        factor: int = 4,
        channels: Sequence[int] = (64, 96),
        blocks: int = 2,
        embed_channels: int = 128,
        skin_channels: int = 12,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        schedule: str = "flow",
        prediction_type: str = "sample",
    ) -> None:
        super().__init__()
        if not channels:
            raise UserError(
                "expected at least one level in channels, got none: for example channels=(64, 96)"
            )
        self.factor = factor
        self.time_in = ScalarEmbedding(embed_channels, time_scale)
        self.level_in = ScalarEmbedding(embed_channels, 1000.0)
        self.stem = nn.Conv2d(3 * factor**2 + 3, channels[0], 3, padding=1)

        def stage(width: int) -> Stage:
            return Stage(width, embed_channels, blocks, dropout)

        steps = list(pairwise(channels))
        self.down_stages = nn.ModuleList([stage(fine) for fine, _ in steps])
        self.down = nn.ModuleList([nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps])
        self.bottom = stage(channels[-1])
        self.up = nn.ModuleList([nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps])
        self.join = nn.ModuleList([nn.Conv2d(2 * fine, fine, 1) for fine, _ in steps])
        self.up_stages = nn.ModuleList([stage(fine) for fine, _ in steps])

        self.out = nn.Conv2d(channels[0], skin_channels * factor**2, 3, padding=1)
        self.skin = nn.Conv2d(skin_channels, 3, 3, padding=1)
        zero_(self.skin)

    def forward(self, x: Tensor, t: Tensor, *, low_res: Tensor, noise_level: Tensor) -> Tensor:
        """Denoise a picture.

        Args:
            x: [B, 3, H, W], noised picture (clean ones lie in [-1, 1]).
            t: [B], time in the units of the training schedule.
            low_res: [B, 3, H/f, W/f] in [-1, 1], already corrupted by the amount that `noise_level` tells.
            noise_level: [B] in [0, 1].

        Returns: [B, 3, H, W], the prediction (the clean picture when trained with prediction type "sample").
        """
        B, _, H, W = x.shape
        f, dtype = self.factor, self.stem.weight.dtype
        low_size = tuple(low_res.shape[2:])
        if (low_size[0] * f, low_size[1] * f) != (H, W):
            raise UserError(
                f"expected low_res of 1/{f} the size of x {(H, W)}, got {low_size}: resize either"
            )
        x, low_res = x.to(dtype), low_res.to(dtype)
        condition = F.silu(self.time_in(t.expand(B)) + self.level_in(noise_level.expand(B)))
        enlarged = F.interpolate(low_res, scale_factor=f, mode="bicubic", align_corners=False)

        # Sides become multiples of the coarsest level's pixel; what is added is cut off again at the end.
        unit = 2 ** len(self.down)
        bottom, right = -low_size[0] % unit, -low_size[1] % unit
        field = torch.cat([F.pixel_unshuffle(x, f), low_res], dim=1)  # [B, 3 * f * f + 3, h, w]
        field = F.pad(field, (0, right, 0, bottom), mode="replicate")
        h = self.stem(field.contiguous(memory_format=torch.channels_last))  # [B, C, h, w]
        h = F.silu(self.out(self._body(h, condition)))
        return enlarged + self.skin(F.pixel_shuffle(h, f))[:, :, :H, :W]

    def _body(self, h: Tensor, condition: Tensor) -> Tensor:
        """Down the levels and up again, joining each level's features on the way, [B, C, h, w] -> same."""
        skips = []
        for stage, down in zip(self.down_stages, self.down, strict=True):
            h = stage(h, condition)
            skips.append(h)
            h = down(F.pixel_unshuffle(h, 2))
        h = self.bottom(h, condition)
        for i in reversed(range(len(skips))):
            h = self.join[i](torch.cat([F.pixel_shuffle(self.up[i](h), 2), skips[i]], dim=1))
            h = self.up_stages[i](h, condition)
        return h
