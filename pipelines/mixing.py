"""Mix and match: a prior of one model and the decoder of another, if both were trained on one CLIP (unCLIP §2).

What passes between the two is z_i, so the decoder may belong to any pipeline that takes CLIP image embeddings: this
package's, and of diffusers those of Stable unCLIP, of Kandinsky 2.2 and StableDiffusionImageVariationPipeline. Theirs
want embeddings of the length that CLIP's projection gives. Stable unCLIP scales them by its `image_normalizer`, adds
noise of its `noise_level` and tells the U-Net how much; zeros in the place of both are its unconditional branch, and
zeros that of image variations. Kandinsky's decoders take a negative embedding for theirs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    StableDiffusionImageVariationPipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
)
from torch import Tensor, nn

from unclip.clip import TransformersCLIP
from unclip.clip.frozen import fingerprint
from unclip.errors import UserError

from .base import UnCLIPStages
from .inputs import negative_list, prompt_list
from .prior_alone import PRIOR_OPTIONS, UnCLIPPriorPipeline, UnCLIPPriorPipelineOutput

# Where pipelines of diffusers keep the towers of the CLIP whose image embeddings they take.
TOWERS = {
    "image": ("image_encoder", "prior_image_encoder"),
    "text": ("prior_text_encoder",),
}
# Configurations of U-Nets that take image embeddings of `encoder_hid_dim` numbers: Kandinsky 2.2.
IMAGE_PROJECTION = "image_proj"


@dataclass(frozen=True)
class KnownCLIP:
    """What a pipeline tells of its CLIP.

    Attributes:
        name: for people.
        embed_dim: of its embeddings; None if it cannot be known.
        towers: by kind, those whose numbers can be compared.
        unit_norm: whether its embeddings are given with a length of 1.
    """

    name: str
    embed_dim: int | None
    towers: dict[str, nn.Module]
    unit_norm: bool = False

    def __str__(self) -> str:
        size = "unknown size" if self.embed_dim is None else f"{self.embed_dim} numbers"
        return f"{self.name} (embeddings of {size})"


def check_same_clip(prior: Any, decoder: Any) -> None:
    """Look whether the embeddings of one pipeline's prior are those that another one's decoder was trained on.

    Warns where that cannot be known, since the decoder brings no CLIP along, or where CLIP's own length is missing.

    Raises:
        UserError: the two belong to different CLIPs, both of which it names.
    """
    own, other = clip_of(prior), clip_of(decoder)
    differ = (
        f"the prior and the decoder belong to different CLIPs: the prior's is {own}, the decoder's {other}"
    )
    remedy = "take a prior that was trained on the decoder's CLIP"
    if None not in (own.embed_dim, other.embed_dim) and own.embed_dim != other.embed_dim:
        raise UserError(f"{differ}; {remedy}")
    if not isinstance(decoder, UnCLIPStages) and own.unit_norm:
        warnings.warn(
            f"the prior's CLIP, {own}, gives embeddings of length 1, but {type(decoder).__name__} is made for those of "
            "CLIP's own length",
            stacklevel=2,
        )
    if shared := [kind for kind in own.towers if kind in other.towers]:
        pair = (own.towers[shared[0]], other.towers[shared[0]])
        prints = [fingerprint(None, tower.state_dict()) for tower in pair] if pair[0] is not pair[1] else []
        if len({*prints}) > 1:
            raise UserError(f"{differ}; {shared[0]} encoders {prints[0]} and {prints[1]}; {remedy}")
        return
    warnings.warn(
        f"whether the prior and the decoder belong to one CLIP cannot be known, since {type(decoder).__name__} brings "
        f"none to compare: the prior's is {own}, the decoder's {other}",
        stacklevel=2,
    )


def clip_of(pipeline: Any) -> KnownCLIP:
    """The CLIP whose image embeddings a pipeline of this package or of diffusers makes or takes."""
    if isinstance(pipeline, UnCLIPStages):
        return _own_clip(pipeline.clip)
    parts = pipeline.components
    towers = {
        kind: parts[name] for kind, names in TOWERS.items() for name in names if parts.get(name) is not None
    }
    source = pipeline.config.get("_name_or_path") or type(pipeline).__name__
    name = _name_of(*towers.values()) or f"that of {source}, which it does not bring along"
    return KnownCLIP(name, _size_taken(parts, towers), _comparable(towers))


def decoder_arguments(
    decoder: Any,
    made: UnCLIPPriorPipelineOutput,
    prompts: Sequence[str],
    negatives: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What a call of a decoder's pipeline takes for the B embeddings that a prior made: `decoder(**arguments)`.

    Args:
        prompts, negatives: B captions, for decoders that take them too.

    Raises:
        UserError: the pipeline takes no image embeddings, or a negative one that there is not.
    """
    takes = inspect.signature(decoder.__call__).parameters
    if "image_embeds" not in takes:
        raise UserError(
            f"{type(decoder).__name__} takes no image embeddings: give a pipeline that does, such as "
            "StableUnCLIPImg2ImgPipeline or KandinskyV22Pipeline"
        )
    given: dict[str, Any] = {
        "image_embeds": made.image_embeds,
        "negative_image_embeds": made.negative_image_embeds,
    }
    if "negative_image_embeds" not in takes:
        del given["negative_image_embeds"]
    elif made.negative_image_embeds is None:
        raise UserError(
            f"{type(decoder).__name__} takes a negative embedding, and the prior's CLIP has no image encoder to make "
            "one of an empty picture: give the prior a negative_prompt, such as 'low quality'"
        )
    if (unet := getattr(decoder, "unet", None)) is not None:
        given = {name: embeds.to(decoder.device, unet.dtype) for name, embeds in given.items()}
    if "prompt" in takes:
        given["prompt"] = list(prompts)
    if "negative_prompt" in takes and negatives is not None:
        given["negative_prompt"] = list(negatives)
    return given


