"""What the pipelines that begin with a picture share: reading it, its bipartite latent (z_i, x_T), how many to make.

unCLIP §3: z_i says what CLIP sees in a picture, x_T holds what else the decoder needs to make just that picture again.
Manipulations change the one and keep the other, or the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from unclip.clip import TextEncoding
from unclip.errors import UserError

from .base import UnCLIPStages
from .calls import Call, CallOptions, seeds_of
from .inputs import check_count, prompt_list
from .latents import Latents
from .reading import Fit, Picture, Source, read_picture, shrunk, source_list, square
from .stages import ImageSeed, repeat

CLIP_SEES_AT = 256  # pixels of the picture that CLIP is shown; it makes it smaller itself
INVERSION_STEPS = (
    25  # of the decoder, where x_T is found; docs/manipulations.md has the round trips of others
)
LARGEST = 1024  # pixels of the shorter side that are kept of a picture
CORRECTIONS = 2  # of x_T at each step

Noise = Literal["inverted", "fresh"]


@dataclass(frozen=True)
class Given:
    """Pictures as a user gave them, to be had as squares of any size."""

    pictures: list[Picture]
    fit: Fit

    def at(self, size: int) -> Tensor:
        """[P, 3, size, size] in [-1, 1]."""
        return torch.stack([square(each, size, self.fit).rgb for each in self.pictures])

    def for_clip(self, clip: Any) -> list[Tensor]:
        """As a CLIP is shown them, in batches [N, 3, H, W]: at one size, or one that crops for itself as they came."""
        if not clip.resizes_exactly:
            return [self.at(CLIP_SEES_AT)]
        if self.fit == "crop":
            return [each.rgb[None] for each in self.pictures]
        return [square(each, max(each.size), self.fit).rgb[None] for each in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)


def read(image: Source | Sequence[Source], fit: Fit) -> Given:
    """One or several pictures of any size, mode and orientation; of large ones what no result is larger than is kept.

    Raises:
        UserError: one of them cannot be read, or an unknown fit.
    """
    if fit not in get_args(Fit):
        raise UserError(f"unknown fit {fit!r}: choose one of {', '.join(get_args(Fit))}")
    return Given([shrunk(read_picture(each), LARGEST) for each in source_list(image)], fit)


class Manipulation(UnCLIPStages):
    """Base of the pipelines that take pictures."""

    def embed(self, given: Given) -> Tensor:
        """z_i of pictures, [P, D]."""
        with self.at_work("clip"):
            return torch.cat([self.clip.encode_image(x.to(self.device)) for x in given.for_clip(self.clip)])

    def noise_of(
        self,
        given: Given,
        embeds: Tensor,
        text: TextEncoding | None,
        seeds: list[ImageSeed],
        call: Call,
        num_corrections: int = CORRECTIONS,
    ) -> Tensor:
        """x_T of pictures [P, 3, S, S] under their own z_i; a seed for each picture."""
        pictures = given.at(self._base_size)
        return self.invert(pictures, embeds, text, seeds, call, corrections=num_corrections)

    @torch.no_grad()
    def latents(
        self,
        image: Source | Sequence[Source],
        *,
        num_corrections: int = CORRECTIONS,
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Latents:
        """The bipartite latent (z_i, x_T) of pictures, which `UnCLIPVariationPipeline` takes in their place.

        Args:
            num_corrections: how often x_T is corrected at each step; more of them, a closer round trip.
            image, fit, options: as of the pipelines.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        check_count(num_corrections, "num_corrections")
        call = self.check(options, decoder_num_inference_steps=INVERSION_STEPS)
        given = read(image, fit)
        seeds = seeds_of(call, len(given), 1)
        z = self.embed(given)
        x_T = self.noise_of(given, z, None, seeds, call, num_corrections)
        settings = call.settings
        return Latents(z, x_T, settings.decoder_num_inference_steps, settings.decoder_guidance_scale)

    def caption(
        self, prompt: str | Sequence[str] | None, count: int, each: int, call: Call
    ) -> TextEncoding | None:
        """Captions that the decoder is given besides z_i, one or one for each of `count` pictures; `each` rows of each.

        Raises:
            UserError: another number of them, or an empty one.
        """
        if prompt is None:
            return None
        return repeat(self.encode(prompts_of(prompt, count), call), each)


def prompts_of(prompt: str | Sequence[str], count: int) -> list[str]:
    """A caption for each of `count` pictures.

    Raises:
        UserError: neither one is given nor one for each, or one is empty.
    """
    prompts = prompt_list(prompt)
    if len(prompts) not in (1, count):
        raise UserError(
            f"got {len(prompts)} prompts for {count} pictures: give one for each, or a single one"
        )
    return prompts * (count // len(prompts))
