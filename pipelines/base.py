"""What all pipelines of unCLIP share: components, loading, settings, and the stages as methods.

A pipeline is what stands between its arguments and these stages:

    encode     captions and pictures -> CLIP embeddings
    prior      captions -> z_i                                   `embeds_of`
    decode     z_i and x_T -> a small picture                     `decode`, `invert`
    upsample   a small picture -> a large one                     `finish`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from unclip.clip import FrozenCLIP, TextEncoding
from unclip.diffusion import Denoiser, Guided, InverseScheduler, denoise, invert
from unclip.errors import UserError
from unclip.models import Decoder, DiffusionPrior, Upsampler
from unclip.models.autoregressive_prior import TOP_P
from unclip.models.saved import loading

from .calls import Call, CallOptions, UnCLIPPipelineOutput, check_call
from .inputs import Settings
from .loading import find_lexicon, find_priors, locate
from .pictures import to_output
from .plain_words import PlainWords
from .priors import SeveralPriors, sample_prior
from .stages import (
    ImageSeed,
    StepCallback,
    decoder_noise,
    groups,
    guided_decoder,
    rows,
    sample_upsampler,
    steps_of,
)

# What becomes of the pictures [B, 3, s, s] of each size s on their way up.
Retouch = Callable[[Tensor, int], Tensor]


COMPONENTS = (
    *("clip", "prior", "prior_scheduler", "decoder", "decoder_scheduler"),
    *("upsampler_256", "upsampler_256_scheduler", "upsampler_1024", "upsampler_1024_scheduler"),
)
# What pipelines of the same components share besides them.
SHARED = ("_lexicon_file", "_lexicon", "_looked", "_priors_folder", "_loaded_priors")
DEFAULTS = (*(field.name for field in fields(Settings)), "plain_words")


class UnCLIPStages(PlainWords, SeveralPriors):
    """The components of unCLIP as a diffusers pipeline, and its stages; subclasses have a `__call__`.

    The components are CLIP, and for prior, decoder and each upsampler a network and a scheduler; any scheduler of
    diffusers may take a place (`pipe.decoder_scheduler = DPMSolverMultistepScheduler.from_config(...)`). The upsamplers
    may be absent. The constructor's other arguments are the defaults of a call, saved with the model. Every pipeline is
    made of any other's components by `from_pipe`.
    """

    _optional_components = [  # noqa: RUF012 - diffusers' name and type
        "upsampler_256",
        "upsampler_256_scheduler",
        "upsampler_1024",
        "upsampler_1024_scheduler",
    ]
    _callback_tensor_inputs = ["latents", "x0"]  # noqa: RUF012

    clip: FrozenCLIP
    prior: DiffusionPrior
    prior_scheduler: SchedulerMixin
    decoder: Decoder
    decoder_scheduler: SchedulerMixin
    upsampler_256: Upsampler | None
    upsampler_256_scheduler: SchedulerMixin | None
    upsampler_1024: Upsampler | None
    upsampler_1024_scheduler: SchedulerMixin | None

    def __init__(
        self,
        clip: FrozenCLIP,
        prior: DiffusionPrior,
        prior_scheduler: SchedulerMixin,
        decoder: Decoder,
        decoder_scheduler: SchedulerMixin,
        upsampler_256: Upsampler | None = None,
        upsampler_256_scheduler: SchedulerMixin | None = None,
        upsampler_1024: Upsampler | None = None,
        upsampler_1024_scheduler: SchedulerMixin | None = None,
        prior_num_inference_steps: int = 25,
        decoder_num_inference_steps: int = 30,
        upsampler_num_inference_steps: int = 1,  # what the upsamplers' presets train for
        prior_guidance_scale: float = 1.0,  # the paper guides the decoder only (appendix C)
        decoder_guidance_scale: float = 2.0,
        num_prior_candidates: int = 2,  # as in the paper (§2.2)
        prior_temperature: float = 1.0,
        prior_top_p: float = TOP_P,
        noise_level: float = 0.0,
        upsampler_noise_level: float = 0.0,
        plain_words: bool = True,
    ) -> None:
        given = locals()
        super().__init__()
        self.register_modules(**{name: given[name] for name in COMPONENTS})
        self.register_to_config(**{name: given[name] for name in DEFAULTS})
        self._stage: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """Load a pipeline folder or hub repository; without a name, the model embedded in this package.

        The arguments are those of `DiffusionPipeline.from_pretrained`. Weights run in float32 unless `dtype` says
        otherwise, however small they are stored.

        Raises:
            UserError: a file is missing, cut off or does not fit.
        """
        source = locate(pretrained_model_name_or_path)
        with loading(f"model {source}"):
            pipe: Any = super().from_pretrained(source, **kwargs)
        pipe._lexicon_file = find_lexicon(source, **kwargs)
        pipe._priors_folder = find_priors(source, **kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """This pipeline of another one's components, which are shared; nothing is loaded again."""
        own = {name: kwargs.pop(name, getattr(pipeline, name)) for name in COMPONENTS}
        pipe = cls(**own, **{name: kwargs.pop(name, pipeline.config[name]) for name in DEFAULTS})
        if kwargs:
            raise UserError(
                f"unknown component or default {next(iter(kwargs))!r}: choose from {COMPONENTS + DEFAULTS}"
            )
        for name in SHARED:
            setattr(pipe, name, getattr(pipeline, name))
        # Where lexicon and priors are looked for if diffusers' own loader was used.
        if source := pipeline.config.get("_name_or_path"):
            pipe.register_to_config(_name_or_path=source)
        pipe.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        return pipe

    @property
    def _base_size(self) -> int:
        config: Any = self.decoder.config
        return config.sample_size

    @property
    def sizes(self) -> dict[int, str]:
        """Side in pixels -> component that makes pictures of it, smallest first."""
        side = self._base_size
        sizes = {side: "decoder"}
        for name in ("upsampler_256", "upsampler_1024"):
            if (upsampler := getattr(self, name)) is not None:
                side *= upsampler.config.factor
                sizes[side] = name
        return sizes

    @property
    def stage(self) -> str | None:
        """The component at work, for callbacks: prior, decoder, upsampler_256, …; None between calls."""
        return self._stage

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
        return check_call(self, options, defaults)

    def encode(self, prompts: list[str], call: Call) -> TextEncoding:
        """Captions as the networks take them, in plain words if that is wanted."""
        texts = self.in_plain_words(prompts, call.plain_words)
        return self.clip.encode_text(texts, things=True)

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
        negative = negative or self.clip.encode_text([""])
        return sample_prior(
            call.prior, self.prior_scheduler, text, negative, seeds, call.settings, call.watch, **redraw
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

        def decode(part: slice, on_step: StepCallback | None) -> Tensor:
            denoiser, cond = self.denoiser(
                embeds, text, negative, seeds, part, call, call.settings.noise_level
            )
            drawn, generators = decoder_noise(self.decoder, seeds[part])
            return denoise(
                denoiser,
                scheduler,
                drawn if noise is None else noise[part].to(drawn),
                cond=cond,
                num_inference_steps=steps,
                generator=generators,
                start=start,
                eta=eta,
                clip_range=1.0,
                callback_on_step_end=on_step,
            )

        count = steps_of(scheduler, steps) - start
        return self.in_groups(call, "decoder", count, len(seeds), self._base_size, decode)

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

        def find(part: slice, on_step: StepCallback | None) -> Tensor:
            denoiser, cond = self.denoiser(embeds, text, None, seeds, part, call, noise_level=0.0)
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

        def enlarge(part: slice, on_step: StepCallback | None) -> Tensor:
            return sample_upsampler(
                getattr(self, name),
                scheduler,
                low_res[part],
                seeds[part],
                num_inference_steps=steps,
                noise_level=call.settings.upsampler_noise_level,
                on_step=on_step,
            )

        return self.in_groups(call, name, steps_of(scheduler, steps), len(low_res), side, enlarge)

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
        with call.watch(stage, steps * len(parts)) as on_step:
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
