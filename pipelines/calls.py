"""What a call of any pipeline takes besides its own arguments, and what it gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypedDict, cast

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from unclip.errors import UserError

from .inputs import OUTPUT_TYPES, Settings, check_count, check_generators, choose_size
from .stages import ImageSeed, StepCallback, Watch, image_seeds


@dataclass
class UnCLIPPipelineOutput(BaseOutput):
    """Pictures, and the image embeddings [B, D] that they were decoded from; None for captions alone.

    `images` is a list of PIL pictures, an array [B, S, S, 3] in [0, 1] ("np"), a tensor [B, 3, S, S] in [0, 1] ("pt"),
    or the tensor [B, 3, S, S] around [-1, 1] as the last stage left it ("latent"). All pictures of the first input
    come first.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    image_embeds: Tensor | None


class CallOptions(TypedDict, total=False):
    """What every pipeline's call takes besides its own arguments; `UnCLIPTextToImagePipeline` explains each."""

    prior_num_inference_steps: int | None
    decoder_num_inference_steps: int | None
    upsampler_num_inference_steps: int | None
    prior_guidance_scale: float | None
    decoder_guidance_scale: float | None
    num_prior_candidates: int | None
    prior_temperature: float | None
    prior_top_p: float | None
    noise_level: float | None
    upsampler_noise_level: float | None
    prior: str | nn.Module | None
    plain_words: bool | None
    size: int | None
    height: int | None
    width: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    prior_latents: Tensor | None
    decoder_latents: Tensor | None
    upsampler_latents: Tensor | None
    output_type: str
    return_dict: bool
    callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None
    callback_on_step_end_tensor_inputs: Sequence[str]


# What diffusers' UnCLIPPipeline and UnCLIPImageVariationPipeline called otherwise.
FORMER_NAMES = {
    "super_res_num_inference_steps": "upsampler_num_inference_steps",
    "super_res_latents": "upsampler_latents",
}
LATENTS = ("prior_latents", "decoder_latents", "upsampler_latents")


@dataclass(frozen=True)
class Call:
    """The options of a call, checked; `latents` has the noise that a stage begins with, where it is given."""

    settings: Settings
    prior: Any
    size: int
    generator: torch.Generator | Sequence[torch.Generator] | None
    plain_words: bool | None
    latents: dict[str, Tensor]
    output_type: str
    return_dict: bool
    watch: Watch

    def noise(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The latents of a name, if they were given.

        Raises:
            UserError: they have another shape.
        """
        noise = self.latents.get(name)
        if noise is not None and tuple(noise.shape) != shape:
            raise UserError(f"{name} must be noise of shape {shape}, got {tuple(noise.shape)}")
        return noise


def check_call(pipe: Any, options: CallOptions, defaults: dict[str, Any]) -> Call:
    """The options of a call; `defaults`, then the pipeline's own, stand in for those that are absent or None.

    Raises:
        UserError: an unknown option, or one that is out of range.
    """
    known = CallOptions.__annotations__
    options = cast(CallOptions, {FORMER_NAMES.get(name, name): value for name, value in options.items()})
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(f"unknown argument {unknown[0]!r}: besides its own a call takes {', '.join(known)}")
    given: dict[str, Any] = {**defaults, **{k: v for k, v in options.items() if v is not None}}
    output_type = given.get("output_type", "pil")
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
    names = {field.name for field in fields(Settings)}
    return Call(
        settings=pipe.settings(**{name: value for name, value in given.items() if name in names}),
        prior=pipe.prior_of(given.get("prior")),
        size=choose_size(list(pipe.sizes), *(given.get(side) for side in ("size", "height", "width"))),
        generator=given.get("generator"),
        plain_words=given.get("plain_words"),
        latents={name: given[name] for name in LATENTS if name in given},
        output_type=output_type,
        return_dict=given.get("return_dict", True),
        watch=watcher(
            pipe,
            given.get("callback_on_step_end"),
            given.get("callback_on_step_end_tensor_inputs", ("latents",)),
        ),
    )


def warn_of_idle_negative(settings: Settings, with_prior: bool = True, stacklevel: int = 4) -> None:
    """Of a negative prompt that moves nothing, since no stage that reads it is guided; `stacklevel` is the caller's."""
    scales = [settings.decoder_guidance_scale, *([settings.prior_guidance_scale] if with_prior else [])]
    if all(scale == 1 for scale in scales):
        warnings.warn(
            "negative_prompt has no effect without guidance: raise decoder_guidance_scale above 1",
            stacklevel=stacklevel,
        )


def watcher(pipe: Any, callback: Callable[..., Any] | None, names: Sequence[str]) -> Watch:
    """What shows a progress bar for a stage of a pipeline and hands its steps to the caller's callback."""
    names = getattr(callback, "tensor_inputs", names)  # diffusers' own callback objects know what they need
    if unknown := [name for name in names if name not in pipe._callback_tensor_inputs]:
        raise UserError(
            f"callback_on_step_end_tensor_inputs may hold {pipe._callback_tensor_inputs}, got {unknown}"
        )

    @contextmanager
    def watch(stage: str, total: int) -> Iterator[StepCallback]:
        with pipe.progress_bar(total=total) as bar:
            bar.set_description(stage)

            def on_step(index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
                bar.update()
                if callback is None:
                    return None
                return callback(pipe, index, timestep, {name: tensors[name] for name in names})

            pipe._stage = stage
            try:
                yield on_step
            finally:
                pipe._stage = None

    return watch


def seeds_of(call: Call, inputs: int, each: int) -> list[ImageSeed]:
    """The seeds of a call's pictures, `each` of every input.

    Raises:
        UserError: `each` is no number of pictures, or the generators are not one or one for each picture.
    """
    check_count(each, "num_images_per_prompt")
    check_generators(call.generator, inputs * each)
    return image_seeds(call.generator, inputs, each)
