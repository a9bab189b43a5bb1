"""Pictures changed as a prompt says: all over, or where a mask is.

`UnCLIPImg2ImgPipeline` noises the picture and denoises it towards the prompt (SDEdit, 2108.01073).
`UnCLIPInpaintPipeline` makes a hole anew while its surroundings are given at each step (RePaint, 2201.09865).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from unclip.clip import TextEncoding
from unclip.diffusion import first_step, inpaint, noise_to_step
from unclip.errors import UserError

from .calls import Call, CallOptions, seeds_of, warn_of_idle_negative
from .inputs import check_count, check_share, negative_list
from .manipulation import Given, Manipulation, prompts_of, read
from .masks import holes, paste
from .reading import Fit, Source
from .sphere import slerp
from .stages import ImageSeed, StepCallback, decoder_noise, repeat, steps_of

EDIT_STEPS = 20  # of the decoder: enough for a start in their midst, and for a hole to fit in


class _Edit(Manipulation):
    """What both have: a prompt for each picture, and an embedding between the prompt's and the picture's."""

    def _embeds(
        self,
        given: Given,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        image_weight: float,
        each: int,
        seeds: list[ImageSeed],
        call: Call,
    ) -> tuple[Tensor, TextEncoding, TextEncoding | None]:
        """z_i [B, D], captions and negative captions (B rows)."""
        prompts = prompts_of(prompt, len(given))
        negatives = None if negative_prompt is None else negative_list(negative_prompt, len(given))
        if negatives is not None:
            warn_of_idle_negative(call.settings, stacklevel=5)
        text = self.encode(prompts, call)
        negative = None if negatives is None else self.encode(negatives, call)
        z = self.embeds_of(text, negative, seeds, call)
        if image_weight:
            z = slerp(z, self.embed(given).repeat_interleave(each, dim=0), image_weight)
        return z, repeat(text, each), None if negative is None else repeat(negative, each)


class UnCLIPImg2ImgPipeline(_Edit):
    """Pictures to pictures that a prompt describes.

    A call takes:
        prompt: what the picture is to become; one, or one for each picture.
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation.
        strength: in (0, 1], how much noise the picture is given first: more of it, the less of it stays.
        image_weight: in [0, 1], how far z_i goes from the prompt's to the picture's own.
        negative_prompt: what to move away from; one, or one for each picture.
        num_images_per_prompt: results for each picture.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is EDIT_STEPS unless given.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Source | Sequence[Source],
        *,
        strength: float = 0.7,
        image_weight: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Change pictures; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        if check_share(strength, "strength") == 0:
            raise UserError("strength 0 leaves the picture as it is: give more than 0, up to 1 for all of it")
        check_share(image_weight, "image_weight")
        call = self.check(options, decoder_num_inference_steps=EDIT_STEPS)
        given, each = read(image, fit), num_images_per_prompt
        seeds = seeds_of(call, len(given), each)
        z, text, negative = self._embeds(given, prompt, negative_prompt, image_weight, each, seeds, call)
        steps, scheduler = call.settings.decoder_num_inference_steps, self.decoder_scheduler
        start = first_step(scheduler, steps, strength)
        noise = decoder_noise(self.decoder, seeds)[0]
        if start:
            x0 = given.at(self._base_size).to(noise).repeat_interleave(each, dim=0)
            noise = noise_to_step(scheduler, x0, noise, steps, start)
        pictures = self.decode(z, text, negative, seeds, call, noise=noise, start=start)
        return self.finish(z, pictures, seeds, call)


class UnCLIPInpaintPipeline(_Edit):
    """Pictures with a hole that is filled as a prompt says; what is not in the hole stays.

    At the decoder's size every pixel outside the hole is the picture's own. Each upsampler may touch all of its
    picture, so there the given one, as large, is pasted back; it fades in over a seam around the hole, 1/32 of the side
    wide.

    A call takes:
        prompt: what the whole picture is to show; one, or one for each picture.
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation.
        mask_image: white where the picture is to be made anew; a mask as large as the picture, or one for each picture.
            Without it the hole is what is transparent, as in the DALL·E 2 API.
        outpaint: in [0, 1), make the picture smaller by this share of the side and fill what is around it, too.
        num_resamplings: how often each step is taken, going back by one in between (RePaint, §4.2): more of it, the
            better the filling fits what is around it.
        image_weight: in [0, 1], how far z_i goes from the prompt's to the picture's own.
        negative_prompt: what to move away from; one, or one for each picture.
        num_images_per_prompt: results for each picture.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is EDIT_STEPS unless given.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Source | Sequence[Source],
        mask_image: Source | Sequence[Source] | None = None,
        *,
        outpaint: float = 0.0,
        num_resamplings: int = 4,
        image_weight: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Fill holes; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        check_share(image_weight, "image_weight")
        check_count(num_resamplings, "num_resamplings")
        call = self.check(options, decoder_num_inference_steps=EDIT_STEPS)
        given, hole_at = holes(read(image, fit), mask_image, outpaint, self._base_size)
        each = num_images_per_prompt
        seeds = seeds_of(call, len(given), each)
        z, text, negative = self._embeds(given, prompt, negative_prompt, image_weight, each, seeds, call)
        known = given.at(self._base_size).to(self.device).repeat_interleave(each, dim=0)
        hole = hole_at(self._base_size).bool().to(self.device).repeat_interleave(each, dim=0)
        pictures = self._fill(z, text, negative, seeds, call, known, hole, num_resamplings)

        def retouch(pictures: Tensor, side: int) -> Tensor:
            if side == self._base_size:
                return pictures
            own = given.at(side).to(pictures).repeat_interleave(each, dim=0)
            return paste(pictures, own, hole_at(side).to(pictures).repeat_interleave(each, dim=0))

        return self.finish(z, pictures, seeds, call, retouch)

    def _fill(
        self,
        z: Tensor,
        text: TextEncoding,
        negative: TextEncoding | None,
        seeds: list[ImageSeed],
        call: Call,
        known: Tensor,
        hole: Tensor,
        num_resamplings: int,
    ) -> Tensor:
        """The decoder's pictures [B, 3, S, S]: `known` where `hole` [B, 1, S, S] is False."""
        steps, scheduler = call.settings.decoder_num_inference_steps, self.decoder_scheduler
        captions = self.captions(text, negative, len(seeds))

        def fill(part: slice, on_step: StepCallback | None) -> Tensor:
            denoiser, cond = self.denoiser(z, *captions, seeds, part, call, call.settings.noise_level)
            noise, generators = decoder_noise(self.decoder, seeds[part])
            return inpaint(
                denoiser,
                scheduler,
                noise,
                known[part],
                hole[part],
                cond=cond,
                num_inference_steps=steps,
                num_resamplings=num_resamplings,
                generator=generators,
                clip_range=1.0,
                callback_on_step_end=on_step,
            )

        count = num_resamplings * (steps_of(scheduler, steps) - 1) + 1  # the last one is taken once
        return self.in_groups(call, "decoder", count, len(z), self._base_size, fill)
