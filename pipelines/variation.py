"""Variations of pictures (unCLIP §3.1): z_i is kept, x_T is kept in part or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from unclip.errors import UserError

from .calls import CallOptions
from .inputs import check_choice, check_count, check_share
from .latents import Latents
from .manipulation import (
    CORRECTIONS,
    INVERSION_STEPS,
    Given,
    Manipulation,
    Noise,
    read,
    seeds_of,
)
from .reading import Fit, Source
from .stages import repeat


class UnCLIPVariationPipeline(Manipulation):
    """Pictures to variations of them.

    A call takes:
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation. Or their
            `Latents`, which need not be found again; they take the steps and the guidance that they were found with.
        num_images_per_prompt: variations of each.
        eta: in [0, 1], how much of x_T is replaced by new noise on the way (of DDIM, 2010.02502, eq. 16): 0 gives the
            picture again, as well as the decoder can.
        noise: "inverted" begins at the picture's own x_T; "fresh" at a new one, in as few steps as the decoder needs.
        prompt: a caption for the decoder besides z_i, or one for each picture; none by default.
        num_corrections: how often x_T is corrected at each step while it is found; more, a closer round trip.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is INVERSION_STEPS where x_T is found.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Sequence[Source] | Latents,
        *,
        num_images_per_prompt: int = 1,
        eta: float = 0.7,
        noise: Noise = "inverted",
        prompt: str | Sequence[str] | None = None,
        num_corrections: int = CORRECTIONS,
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make variations; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        eta = check_share(eta, "eta")
        inverted = check_choice(noise, "noise", ("inverted", "fresh")) == "inverted"
        check_count(num_corrections, "num_corrections")
        if isinstance(image, Latents):
            self._check_latents(image)
        given = image if isinstance(image, Latents) else read(image, fit)
        found = (
            given.options()
            if isinstance(given, Latents)
            else {"decoder_num_inference_steps": INVERSION_STEPS}
        )
        call = self.check(options, **(found if inverted else {}))
        if isinstance(given, Latents) and inverted:
            given.check_found_with(call.settings)
        count, each = len(given), num_images_per_prompt
        seeds = seeds_of(call, count, each)
        text = self.caption(prompt, count, 1, call)
        z = self.embed(given) if isinstance(given, Given) else given.image_embeds.to(self.device)
        embeds = z.repeat_interleave(each, dim=0)
        captions = None if text is None else repeat(text, each)
        if not inverted:
            return self.finish(embeds, self.decode(embeds, captions, None, seeds, call), seeds, call)
        if isinstance(given, Given):
            x_T = self.noise_of(given, z, text, seeds[::each], call, num_corrections)
        else:
            x_T = given.noise.to(self.device)
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

    def _check_latents(self, latents: Latents) -> None:
        """Raise UserError if they are another model's."""
        config: Any = self.decoder.config
        count = len(latents)
        wanted = (count, self.clip.embed_dim), (count, 3, config.sample_size, config.sample_size)
        found = tuple(latents.image_embeds.shape), tuple(latents.noise.shape)
        if count == 0 or found != wanted:
            raise UserError(
                f"the latents are of shapes {found[0]} and {found[1]}, this model's {wanted[0]} and {wanted[1]}: "
                "invert the picture with this model"
            )
