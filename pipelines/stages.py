"""What the stages of unCLIP are made of: seeds, batches of captions, the decoder under guidance, the upsampler.

Pipelines compose them; none of them knows a pipeline. A network says in its config which schedule and
prediction type it was trained with, so any of diffusers' schedulers samples any of them.

Shapes: B pictures, P captions, D embedding size, S side of the decoder's picture, f factor of an upsampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor

from unclip.clip import TextEncoding
from unclip.diffusion import (
    Denoiser,
    Guided,
    Relay,
    classifier_free,
    denoise,
    initial_noise,
    make_schedule,
    prepared,
)
from unclip.errors import UserError
from unclip.models import Decoder, KarloDecoder, KarloUpsampler, Upsampler

StepCallback = Callable[[int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]
# Called with a stage and the number of its steps; gives what is to be called after each step.
Watch = Callable[[str, int], AbstractContextManager["StepCallback | None"]]

# Pictures are made in groups of at most this many pixels: at 1024 px one at a time, at 64 px 256 of them.
PIXELS_AT_ONCE = 1024 * 1024


def unwatched(stage: str, steps: int) -> AbstractContextManager[None]:
    """Nobody looks."""
    return nullcontext()


@dataclass(frozen=True)
class ImageSeed:
    """What all chance of one picture comes from, on every device and in every batch."""

    base: int
    index: int

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A generator of its own for each purpose, so that no stage shifts the noise of another."""
        digest = hashlib.sha256(repr((self.base, self.index, *purpose)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class SharedSeed(ImageSeed):
    """Chance as diffusers' pipelines have it: all stages draw from the caller's generator, one after the other."""

    source: torch.Generator

    def generator(self, *purpose: str | int) -> torch.Generator:
        """The caller's own."""
        return self.source


def image_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, prompts: int, images_per_prompt: int
) -> list[ImageSeed]:
    """The seeds of all pictures of a call, those of the first prompt first.

    One generator gives every prompt the same pictures that it would get alone: the k-th of each depends on the
    generator and k only. A list has one for each picture. Without a generator the global one gives each
    picture a seed of its own.
    """
    if generator is None:
        return [ImageSeed(_draw(None), 0) for _ in range(prompts * images_per_prompt)]
    if isinstance(generator, torch.Generator):
        base = _draw(generator)
        return [ImageSeed(base, k) for _ in range(prompts) for k in range(images_per_prompt)]
    return [ImageSeed(_draw(each), 0) for each in generator]


def shared_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, pictures: int
) -> list[ImageSeed]:
    """Seeds of pictures that draw from one generator in turn, or each from its own of a list; None is torch's own."""
    source = torch.default_generator if generator is None else generator
    sources = [source] * pictures if isinstance(source, torch.Generator) else source
    return [SharedSeed(0, k, each) for k, each in enumerate(sources)]


