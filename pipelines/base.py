"""What all pipelines of unCLIP share: settings, and the stages as methods.

A pipeline is what stands between its arguments and these stages:

    encode     captions and pictures -> CLIP embeddings
    prior      captions -> z_i                                   `embeds_of`
    decode     z_i and x_T -> a small picture                     `decode`, `invert`
    upsample   a small picture -> a large one                     `finish`
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from unclip.clip import TextEncoding
from unclip.diffusion import Denoiser, Guided, InverseScheduler, denoise, invert
from unclip.errors import UserError

from .calls import Call, CallOptions, UnCLIPPipelineOutput, check_call, seeds_of
from .components import UnCLIPComponents
from .inputs import Settings, check_count, check_generators
from .pictures import to_output
from .priors import sample_prior
from .stages import (
    ImageSeed,
    StepCallback,
    decoder_noise,
    groups,
    guided_decoder,
    repeat,
    rows,
    sample_upsampler,
    shared_seeds,
    steps_of,
)

# What becomes of the pictures [B, 3, s, s] of each size s on their way up.
Retouch = Callable[[Tensor, int], Tensor]


class UnCLIPStages(UnCLIPComponents):
    """The stages of unCLIP on its components; subclasses have a `__call__`."""

    _callback_tensor_inputs = ["latents", "x0"]  # noqa: RUF012

    @property
    def ddim_scheduler(self) -> DDIMScheduler:
        """What x_T is found and decoded with: `decoder_scheduler` if it is a DDIMScheduler, else one of its own."""
        if isinstance(self.decoder_scheduler, DDIMScheduler):
            return self.decoder_scheduler
        return DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=False,  # the loop clips
            timestep_spacing="trailing",
        )

    def settings(self, **given: Any) -> Settings:
        """The settings of a call: what is given and not None, and the model's defaults for the rest."""
        return Settings.of(self.config, given)

    def check(self, options: CallOptions, **defaults: Any) -> Call:
        """The options of a call; `defaults`, then the model's own, stand in for those that are absent or None.

        Raises:
            UserError: an unknown option, or one that is out of range.
        """
        call = check_call(self, options, defaults)
        for name, part in (("noise_level", self.decoder), ("upsampler_noise_level", self.upsampler_256)):
            if part is not None and getattr(call.settings, name) and not part.knows_noise_level:
                raise UserError(f"{name} must be 0: this model's {type(part).__name__} knows no noise level")
        return call

    def seeds(self, call: Call, inputs: int, each: int) -> list[ImageSeed]:
        """The seeds of a call's pictures, `each` of every input, as the model wants the generator used.

        Raises:
            UserError: the generators are not one or one for each picture.
        """
        self._check_latents_of(call, inputs * each)
        if not self.config.as_in_diffusers:
            return seeds_of(call, inputs, each)
        check_generators(call.generator, inputs * check_count(each, "num_images_per_prompt"))
        return shared_seeds(call.generator, inputs * each)

    def _check_latents_of(self, call: Call, count: int) -> None:
        """Raise UserError if the noise given for a later stage does not fit; now, not when its turn comes."""
        sides = {name: side for side, name in self.sizes.items()}
        for latents, stage in (("decoder_latents", "decoder"), ("upsampler_latents", "upsampler_256")):
            if stage in sides:
                call.noise(latents, (count, 3, sides[stage], sides[stage]))

    def encode(self, prompts: list[str], call: Call) -> TextEncoding:
        """Captions as the networks take them, in plain words if that is wanted."""
        texts = self.in_plain_words(prompts, call.plain_words)
        with self.at_work("clip"):
            return self.clip.encode_text(texts, things=True)

    def encode_nothing(self) -> TextEncoding:
        """The caption "", one row."""
        with self.at_work("clip"):
            return self.clip.encode_text([""])

    # ---- stages -----------------------------------------------------------------------------------------------

    def embeds_of(
        self,
        text: TextEncoding,
        negative: TextEncoding | None,
        seeds: list[ImageSeed],
        call: Call,
        **redraw: Any,
    ) -> Tensor:
        """The prior: image embeddings [B, D] of P captions, B a multiple of P; `redraw` is as of `sample_prior`."""
        negative = negative or self.encode_nothing()
        noise = call.noise("prior_latents", (len(seeds), self.clip.embed_dim))
        with self.at_work("prior") if call.prior is self.prior else nullcontext():
            return sample_prior(
                call.prior,
                self.prior_scheduler,
                text,
                negative,
                seeds,
                call.settings,
                call.watch,
                noise=noise,
                **redraw,
            )

    def decode(
        self,
        embeds: Tensor | None,
        text: TextEncoding | None,
        negative: TextEncoding | None,
        seeds: list[ImageSeed],
        call: Call,
        *,
        scheduler: Any = None,
        noise: Tensor | None = None,
        eta: float = 0.0,
        start: int = 0,
    ) -> Tensor:
        """The decoder: pictures [B, 3, S, S] in [-1, 1] of embeddings [B, D], or of captions alone, in groups.

        Args:
            scheduler: by default the decoder's.
            noise: [B, 3, S, S], the x_T, or the x_t of step `start`; by default drawn by the seeds.
            eta: of DDIM; how much of the noise is made anew on the way.
        """
        steps = call.settings.decoder_num_inference_steps
        scheduler = scheduler or self.decoder_scheduler
        side = self._base_size
        text, negative = self.captions(text, negative, len(seeds))
        if noise is None:
            noise = call.noise("decoder_latents", (len(seeds), 3, side, side))

        def decode(part: slice, on_step: StepCallback | None) -> Tensor:
            denoiser, cond = self.denoiser(
                embeds, text, negative, seeds, part, call, call.settings.noise_level
            )
            own = None if noise is None else noise[part]
            x, generators = decoder_noise(self.decoder, seeds[part], own)
            return denoise(
                denoiser,
                scheduler,
                x,
                cond=cond,
                num_inference_steps=steps,
                generator=generators,
                start=start,
                eta=eta,
                clip_range=1.0,
                callback_on_step_end=on_step,
            )

        count = steps_of(scheduler, steps) - start
        return self.in_groups(call, "decoder", count, len(seeds), side, decode)

    def invert(
        self,
        pictures: Tensor,
        embeds: Tensor,
        text: TextEncoding | None,
        seeds: list[ImageSeed],
        call: Call,
        *,
        corrections: int,
    ) -> Tensor:
        """The x_T [B, 3, S, S] from which `decode` under `ddim_scheduler` makes these pictures again (unCLIP §3).

        It belongs to z_i as it is: a noise level changes z_i, and so what is made of the x_T that was found.
        """
        steps, scheduler = call.settings.decoder_num_inference_steps, self.ddim_scheduler
        text, negative = self.captions(text, None, len(seeds))

        def find(part: slice, on_step: StepCallback | None) -> Tensor:
            denoiser, cond = self.denoiser(embeds, text, negative, seeds, part, call, noise_level=0.0)
            return invert(
                denoiser,
                scheduler,
                pictures[part].to(self.device),
                cond=cond,
                num_inference_steps=steps,
                corrections=corrections,
                clip_range=1.0,
                callback_on_step_end=on_step,
            )

        count = steps_of(InverseScheduler(scheduler, corrections), steps)
        return self.in_groups(call, "inversion", count, len(embeds), self._base_size, find)

    def finish(
        self,
        embeds: Tensor | None,
        pictures: Tensor,
        seeds: list[ImageSeed],
        call: Call,
        retouch: Retouch = lambda pictures, side: pictures,
    ) -> Any:
        """The upsamplers, as far as the size asked for, and the output of the call."""
        pictures = retouch(pictures, self._base_size)
        for side, name in self.sizes.items():
            if name != "decoder" and side <= call.size:
                pictures = retouch(self.upsample(name, side, pictures, seeds, call), side)
        self.maybe_free_model_hooks()
        images = to_output(pictures, call.output_type)
        return (
            UnCLIPPipelineOutput(images=images, image_embeds=embeds) if call.return_dict else (images, embeds)
        )

    def upsample(self, name: str, side: int, low_res: Tensor, seeds: list[ImageSeed], call: Call) -> Tensor:
        """The upsampler of a name: pictures [B, 3, H, W] to `side` pixels, that of a square of their longer side."""
        steps, scheduler = call.settings.upsampler_num_inference_steps, getattr(self, f"{name}_scheduler")
        noise = None
        if name == "upsampler_256":
            noise = call.noise("upsampler_latents", (len(low_res), 3, side, side))

        def enlarge(part: slice, on_step: StepCallback | None) -> Tensor:
            return sample_upsampler(
                getattr(self, name),
                scheduler,
                low_res[part],
                seeds[part],
                num_inference_steps=steps,
                noise_level=call.settings.upsampler_noise_level,
                noise=None if noise is None else noise[part],
                on_step=on_step,
            )

        return self.in_groups(call, name, steps_of(scheduler, steps), len(low_res), side, enlarge)

    def captions(
        self, text: TextEncoding | None, negative: TextEncoding | None, count: int
    ) -> tuple[TextEncoding | None, TextEncoding | None]:
        """The captions of both branches for `count` pictures; "" for none if the decoder knows none without."""
        if not self.decoder.needs_captions or (text and negative):
            return text, negative
        nothing = repeat(self.encode_nothing(), count)
        return text or nothing, negative or nothing

    def in_groups(
        self,
        call: Call,
        stage: str,
        steps: int,
        count: int,
        side: int,
        work: Callable[[slice, StepCallback | None], Tensor],
    ) -> Tensor:
        """Have a stage work on `count` pictures of `side` pixels, no more at once than memory is meant for."""
        parts = groups(count, side)
        component = "decoder" if stage == "inversion" else stage
        with self.at_work(component), call.watch(stage, steps * len(parts)) as on_step:
            return torch.cat([work(part, on_step) for part in parts])

    def denoiser(
        self,
        embeds: Tensor | None,
        text: TextEncoding | None,
        negative: TextEncoding | None,
        seeds: list[ImageSeed],
        part: slice,
        call: Call,
        noise_level: float,
    ) -> tuple[Denoiser | Guided, dict[str, Tensor]]:
        """The decoder under guidance for a group of pictures, and its conditions."""
        return guided_decoder(
            self.decoder,
            None if embeds is None else embeds[part],
            None if text is None else rows(text, part),
            None if negative is None else rows(negative, part),
            seeds[part],
            guidance_scale=call.settings.decoder_guidance_scale,
            noise_level=noise_level,
        )
