"""A pipeline as evaluation sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.eval.model import Manipulator, Model
from unclip.models import Decoder
from unclip.models.saved import load_network

from .loading import choose_device
from .priors import sample_prior
from .stages import generators, image_seeds
from .text_diff import UnCLIPTextDiffPipeline
from .text_to_image import UnCLIPTextToImagePipeline
from .variation import UnCLIPVariationPipeline


def load_model(
    model: str | None, size: int, settings: dict[str, Any], device: str, dtype: torch.dtype = torch.float32
) -> Model:
    """A model on its device, whose pictures have `size` pixels; all that may be wrong is said here."""
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(choose_device(device))
    if size not in pipe.sizes:
        offered = ", ".join(str(side) for side in pipe.sizes)
        raise UserError(f"size {size} is not offered by this model; choose one of: {offered}")
    adapter = as_model(pipe, size, settings)  # its fingerprint is that of the weights as they are stored
    if dtype == torch.float32:
        return adapter
    pipe.to(dtype)
    return replace(adapter, settings={**adapter.settings, "dtype": str(dtype).removeprefix("torch.")})


def as_model(pipe: UnCLIPTextToImagePipeline, size: int, given: dict[str, Any]) -> Model:
    """A pipeline as evaluation sees it; `given` overrides the model's own settings where it is not None.

    Besides settings it may name a `prior` and ask for `captions_only`, as a call of the pipeline does.
    """
    pipe.set_progress_bar_config(disable=True)
    given = {name: value for name, value in given.items() if value is not None}
    other = {name: given.pop(name) for name in ("prior", "captions_only") if name in given}
    settings = pipe.settings(**given)
    config: Any = pipe.config
    lexicon = pipe.lexicon.fingerprint() if pipe.lexicon and config.plain_words else None
    prior = pipe.prior_of(other.get("prior"))

    @torch.no_grad()
    def make_embeds(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        # As a call of the pipeline reads them.
        texts = [each.text for each in pipe.understand(prompts)] if lexicon else list(prompts)
        return sample_prior(
            prior,
            pipe.prior_scheduler,
            pipe.clip.encode_text(texts, things=True),
            pipe.clip.encode_text([""]),
            image_seeds(generators(seeds), len(prompts), 1),
            settings,
        )

    def decode(
        image_embeds: Tensor | None, prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        made: Any = pipe(
            list(prompts),
            image_embeds=image_embeds,
            size=size,
            generator=generators(seeds),
            **asdict(settings),
            **(other if image_embeds is None else {}),
        )
        return made.images

    return Model(
        encode_image=lambda pictures: pipe.clip.encode_image(pixels(pictures, pipe)),
        encode_text=lambda texts: pipe.clip.encode_text(list(texts)).embeds,
        make_embeds=make_embeds,
        generate=lambda prompts, seeds: decode(None, prompts, seeds),
        decode=decode,
        fingerprint=_fingerprint(pipe, prior),
        clip_fingerprint=pipe.clip.fingerprint(),
        settings={
            **asdict(settings),
            "lexicon": lexicon,
            **{name: value for name, value in other.items() if isinstance(value, (str, bool))},
        },
    )


def pixels(pictures: np.ndarray, pipe: Any) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in [-1, 1] on the pipeline's device."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(pipe.device).float() / 127.5 - 1


# Other than the model's own, for its diffusion prior.
PRIOR_SCHEDULERS = {"dpm-solver++": DPMSolverMultistepScheduler}


class Variants:
    """Models that differ from one pipeline in a prior, a decoder or settings, to be compared.

    Args:
        pipe: the pipeline. size: of the pictures, in pixels.
        decoders: name -> folder of another decoder, e.g. the output of `unclip train decoder`.
    """

    def __init__(
        self, pipe: UnCLIPTextToImagePipeline, size: int, decoders: Mapping[str, str | Path] | None = None
    ) -> None:
        self.pipe, self.size, self.pipes = pipe, size, {}
        own_config: Any = pipe.decoder.config
        for name, path in (decoders or {}).items():
            decoder: Any = load_network(Decoder, path)
            for key in ("embed_dim", "token_dim", "sample_size"):
                if (own := decoder.config[key]) != (wanted := own_config[key]):
                    raise UserError(
                        f"the decoder in {path} has {key} {own}, the model's own {wanted}: train it with the "
                        "model's CLIP"
                    )
            self.pipes[name] = UnCLIPTextToImagePipeline.from_pipe(pipe, decoder=decoder.to(pipe.device))

    @property
    def priors(self) -> list[str]:
        """The names of its priors."""
        return self.pipe.prior_names

    def __call__(self, decoder: str | None = None, prior_scheduler: str | None = None, **given: Any) -> Model:
        """A model with `given` settings, `prior` and `captions_only`.

        `decoder` is one of those that were named, `prior_scheduler` one of PRIOR_SCHEDULERS.
        """
        pipe = self.pipe if decoder is None else self.pipes[decoder]
        if prior_scheduler is None:
            return as_model(pipe, self.size, given)
        own: Any = pipe.prior_scheduler
        scheduler = PRIOR_SCHEDULERS[prior_scheduler].from_config(own.config)
        model = as_model(type(pipe).from_pipe(pipe, prior_scheduler=scheduler), self.size, given)
        return replace(model, settings={**model.settings, "prior_scheduler": prior_scheduler})


def as_manipulator(pipe: UnCLIPTextToImagePipeline, size: int, settings: dict[str, Any]) -> Manipulator:
    """A pipeline's manipulations as evaluation sees them."""
    pipe.set_progress_bar_config(disable=True)
    vary = UnCLIPVariationPipeline.from_pipe(pipe)
    diff = UnCLIPTextDiffPipeline.from_pipe(pipe)

    def variations(pictures: np.ndarray, seeds: Sequence[int], **given: Any) -> list[Image.Image]:
        made = vary(list(pictures), size=size, generator=generators(seeds), **{**settings, **given})
        return made.images

    def diffs(
        pictures: np.ndarray,
        source: Sequence[str | None],
        target: Sequence[str],
        seeds: Sequence[int],
        **given: Any,
    ) -> list[Image.Image]:
        images = []
        for picture, before, after, seed in zip(pictures, source, target, seeds, strict=True):
            made = diff(
                picture,
                after,
                source_prompt=before,
                size=size,
                generator=generators([seed]),
                **{**settings, **given},
            )
            images += made.images
        return images

    return Manipulator(
        vary=variations, diff=diffs, fingerprint=_fingerprint(pipe, pipe.prior), settings=settings
    )


def _fingerprint(pipe: UnCLIPTextToImagePipeline, prior: Any) -> str:
    """Of all weights and scheduler settings of a pipeline with a prior, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted({**pipe.components, "prior": prior}.items()):
        digest.update(name.encode())
        if isinstance(component, nn.Module):
            for tensor in component.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        elif component is not None and hasattr(component, "config"):
            digest.update(json.dumps(dict(component.config), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
