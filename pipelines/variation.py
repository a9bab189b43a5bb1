"""Variations of pictures (unCLIP §3.1): z_i is kept, x_T is kept in part or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from unclip.errors import UserError

from .calls import CallOptions, seeds_of
from .inputs import check_choice, check_count, check_embeds, check_share
from .latents import Latents
from .manipulation import (
    CORRECTIONS,
    INVERSION_STEPS,
    Given,
    Manipulation,
    Noise,
    read,
)
from .reading import Fit, Source
from .stages import repeat

INVERTED = {"decoder_num_inference_steps": INVERSION_STEPS}


class UnCLIPVariationPipeline(Manipulation):
    """Pictures to variations of them.

    A call takes:
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation. Or their
            `Latents`, which need not be found again; they take the steps and the guidance that they were found with.
        image_embeds: CLIP image embeddings [P, D] in place of pictures; they have no x_T, so noise is "fresh".
        num_images_per_prompt: variations of each.
        eta: in [0, 1], how much of x_T is replaced by new noise on the way (of DDIM, 2010.02502, eq. 16): 0 gives the
            picture again, as well as the decoder can.
        noise: "inverted" begins at the picture's own x_T; "fresh" at a new one, in as few steps as the decoder needs.
            By default inverted; fresh for the public checkpoints, as in diffusers.
        prompt: a caption for the decoder besides z_i, or one for each picture; none by default.
        num_corrections: how often x_T is corrected at each step while it is found; more, a closer round trip.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch". By default pad; crop for the
            public checkpoints.
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is INVERSION_STEPS where x_T is found.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Sequence[Source] | Latents | None = None,
        *,
        image_embeds: Tensor | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.7,
        noise: Noise | None = None,
        prompt: str | Sequence[str] | None = None,
        num_corrections: int = CORRECTIONS,
        fit: Fit | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make variations; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        eta = check_share(eta, "eta")
        check_count(num_corrections, "num_corrections")
        image_embeds = cast(dict[str, Any], options).pop(
            "image_embeddings", image_embeds
        )  # their name in diffusers
        given = self._given(image, image_embeds, fit)
        inverted = self._is_inverted(noise, given)
        found = given.options() if isinstance(given, Latents) else INVERTED
        call = self.check(options, **(found if inverted else {}))
        if isinstance(given, Latents) and inverted:
            given.check_found_with(call.settings)
        count, each = len(given), num_images_per_prompt
        seeds = seeds_of(call, count, each) if inverted else self.seeds(call, count, each)
        text = self.caption(prompt, count, 1, call)
        z = self._embeds_of(given)
        embeds = z.repeat_interleave(each, dim=0)
        captions = None if text is None else repeat(text, each)
        if not inverted:
            return self.finish(embeds, self.decode(embeds, captions, None, seeds, call), seeds, call)
        if isinstance(given, Latents):
            x_T = given.noise.to(self.device)
        else:
            x_T = self.noise_of(given, z, text, seeds[::each], call, num_corrections)
        pictures = self.decode(
            embeds,
            captions,
            None,
            seeds,
            call,
            scheduler=self.ddim_scheduler,
            noise=x_T.repeat_interleave(each, dim=0),
            eta=eta,
        )
        return self.finish(embeds, pictures, seeds, call)

    def _given(self, image: Any, image_embeds: Tensor | None, fit: Fit | None) -> Any:
        """What is to be varied: `Given` pictures, `Latents`, or embeddings [P, D] alone."""
        if (image is None) == (image_embeds is None):
            raise UserError("give either image or image_embeds: what is to be varied")
        if image_embeds is not None:
            return check_embeds(image_embeds, self.clip.embed_dim, None, self.clip.unit_norm)
        if isinstance(image, Latents):
            self._check_latents(image)
            return image
        return read(image, fit or ("crop" if self.config.as_in_diffusers else "pad"))

    def _is_inverted(self, noise: Noise | None, given: Any) -> bool:
        """Whether it begins at the picture's own x_T."""
        alone = isinstance(given, Tensor)
        if noise is None:
            noise = "fresh" if alone or self.config.as_in_diffusers else "inverted"
        inverted = check_choice(noise, "noise", ("inverted", "fresh")) == "inverted"
        if alone and inverted:
            raise UserError("image_embeds alone have no x_T: give the picture, or noise='fresh'")
        return inverted

    def _embeds_of(self, given: Any) -> Tensor:
        """z_i [P, D] of what is to be varied."""
        if isinstance(given, Given):
            return self.embed(given)
        return (given if isinstance(given, Tensor) else given.image_embeds).to(self.device)

    def _check_latents(self, latents: Latents) -> None:
        """Raise UserError if they are another model's."""
        count, side = len(latents), self.decoder.sample_size
        wanted = (count, self.clip.embed_dim), (count, 3, side, side)
        found = tuple(latents.image_embeds.shape), tuple(latents.noise.shape)
        if count == 0 or found != wanted:
            raise UserError(
                f"the latents are of shapes {found[0]} and {found[1]}, this model's {wanted[0]} and {wanted[1]}: "
                "invert the picture with this model"
            )
