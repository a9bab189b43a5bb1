"""Text to image with unCLIP (Ramesh et al. 2022): caption, prior, image embedding, decoder, upsamplers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from unclip.clip import FrozenCLIP, TextEncoding
from unclip.diffusion import prepared
from unclip.errors import UserError
from unclip.models import Decoder, DiffusionPrior, Upsampler
from unclip.models.saved import loading

from .inputs import Request, Settings, check_request, choose_size
from .loading import find_lexicon, locate
from .pictures import to_output
from .plain_words import PlainWords
from .stages import (
    ImageSeed,
    StepCallback,
    groups,
    image_seeds,
    repeat,
    rows,
    sample_decoder,
    sample_prior,
    sample_upsampler,
)

# Called with a stage, its steps and how often it runs; gives what is to be called after each step.
Watch = Callable[[str, int, int], AbstractContextManager[StepCallback]]


@dataclass
class UnCLIPPipelineOutput(BaseOutput):
    """Pictures, and the image embeddings [B, D] (unit norm) that they were decoded from.

    `images` is a list of PIL pictures, an array [B, S, S, 3] in [0, 1] ("np"), a tensor [B, 3, S, S] in [0,
    1] ("pt"), or the tensor [B, 3, S, S] around [-1, 1] as the last stage left it ("latent"). All pictures
    of the first prompt come first.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    image_embeds: Tensor