def _draw(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def groups(count: int, side: int) -> list[slice]:
    """Slices of `count` pictures of `side` pixels, no group larger than PIXELS_AT_ONCE."""
    size = max(1, PIXELS_AT_ONCE // side**2)
    return [slice(start, start + size) for start in range(0, count, size)]


def rows(encoding: TextEncoding, which: slice) -> TextEncoding:
    """Some rows of an encoding."""
    return TextEncoding(*(tensor[which] for tensor in encoding))


def repeat(encoding: TextEncoding, times: int) -> TextEncoding:
    """Each row `times` times in succession."""
    return TextEncoding(*(tensor.repeat_interleave(times, dim=0) for tensor in encoding))


def cut(encoding: TextEncoding, length: int) -> TextEncoding:
    """At most the first `length` tokens, as in training: CLIP may read more than a network was built for."""
    return encoding._replace(tokens=encoding.tokens[:, :length], mask=encoding.mask[:, :length])


@singledispatch
def denoiser_of(network: Any) -> Denoiser | Relay:
    """The denoiser that a network's config describes."""
    return described_by(network.config, network)


@denoiser_of.register
def _(network: KarloUpsampler) -> Relay:
    ask: Any = network
    first, last = (described_by(network.config, partial(ask, last=last)) for last in (False, True))
    return Relay(first, last)


def described_by(config: Any, network: Callable[..., Tensor]) -> Denoiser:
    """A network as a denoiser of the kind that a config describes."""
    schedule = make_schedule(config.schedule)
    return Denoiser(network, schedule, config.prediction_type, config.get("learned_variance", False))


def steps_of(scheduler: Any, num_inference_steps: int) -> int:
    """How often the network is asked."""
    return len(prepared(scheduler, num_inference_steps).timesteps)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def guided(network: Any, scale: float, uncond: dict[str, Tensor]) -> Denoiser | Relay | Guided:
    """A network's denoiser under classifier-free guidance; of scale 1 without."""
    denoiser: Any = denoiser_of(network)
    return denoiser if scale == 1 else Guided(denoiser, classifier_free(scale), uncond)


Branches = tuple[dict[str, Tensor], dict[str, Tensor]]


def guided_decoder(
    decoder: Any,
    image_embeds: Tensor | None,
    text: TextEncoding | None,
    negative: TextEncoding | None,
    seeds: Sequence[ImageSeed],
    *,
    guidance_scale: float,
    noise_level: float = 0.0,
) -> tuple[Any, dict[str, Tensor]]:
    """The decoder as a denoiser, and its conditions; the unconditional branch has neither embedding nor caption.

    Args:
        image_embeds: [B, D] of unit norm; None for none in either branch: text to image without a prior, as GLIDE
            does it (2112.10741).
        text: of the captions, B rows; None for none.
        negative: captions of the unconditional branch, B rows; None for none.
        noise_level: in [0, 1], how much noise is mixed into the embeddings first: more of it, more freedom.
    """
    cond, uncond = branches(decoder, image_embeds, text, negative, seeds, noise_level)
    return guided(decoder, guidance_scale, uncond), cond


@singledispatch
def branches(
    decoder: Any,
    image_embeds: Tensor | None,
    text: TextEncoding | None,
    negative: TextEncoding | None,
    seeds: Sequence[ImageSeed],
    noise_level: float,
) -> Branches:
    """The conditions of both branches, of the second what differs; the arguments are those of `guided_decoder`."""
    raise UserError(f"{type(decoder).__name__} is no decoder: give a Decoder or a KarloDecoder")


@branches.register
def _(
    decoder: KarloDecoder,
    image_embeds: Tensor | None,
    text: TextEncoding,
    negative: TextEncoding,
    seeds: Sequence[ImageSeed],
    noise_level: float,
) -> Branches:
    z = None if image_embeds is None else image_embeds.to(decoder.device)
    return decoder.conditions(z, text), decoder.conditions(None, negative)


@branches.register
def _(
    decoder: Decoder,
    image_embeds: Tensor | None,
    text: TextEncoding | None,
    negative: TextEncoding | None,
    seeds: Sequence[ImageSeed],
    noise_level: float,
) -> Branches:
    config: Any = decoder.config
    device: Any = decoder.device
    B, D = len(seeds), config.embed_dim
    level = torch.full((B,), noise_level, device=device)
    noise = initial_noise((B, D), [seed.generator("noise_level") for seed in seeds], device)
    keep = torch.zeros(B, dtype=torch.bool, device=device)
    z = torch.zeros(B, D, device=device) if image_embeds is None else image_embeds.to(device)

    def caption(encoding: TextEncoding | None) -> dict[str, Tensor]:
        if encoding is None:  # the decoder puts its null caption there
            nothing = torch.zeros(B, 1, config.token_dim, device=device)
            return {"text_tokens": nothing, "text_mask": ~keep[:, None], "drop_text": ~keep}
        encoding = cut(encoding, config.max_text_tokens)
        return {"text_tokens": encoding.tokens, "text_mask": encoding.mask, "drop_text": keep}

    noised, drop_image = decoder.noise_image_embeds(z, level, noise), keep | (image_embeds is None)
    cond = {"image_embeds": noised, "noise_level": level, "drop_image": drop_image, **caption(text)}
    return cond, {"drop_image": ~keep, **caption(negative)}


def decoder_noise(
    decoder: Any, seeds: Sequence[ImageSeed], noise: Tensor | None = None
) -> tuple[Tensor, list[torch.Generator]]:
    """x_T [B, 3, S, S] of pictures, drawn unless given, and the generators of the noise that is added from there on."""
    generators = [seed.generator("decoder") for seed in seeds]
    shape = (len(seeds), 3, decoder.sample_size, decoder.sample_size)
    return drawn(noise, shape, generators, decoder.device), generators


def drawn(
    noise: Tensor | None, shape: tuple[int, ...], generators: list[torch.Generator], device: Any
) -> Tensor:
    """Noise of a shape: what is given, else drawn."""
    return initial_noise(shape, generators, device) if noise is None else noise.to(device)


def sample_upsampler(
    upsampler: Upsampler | KarloUpsampler,
    scheduler: Any,
    low_res: Tensor,
    seeds: Sequence[ImageSeed],
    *,
    num_inference_steps: int,
    noise_level: float = 0.0,
    noise: Tensor | None = None,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Enlarge pictures [B, 3, H, W] in [-1, 1] to [B, 3, f·H, f·W] (unCLIP §2.1).

    `noise_level` in [0, 1] tells the network how damaged the small pictures may be; nothing is added to them.
    """
    B, _, H, W = low_res.shape
    f = upsampler.factor
    device: Any = upsampler.device
    low_res = low_res.to(device).clamp(-1, 1)
    # The size keeps two upsamplers that run one after the other from drawing the same noise.
    generators = [seed.generator("upsampler", f * H) for seed in seeds]
    return denoise(
        denoiser_of(upsampler),
        scheduler,
        drawn(noise, (B, 3, f * H, f * W), generators, device),
        cond={"low_res": low_res, "noise_level": low_res.new_full((B,), noise_level)},
        num_inference_steps=num_inference_steps,
        generator=generators,
        clip_range=1.0,
        callback_on_step_end=on_step,
    )