def taking_embeds(decoder: Any) -> Any:
    """A pipeline of diffusers as one that takes `image_embeds`, on the same parts; one that does already as it is."""
    made = decoder
    if isinstance(decoder, StableUnCLIPPipeline):  # asks its own prior
        shared = (
            "image_normalizer",
            "image_noising_scheduler",
            "tokenizer",
            "text_encoder",
            "unet",
            "scheduler",
            "vae",
        )
        made = StableUnCLIPImg2ImgPipeline(
            feature_extractor=None,
            image_encoder=decoder.image_normalizer,  # which is asked for its dtype alone where embeddings are given
            **{name: getattr(decoder, name) for name in shared},
        )
    elif isinstance(decoder, StableDiffusionImageVariationPipeline):  # asks its own image encoder
        checked = decoder.config.requires_safety_checker
        made = _VariationsOfEmbeds(**decoder.components, requires_safety_checker=checked)
    if made is not decoder:
        made.set_progress_bar_config(**getattr(decoder, "_progress_bar_config", {}))
    return made


class _VariationsOfEmbeds(StableDiffusionImageVariationPipeline):
    """Variations of a picture of which there is but its embedding."""

    def __call__(self, image_embeds: Tensor, **options: Any) -> Any:
        """As of the other pipeline, with image_embeds [B, D] in the place of its image."""
        return super().__call__(image_embeds, **options)

    def _encode_image(self, image: Tensor, device: Any, each: int, guided: bool) -> Tensor:
        """The context of the U-Net, [B, 1, D]; under guidance zeros first."""
        context = image.to(device).repeat_interleave(each, dim=0)[:, None]
        return torch.cat([torch.zeros_like(context), context]) if guided else context


class UnCLIPMix:
    """A prior and the decoder of another pipeline as one text-to-image pipeline.

    A call takes prompt, negative_prompt, num_images_per_prompt and generator, and the options of both pipelines: those
    of the prior under the names that they have everywhere here (`prior_guidance_scale`, `num_prior_candidates`, …), all
    others are the decoder's.

    Args:
        prior: an UnCLIPPriorPipeline, or any other pipeline of this package, for its prior.
        decoder: a pipeline that takes image embeddings.

    Raises:
        UserError: they belong to different CLIPs.
    """

    def __init__(self, prior: Any, decoder: Any) -> None:
        check_same_clip(prior, decoder)
        self.prior = prior if isinstance(prior, UnCLIPPriorPipeline) else UnCLIPPriorPipeline.from_pipe(prior)
        self.decoder = taking_embeds(decoder)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **options: Any,
    ) -> Any:
        """Make pictures. Returns what the decoder's pipeline returns.

        Raises:
            UserError: an argument of the prior is wrong.
        """
        own = {name: options.pop(name) for name in PRIOR_OPTIONS if name in options}
        made = self.prior(prompt, negative_prompt, num_images_per_prompt, generator=generator, **own)
        prompts = prompt_list(prompt)
        negatives = None if negative_prompt is None else negative_list(negative_prompt, len(prompts))
        each = range(num_images_per_prompt)
        prompts = [text for text in prompts for _ in each]
        negatives = None if negatives is None else [text for text in negatives for _ in each]
        given = decoder_arguments(self.decoder, made, prompts, negatives)
        return self.decoder(**given, generator=generator, **options)


def _own_clip(clip: Any) -> KnownCLIP:
    if isinstance(clip, TransformersCLIP):
        towers = {"text": clip.text_encoder}
        if clip.image_encoder is not None:
            towers = {"image": clip.image_encoder, **towers}
        return KnownCLIP(_name_of(*towers.values()), clip.embed_dim, _comparable(towers))
    vision = clip.config.architecture["vision_cfg"]
    sizes = ", ".join(f"{key} {vision[key]}" for key in ("layers", "width", "patch_size") if key in vision)
    name = f"a {type(clip).__name__}, {sizes}"
    return KnownCLIP(name, clip.embed_dim, _comparable({"both": clip.model}), clip.unit_norm)


def _comparable(towers: dict[str, Any]) -> dict[str, nn.Module]:
    """Those that are in memory, in a precision from which half precision follows."""
    first = {kind: next(tower.parameters()) for kind, tower in towers.items()}
    return {
        kind: tower
        for kind, tower in towers.items()
        if first[kind].device.type != "meta" and first[kind].dtype != torch.bfloat16
    }


def _name_of(*towers: Any) -> str:
    """Where towers come from, and their sizes."""
    told = []
    for tower in towers:
        config = tower.config
        sizes = f"{type(tower).__name__} of {config.num_hidden_layers} layers, width {config.hidden_size}"
        told.append(", ".join(filter(None, (getattr(config, "_name_or_path", ""), sizes))))
    return " and ".join(told)


def _size_taken(parts: dict[str, Any], towers: dict[str, Any]) -> int | None:
    """Of the image embeddings that a pipeline of diffusers takes, read off its components."""
    if normalizer := parts.get("image_normalizer"):
        return int(normalizer.config.embedding_dim)
    unet = parts.get("unet")
    if unet is not None and unet.config.get("encoder_hid_dim_type") == IMAGE_PROJECTION:
        return int(unet.config.encoder_hid_dim)
    return next((int(tower.config.projection_dim) for tower in towers.values()), None)