class UnCLIPTextToImagePipeline(PlainWords):
    """unCLIP's cascade as a diffusers pipeline.

    The components are CLIP, and for prior, decoder and each upsampler a network and a scheduler; any
    scheduler of diffusers may take a place (`pipe.decoder_scheduler =
    DPMSolverMultistepScheduler.from_config(...)`). The upsamplers may be absent. The constructor's other
    arguments are the defaults of a call, saved with the model.

    A call takes:
        prompt: a caption or P of them, at least one word each. May be absent if image_embeds is given.
        negative_prompt: what the pictures should move away from: its encoding takes the null caption's
            place in the unconditional branches. One, or one for each prompt. Without guidance it has no
            effect.
        plain_words: put both prompts into the words of the captions first, if the model has a lexicon.
        num_images_per_prompt: pictures for each prompt.
        image_embeds: CLIP image embeddings [P, D] or [1, D] to decode in place of the prior's; any norm
            will do.
        *_num_inference_steps: steps of the prior, the decoder and of each upsampler.
        *_guidance_scale: classifier-free guidance of the prior and the decoder; 1 = none.
        num_prior_candidates: embeddings that the prior draws for a picture; the nearest to the caption is
            kept.
        noise_level: in [0, 1], noise mixed into the image embedding: more variety, less likeness.
        upsampler_noise_level: in [0, 1], how damaged the small picture may be: more repair, less likeness.
        size (or height and width): side in pixels, one of `pipe.sizes`; by default the first upsampler's.
        generator: one, or one for each picture. A seed gives the same picture whatever else is in the call.
        output_type: "pil", "np", "pt" or "latent"; see UnCLIPPipelineOutput.
        return_dict: False gives the tuple (images, image_embeds).
        callback_on_step_end: called as (pipe, step, timestep, tensors) after each step of each stage, which
            `pipe.stage` names. "latents" of the dict that it may return replaces the noised embeddings or
            pictures.
        callback_on_step_end_tensor_inputs: which of "latents" and "x0" (the present guess) the callback gets.
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
        noise_level: float = 0.0,
        upsampler_noise_level: float = 0.0,
        plain_words: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(
            clip=clip,
            prior=prior,
            prior_scheduler=prior_scheduler,
            decoder=decoder,
            decoder_scheduler=decoder_scheduler,
            upsampler_256=upsampler_256,
            upsampler_256_scheduler=upsampler_256_scheduler,
            upsampler_1024=upsampler_1024,
            upsampler_1024_scheduler=upsampler_1024_scheduler,
        )
        self.register_to_config(
            prior_num_inference_steps=prior_num_inference_steps,
            decoder_num_inference_steps=decoder_num_inference_steps,
            upsampler_num_inference_steps=upsampler_num_inference_steps,
            prior_guidance_scale=prior_guidance_scale,
            decoder_guidance_scale=decoder_guidance_scale,
            num_prior_candidates=num_prior_candidates,
            noise_level=noise_level,
            upsampler_noise_level=upsampler_noise_level,
            plain_words=plain_words,
        )
        self._stage: str | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any
    ) -> UnCLIPTextToImagePipeline:
        """Load a pipeline folder or hub repository; without a name, the model embedded in this package.

        The arguments are those of `DiffusionPipeline.from_pretrained`. Weights run in float32 unless `dtype`
        says otherwise, however small they are stored.

        Raises:
            UserError: a file is missing, cut off or does not fit.
        """
        source = locate(pretrained_model_name_or_path)
        with loading(f"model {source}"):
            pipe: UnCLIPTextToImagePipeline = super().from_pretrained(source, **kwargs)
        pipe._lexicon_file = find_lexicon(source, **kwargs)
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

    def settings(self, **given: Any) -> Settings:
        """The settings of a call: what is given and not None, and the model's defaults for the rest."""
        return Settings.of(self.config, given)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        image_embeds: Tensor | None = None,
        prior_num_inference_steps: int | None = None,
        decoder_num_inference_steps: int | None = None,
        upsampler_num_inference_steps: int | None = None,
        prior_guidance_scale: float | None = None,
        decoder_guidance_scale: float | None = None,
        num_prior_candidates: int | None = None,
        noise_level: float | None = None,
        upsampler_noise_level: float | None = None,
        plain_words: bool | None = None,
        size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Make pictures; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        arguments = locals()
        settings = self.settings(**{field.name: arguments[field.name] for field in fields(Settings)})
        request = check_request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            image_embeds=image_embeds,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            size=choose_size(list(self.sizes), size, height, width),
            embed_dim=self.clip.embed_dim,
        )
        request = replace(
            request,
            prompts=self.in_plain_words(request.prompts, plain_words),
            negatives=self.in_plain_words(request.negatives, plain_words),
        )
        watch = self._watcher(callback_on_step_end, callback_on_step_end_tensor_inputs)
        seeds = image_seeds(generator, request.count, num_images_per_prompt)
        embeds, pictures = self._generate(request, settings, seeds, watch)
        self.maybe_free_model_hooks()
        images = to_output(pictures, output_type)
        return UnCLIPPipelineOutput(images=images, image_embeds=embeds) if return_dict else (images, embeds)

    def _generate(
        self, request: Request, settings: Settings, seeds: list[ImageSeed], watch: Watch
    ) -> tuple[Tensor, Tensor]:
        """Image embeddings [B, D] and pictures [B, 3, S, S] around [-1, 1]."""
        captions = None if request.prompts is None else self.clip.encode_text(request.prompts, things=True)
        negative = (
            None if request.negatives is None else self.clip.encode_text(request.negatives, things=True)
        )
        self._warn_of_idle_negative(request, settings)
        each = request.images_per_prompt
        if request.image_embeds is not None:
            embeds = request.image_embeds.to(self.device).repeat_interleave(each, dim=0)
        else:
            assert captions is not None  # check_request asks for a prompt where there is no embedding
            embeds = self._prior(captions, negative or self.clip.encode_text([""]), seeds, settings, watch)
        captions, negative = (None if text is None else repeat(text, each) for text in (captions, negative))
        pictures = self._decode(embeds, captions, negative, seeds, settings, watch)
        for side, name in self.sizes.items():
            if name != "decoder" and side <= request.size:
                pictures = self._upsample(name, side, pictures, seeds, settings, watch)
        return embeds, pictures

    def _prior(
        self,
        text: TextEncoding,
        negative: TextEncoding,
        seeds: list[ImageSeed],
        settings: Settings,
        watch: Watch,
    ) -> Tensor:
        steps = settings.prior_num_inference_steps
        with watch("prior", steps, 1) as on_step:
            return sample_prior(
                self.prior,
                self.prior_scheduler,
                text,
                negative,
                seeds,
                num_inference_steps=steps,
                guidance_scale=settings.prior_guidance_scale,
                num_candidates=settings.num_prior_candidates,
                on_step=on_step,
            )

    def _decode(
        self,
        embeds: Tensor,
        text: TextEncoding | None,
        negative: TextEncoding | None,
        seeds: list[ImageSeed],
        settings: Settings,
        watch: Watch,
    ) -> Tensor:
        parts = groups(len(embeds), self._base_size)
        steps = settings.decoder_num_inference_steps
        with watch("decoder", steps, len(parts)) as on_step:
            pictures = [
                sample_decoder(
                    self.decoder,
                    self.decoder_scheduler,
                    embeds[part],
                    None if text is None else rows(text, part),
                    None if negative is None else rows(negative, part),
                    seeds[part],
                    num_inference_steps=steps,
                    guidance_scale=settings.decoder_guidance_scale,
                    noise_level=settings.noise_level,
                    on_step=on_step,
                )
                for part in parts
            ]
        return torch.cat(pictures)

    def _upsample(
        self, name: str, side: int, low_res: Tensor, seeds: list[ImageSeed], settings: Settings, watch: Watch
    ) -> Tensor:
        parts = groups(len(low_res), side)
        steps = settings.upsampler_num_inference_steps
        with watch(name, steps, len(parts)) as on_step:
            pictures = [
                sample_upsampler(
                    getattr(self, name),
                    getattr(self, f"{name}_scheduler"),
                    low_res[part],
                    seeds[part],
                    num_inference_steps=steps,
                    noise_level=settings.upsampler_noise_level,
                    on_step=on_step,
                )
                for part in parts
            ]
        return torch.cat(pictures)

    def _watcher(self, callback: Callable[..., Any] | None, names: Sequence[str]) -> Watch:
        """What shows a progress bar for a stage and hands its steps to the caller's callback."""
        names = getattr(
            callback, "tensor_inputs", names
        )  # diffusers' own callback objects know what they need
        if unknown := [name for name in names if name not in self._callback_tensor_inputs]:
            raise UserError(
                f"callback_on_step_end_tensor_inputs may hold {self._callback_tensor_inputs}, got {unknown}"
            )

        @contextmanager
        def watch(stage: str, steps: int, runs: int) -> Iterator[StepCallback]:
            timesteps = prepared(getattr(self, f"{stage}_scheduler"), steps).timesteps
            with self.progress_bar(total=runs * len(timesteps)) as bar:
                bar.set_description(stage)

                def on_step(
                    index: int, timestep: Tensor, tensors: dict[str, Tensor]
                ) -> dict[str, Tensor] | None:
                    bar.update()
                    if callback is None:
                        return None
                    return callback(self, index, timestep, {name: tensors[name] for name in names})

                self._stage = stage
                try:
                    yield on_step
                finally:
                    self._stage = None

        return watch

    @staticmethod
    def _warn_of_idle_negative(request: Request, settings: Settings) -> None:
        scales = [settings.decoder_guidance_scale]
        if request.image_embeds is None:
            scales.append(settings.prior_guidance_scale)
        if request.negatives is not None and all(scale == 1 for scale in scales):
            warnings.warn(
                "negative_prompt has no effect without guidance: raise decoder_guidance_scale above 1",
                stacklevel=2,
            )
