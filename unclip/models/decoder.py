"""Decoder p(x | z_i, y): a small picture from a CLIP image embedding and, if wanted, a caption (unCLIP §2.1).

As in the paper z_i is added to the time embedding and becomes 4 context tokens beside the caption's. Here it also says
where things are (see LayoutTower), in two ways: unfolded into a small map, a few channels for each patch, and as a
draft, the coarse picture that a linear map makes of it, fitted before training and laid beside the noised one. The
paper's U-Net is replaced by a plain adaLN-zero transformer over large patches (DiT; that predicts the picture
itself: JiT) in a thin convolutional skin at full resolution, which removes the seams between patches. A noise
level on z_i, known to the network (Stable unCLIP), makes it robust to the errors of a prior.

Legend of shapes: B batch, S picture side, P patch side, G = S / P, T = G * G patch tokens, K context tokens
of z_i, R side of the draft, L text tokens, W width, D embedding size, C token-state size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.layers import (
    AdaLNBlock,
    ScalarEmbedding,
    ScaledEmbeddings,
    TokenInput,
    init_linear,
    modulate,
    sincos_positions_2d,
    zero_,
)


class Decoder(ScaledEmbeddings, ModelMixin, ConfigMixin):
    """Transformer denoiser in pixels, conditioned on z_i and the caption.

    `schedule` and `prediction_type` say how the network was trained, for whoever makes a denoiser of it; the
    network itself only multiplies t by `time_scale` (1 for t in 0..999, 1000 for t in [0, 1]).
    """

    needs_captions = False  # it has a null caption of its own
    knows_noise_level = True
    # Those with a dimension of the embeddings' size.
    EMBED_LAYERS = ("image_to_time", "image_to_context", "image_to_map", "null_image")

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        patch_size: int = 8,
        width: int = 256,
        layers: int = 8,
        heads: int = 4,
        embed_dim: int = 256,
        token_dim: int = 384,
        context_tokens: int = 4,
        max_text_tokens: int = 32,
        map_channels: int = 32,
        draft_size: int = 16,
        stem_channels: int = 16,
        skin_channels: int = 24,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        schedule: str = "flow",
        prediction_type: str = "sample",
    ) -> None:
        super().__init__()
        _check_sides(sample_size, patch_size, draft_size, width)
        self.sample_size, self.patch_size, self.width = sample_size, patch_size, width
        self.draft_size = draft_size
        self.register_embed_statistics(embed_dim)
        self.register_buffer("draft_weight", torch.zeros(3 * draft_size**2, embed_dim))
        self.register_buffer("draft_bias", torch.zeros(3 * draft_size**2))
        self.draft_weight: Tensor
        self.draft_bias: Tensor
        positions = sincos_positions_2d(sample_size // patch_size, width)
        self.register_buffer("positions", positions, persistent=False)
        self.stem = nn.Conv2d(6, stem_channels, 3, padding=1)
        self.patch_in = nn.Linear(stem_channels * patch_size**2, width)

        self.time_in = ScalarEmbedding(width, time_scale)
        self.level_in = ScalarEmbedding(width, 1000.0)
        self.image_to_time = nn.Linear(embed_dim, width)
        self.image_to_context = nn.Linear(embed_dim, context_tokens * width)
        self.image_to_map = nn.Linear(embed_dim, map_channels * (sample_size // patch_size) ** 2)
        self.map_in = nn.Linear(map_channels, width)
        self.token_in = TokenInput(token_dim, width, max_text_tokens)
        self.null_image = nn.Parameter(torch.zeros(embed_dim))  # starts as the mean embedding
        self.null_text = nn.Parameter(torch.empty(width))

        blocks = [AdaLNBlock(width, heads, dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, skin_channels * patch_size**2)
        self.skin_in = nn.Conv2d(skin_channels + stem_channels + 3, skin_channels, 3, padding=1)
        self.skin_out = nn.Conv2d(skin_channels, 3, 3, padding=1)

        self.apply(init_linear)
        nn.init.normal_(self.null_text, std=0.02)
        for block in blocks:
            zero_(block.modulation)
        zero_(self.modulation_out)
        zero_(self.skin_out)

    def noise_image_embeds(self, z: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Mix gaussian noise into image embeddings, in the scaled space and preserving its variance.

        Args: z [B, D] of unit norm, level [B] in [0, 1] (1 = only noise), noise [B, D] standard normal.
        Returns: [B, D] to be passed to `forward` as `image_embeds`, together with the same `noise_level`.
        """
        angle = (level * (math.pi / 2))[:, None]
        return self.denormalize(angle.cos() * self.normalize(z) + angle.sin() * noise)

    @torch.no_grad()
    def fit_draft(self, z: Tensor, pictures: Tensor, ridge: float = 0.01) -> None:
        """Make the draft the best linear guess of coarse pictures from their embeddings (ridge regression).

        Args:
            z: [N, D] of unit norm; the embeddings' statistics must be set before.
            pictures: [N, 3, R, R] in [-1, 1].
            ridge: weight of |W|² beside the mean squared error, in the scaled space.
        """
        x, y = self.normalize(z.double()), pictures.double().flatten(1)
        x, bias = x - x.mean(0), y.mean(0)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(x.T @ x / len(x) + ridge * identity, x.T @ (y - bias) / len(x)).T
        self.draft_weight.copy_(weight)
        self.draft_bias.copy_(bias - weight @ self.normalize(z.double()).mean(0))

    def draft(self, z: Tensor) -> Tensor:
        """The linear guess at the picture: z [B, D] in the scaled space -> [B, 3, S, S]."""
        R = self.draft_size
        coarse = F.linear(z, self.draft_weight, self.draft_bias).unflatten(1, (3, R, R))
        return F.interpolate(coarse, size=self.sample_size, mode="bicubic", align_corners=False)

    def _condition(
        self, t: Tensor, z: Tensor, noise_level: Tensor, drop_image: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of z_i: activated condition vector [B, W], map [B, T, W], context tokens [B, K, W], draft [B, 3, S, S]."""
        z = self.normalize(z.to(self.null_image.dtype))
        if drop_image is not None:
            z = torch.where(drop_image[:, None], self.null_image, z)
            noise_level = noise_level.masked_fill(drop_image, 0.0)  # no embedding, no noise on it
        vector = self.time_in(t) + self.level_in(noise_level) + self.image_to_time(z)
        T = (self.sample_size // self.patch_size) ** 2
        image_map = self.map_in(self.image_to_map(z).unflatten(1, (T, -1)))
        context = self.image_to_context(z).unflatten(1, (-1, self.width))
        return F.silu(vector), image_map, context, self.draft(z)

    def _text(self, tokens: Tensor, mask: Tensor, drop_text: Tensor | None) -> tuple[Tensor, Tensor]:
        """Caption tokens [B, L, W] and which of them are real [B, L]; a dropped caption is one learned token.

        The token states already know their order, so they get no positions and may be padded on either side.
        """
        tokens = self.token_in(tokens, mask)
        if drop_text is not None:
            only_first = torch.arange(mask.shape[1], device=mask.device) == 0
            tokens = torch.where(drop_text[:, None, None], self.null_text, tokens)
            mask = torch.where(drop_text[:, None], only_first, mask)
        return tokens, mask

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        image_embeds: Tensor,
        noise_level: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor,
        drop_image: Tensor | None = None,
        drop_text: Tensor | None = None,
    ) -> Tensor:
        """Denoise a picture.

        Args:
            x: [B, 3, S, S], noised picture (clean ones lie in [-1, 1]).
            t: [B], time in the units of the training schedule.
            image_embeds: [B, D] of unit norm, or noised by `noise_image_embeds`; scaled inside.
            noise_level: [B] in [0, 1], how much noise `image_embeds` holds.
            text_tokens, text_mask: [B, L, C] token states of the caption and [B, L] bool, True = real token.
            drop_image, drop_text: [B] bool, rows where a learned null stands for z_i, for the caption.

        Returns: [B, 3, S, S], the prediction (the clean picture when trained with prediction type "sample").
        """
        B, _, S, _ = x.shape
        P, side = self.patch_size, self.sample_size
        if x.shape[2:] != (side, side):
            raise UserError(f"expected pictures of side {side}, got {tuple(x.shape[2:])}: resize them")
        noise_level = noise_level.expand(B)
        condition, image_map, context, draft = self._condition(
            t.expand(B), image_embeds, noise_level, drop_image
        )
        text_context, text_mask = self._text(text_tokens, text_mask, drop_text)

        stem = self.stem(torch.cat([x.to(draft.dtype), draft], dim=1))
        patches = F.pixel_unshuffle(stem, P).flatten(2).transpose(1, 2)  # [B, T, stem * P * P]
        T = patches.shape[1]
        patches = self.patch_in(patches) + self.positions.to(stem.dtype) + image_map
        h = torch.cat([patches, context, text_context], dim=1)
        seen = F.pad(text_mask, (h.shape[1] - text_mask.shape[1], 0), value=True)  # [B, T + K + L]
        for block in self.blocks:
            h = block(h, condition, seen[:, None, None])
        h = modulate(h[:, :T], *self.modulation_out(condition)[:, None].chunk(2, dim=-1))
        field = self.patch_out(h).transpose(1, 2).unflatten(2, (S // P, S // P))  # [B, skin * P * P, G, G]
        skin = torch.cat([F.pixel_shuffle(field, P), stem, draft], dim=1)
        return self.skin_out(F.silu(self.skin_in(skin)))


def _check_sides(sample_size: int, patch_size: int, draft_size: int, width: int) -> None:
    for name, part in (("patch_size", patch_size), ("draft_size", draft_size)):
        if sample_size % part:
            raise UserError(f"sample_size must be a multiple of {name}, got {sample_size} and {part}")
    if width % 4:
        raise UserError(f"width must be a multiple of 4, got {width}")
