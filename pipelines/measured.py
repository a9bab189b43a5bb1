"""A pipeline as evaluation sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.eval.model import Model

from .loading import choose_device
from .priors import sample_prior
from .stages import image_seeds
from .text_to_image import UnCLIPTextToImagePipeline


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
    """A pipeline as evaluation sees it; `given` overrides the model's own settings where it is not None."""
    pipe.set_progress_bar_config(disable=True)
    settings = pipe.settings(**given)
    config: Any = pipe.config
    lexicon = pipe.lexicon.fingerprint() if pipe.lexicon and config.plain_words else None

    def generators(seeds: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def encode_image(pictures: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(pipe.device)
        return pipe.clip.encode_image(pixels.float() / 127.5 - 1)

    @torch.no_grad()
    def make_embeds(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        # As a call of the pipeline reads them.
        texts = [each.text for each in pipe.understand(prompts)] if lexicon else list(prompts)
        return sample_prior(
            pipe.prior,
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
        )
        return made.images

    return Model(
        encode_image=encode_image,
        encode_text=lambda texts: pipe.clip.encode_text(list(texts)).embeds,
        make_embeds=make_embeds,
        generate=lambda prompts, seeds: decode(None, prompts, seeds),
        decode=decode,
        fingerprint=_fingerprint(pipe),
        clip_fingerprint=pipe.clip.fingerprint(),
        settings={**asdict(settings), "lexicon": lexicon},
    )


def _fingerprint(pipe: UnCLIPTextToImagePipeline) -> str:
    """Of all weights and scheduler settings of a pipeline, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        digest.update(name.encode())
        if isinstance(component, nn.Module):
            for tensor in component.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        elif component is not None and hasattr(component, "config"):
            digest.update(json.dumps(dict(component.config), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
