"""What a call of a pipeline may be given: everything is checked here, before anything slow is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.clip import TextEncoding
from unclip.clip.things import PLACES
from unclip.errors import UserError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers that shape a picture, besides prompt and seed; their defaults are in the model's config."""

    prior_num_inference_steps: int
    decoder_num_inference_steps: int
    upsampler_num_inference_steps: int
    prior_guidance_scale: float
    decoder_guidance_scale: float
    num_prior_candidates: int
    prior_temperature: float
    prior_top_p: float
    noise_level: float
    upsampler_noise_level: float

    @classmethod
    def of(cls, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
        """What is given and not None, else the default.

        Raises:
            UserError: an unknown name or a value out of range.
        """
        names = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise UserError(f"unknown setting {unknown[0]!r}: choose from {', '.join(names)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{name: chosen.get(name, defaults[name]) for name in names})

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(f"{name} must be a number, got {value!r}")
            if name.startswith("num_") or name.endswith("_steps"):
                if not isinstance(value, int) or value < 1:
                    raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
                continue
            if name.endswith(("_scale", "_temperature")):
                if value < 0:
                    meaning = "no guidance" if name.endswith("_scale") else "as learned"
                    raise UserError(f"{name} must be 0 or more (1 = {meaning}), got {value!r}")
            elif name == "prior_top_p":
                if not 0 < value <= 1:
                    raise UserError(f"{name} must be more than 0 and at most 1 (all), got {value!r}")
            elif not 0 <= value <= 1:
                raise UserError(f"{name} must lie between 0 (clean) and 1 (noise only), got {value!r}")
            # Saved with the model, where diffusers checks the type.
            object.__setattr__(self, name, float(value))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked call: P captions or embeddings, each to be pictured `images_per_prompt` times."""

    prompts: list[str] | None
    negatives: list[str] | None  # P of them
    image_embeds: Tensor | None  # [P, D]
    images_per_prompt: int

    @property
    def count(self) -> int:
        """P."""
        if self.prompts is not None:
            return len(self.prompts)
        assert self.image_embeds is not None
        return len(self.image_embeds)


def check_request(
    *,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    image_embeds: Tensor | None,
    num_images_per_prompt: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    embed_dim: int,
    unit_norm: bool = True,
) -> Request:
    """Check all that a caller gives besides settings.

    Raises:
        UserError: in one line, what was expected, what came and the remedy.
    """
    if prompt is None and image_embeds is None:
        raise UserError("nothing to draw: give prompt, image_embeds or both")
    check_count(num_images_per_prompt, "num_images_per_prompt")
    prompts = None if prompt is None else prompt_list(prompt)
    if image_embeds is not None:
        count = None if prompts is None else len(prompts)
        image_embeds = check_embeds(image_embeds, embed_dim, count, unit_norm)
    request = Request(
        prompts=prompts,
        negatives=None,
        image_embeds=image_embeds,
        images_per_prompt=num_images_per_prompt,
    )
    check_generators(generator, request.count * num_images_per_prompt)
    if negative_prompt is None:
        return request
    return Request(**{**vars(request), "negatives": negative_list(negative_prompt, request.count)})


def check_encoded(prompt: Any, output: Sequence[Tensor] | None, mask: Tensor | None) -> TextEncoding | None:
    """Captions that came as CLIP gave them: (embeddings [P, D], token states [P, L, C]) and a mask [P, L].

    Raises:
        UserError: one is missing, there are prompts besides, or the shapes do not fit.
    """
    if output is None and mask is None:
        return None
    if output is None or mask is None or prompt is not None:
        raise UserError("text_model_output and text_attention_mask go together, and in place of prompt")
    embeds, tokens = output[0], output[1]
    if embeds.ndim != 2 or tokens.shape[:2] != mask.shape or len(embeds) != len(tokens):
        raise UserError(
            "text_model_output must be embeddings [P, D] and token states [P, L, C] with a mask [P, L], got "
            f"{tuple(embeds.shape)}, {tuple(tokens.shape)} and {tuple(mask.shape)}"
        )
    mask = mask.bool()
    length = max(1, int(mask.sum(1).max()))
    if mask[:, length:].any():
        raise UserError(
            "text_attention_mask must be True for the first tokens of each caption: pad behind them"
        )
    things = embeds.new_zeros(len(embeds), len(PLACES), embeds.shape[1])
    return TextEncoding(embeds, tokens[:, :length] * mask[:, :length, None], mask[:, :length], things)


def prompt_list(prompt: str | Sequence[str]) -> list[str]:
    """One or several captions as a list; none of them empty."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise UserError(f"prompt must be a string or a list of strings, got {type(prompt).__name__}")
    if not prompts:
        raise UserError("prompt is an empty list: give at least one caption")
    for each in prompts:
        if not isinstance(each, str):
            raise UserError(
                f"prompt must be a string or a list of strings, got one of type {type(each).__name__}"
            )
        if not each.strip():
            raise UserError("prompt is empty: say what to draw, e.g. 'a red apple'")
    return list(prompts)


def choose_size(sizes: Sequence[int], size: int | None, height: int | None, width: int | None) -> int:
    """The side of the pictures; by default that of the first upsampler, or the decoder's own.

    Raises:
        UserError: not square, contradictory, or not among `sizes`.
    """
    given = [value for value in (size, height, width) if value is not None]
    if not given:
        return sizes[min(1, len(sizes) - 1)]
    offered = ", ".join(map(str, sizes))
    if not all(isinstance(value, int) for value in given):
        raise UserError(
            f"size, height and width are whole numbers of pixels, got {given[0]!r}; choose of: {offered}"
        )
    wanted = set(given)
    if len(wanted) > 1:
        raise UserError(
            f"size, height and width must agree, got {size}/{height}/{width}: pictures are square, {offered}"
        )
    (side,) = wanted
    if side not in sizes:
        raise UserError(f"size {side!r} is not offered: this model makes {offered}")
    return int(side)


def negative_list(negative: str | Sequence[str], count: int) -> list[str]:
    """One caption for each of `count`; "" stands for none."""
    negatives = [negative] * count if isinstance(negative, str) else negative
    if not isinstance(negatives, (list, tuple)) or not all(isinstance(each, str) for each in negatives):
        raise UserError(
            f"negative_prompt must be a string or a list of strings, got {type(negative).__name__}"
        )
    if len(negatives) != count:
        raise UserError(
            f"got {len(negatives)} negative prompts for {count} prompts: give one for each, or one string"
        )
    return list(negatives)


def check_embeds(embeds: Tensor, embed_dim: int, prompts: int | None, unit_norm: bool = True) -> Tensor:
    """Image embeddings [P, D] from those given, [P, D] or [1, D]; P follows from the prompts.

    Those of a CLIP whose embeddings have unit norm may come in any; those of others are left as they are.

    Raises:
        UserError: another shape, or a row without a direction.
    """
    if not isinstance(embeds, Tensor) or embeds.ndim != 2 or embeds.shape[1] != embed_dim or len(embeds) == 0:
        got = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise UserError(f"image_embeds must be a tensor [N, {embed_dim}], got {got}")
    if prompts is not None and len(embeds) not in (1, prompts):
        raise UserError(
            f"got {len(embeds)} image_embeds for {prompts} prompts: give one for each, or a single one"
        )
    embeds = embeds.detach().float()
    norms = embeds.norm(dim=-1)
    if not bool((norms.isfinite() & (norms > 0)).all()):
        raise UserError(
            "image_embeds holds a row that is zero or not finite: give directions in CLIP's space"
        )
    embeds = F.normalize(embeds, dim=-1) if unit_norm else embeds
    return embeds.expand(prompts or len(embeds), -1)


def check_generators(generator: Any, pictures: int) -> None:
    """Raise UserError unless there is one generator, one for each of so many pictures, or none."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, (list, tuple)) or not all(
        isinstance(each, torch.Generator) for each in generator
    ):
        raise UserError(
            f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}: "
            "use torch.Generator().manual_seed(0)"
        )
    if len(generator) != pictures:
        raise UserError(
            f"got {len(generator)} generators for {pictures} pictures: give one for each, or a single one"
        )


def check_count(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def check_share(value: Any, name: str, most: float = 1.0) -> float:
    """A number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise UserError(f"{name} must lie between 0 and {most:g}, got {value!r}")
    return float(value)


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """One of a few words."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)
