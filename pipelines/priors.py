"""Any prior in the place of any other: captions -> candidates of z_i, of which the one nearest to its caption is kept.

How a prior draws depends on its kind alone: `draw_embeds` is a generic function with an implementation for each.
To add a kind, register one. A model may hold several priors, by name:

    diffusion    the component `prior`, denoised under `prior_scheduler`
    none         z_t as if it were z_i: the ablation of unCLIP §5.1
    any other    a network in the model's folder `priors`: those of the emoji model are ar, regression and linear
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from unclip.clip import TextEncoding
from unclip.diffusion import denoise, first_step, noise_to_step
from unclip.errors import UserError
from unclip.models import PRIORS, AutoregressivePrior, EclipsePrior, NoisedPrior, RegressionPrior
from unclip.models.saved import load_network

from .inputs import Settings
from .loading import PRIORS_FOLDER, find_priors
from .stages import ImageSeed, Watch, cut, drawn, guided, steps_of, unwatched

DIFFUSION, NONE = "diffusion", "none"


@dataclass(frozen=True)
class Draw:
    """What is to be drawn: a candidate for each generator, those of the first caption first.

    Attributes:
        text: of P captions; there are a multiple of P generators.
        negative: of what takes the unconditional branch's place, P rows or 1.
        watch: what shows the steps of the denoising loop.
        start: embeddings [N, D] that are drawn anew; None to begin with noise alone.
        strength: in (0, 1], how much noise these are given.
        noise: [N, D] to begin with; drawn if None.
    """

    text: TextEncoding
    negative: TextEncoding
    generators: list[torch.Generator]
    settings: Settings
    scheduler: Any
    watch: Watch = unwatched
    start: Tensor | None = None
    strength: float = 1.0
    noise: Tensor | None = None


@singledispatch
def draw_embeds(prior: Any, draw: Draw) -> Tensor:
    """Image embeddings [N, D] for N generators, as the decoder takes them."""
    raise UserError(
        f"{type(prior).__name__} is no prior: give one of {', '.join(k.__name__ for k in PRIORS)}"
    )


@draw_embeds.register
def _(prior: NoisedPrior, draw: Draw) -> Tensor:
    N = len(draw.generators)
    device: Any = prior.device
    shape = (N, draw.text.embeds.shape[1])
    cond, uncond = (prior.read(each) for each in (draw.text, draw.negative))
    cond, uncond = (cache.for_rows(N) for cache in cond.aligned(uncond))
    steps = draw.settings.prior_num_inference_steps
    count = steps_of(draw.scheduler, steps)
    x, first = drawn(draw.noise, shape, draw.generators, device), 0
    if draw.start is not None and (first := first_step(draw.scheduler, steps, draw.strength)):
        x = noise_to_step(draw.scheduler, prior.normalize(draw.start.to(x)), x, steps, first)
    with draw.watch("prior", count - first) as on_step:
        z = denoise(
            guided(prior, draw.settings.prior_guidance_scale, uncond),
            draw.scheduler,
            x,
            cond=cond,
            num_inference_steps=steps,
            generator=draw.generators,
            start=first,
            callback_on_step_end=on_step,
        )
    return prior.to_embeds(z)


@draw_embeds.register
def _(prior: AutoregressivePrior, draw: Draw) -> Tensor:
    settings = draw.settings
    return prior.sample(
        draw.text, draw.generators, temperature=settings.prior_temperature, top_p=settings.prior_top_p
    )


@draw_embeds.register
def _(prior: RegressionPrior, draw: Draw) -> Tensor:
    return prior.sample(draw.text, draw.generators)


@draw_embeds.register
def _(prior: EclipsePrior, draw: Draw) -> Tensor:
    return prior.sample(draw.text, draw.generators, draw.noise)


def sample_prior(
    prior: Any,
    scheduler: Any,
    text: TextEncoding,
    negative: TextEncoding,
    seeds: Sequence[ImageSeed],
    settings: Settings,
    watch: Watch = unwatched,
    start: Tensor | None = None,
    strength: float = 1.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw image embeddings from captions and keep the best of `num_prior_candidates` each (unCLIP §2.2).

    Args:
        text: of P captions; B is a multiple of P.
        negative: of what takes the unconditional branch's place, P rows or 1; the encoding of "" for nothing.
        seeds: of B pictures, those of the first caption first.
        start: embeddings [B, D] that a diffusion prior draws anew: given `strength` of the noise, denoised as the
            captions say. SDEdit (2108.01073) in the place of pictures.
        noise: [B, D] that a diffusion prior begins with; drawn if None.

    Returns: [B, D] as the decoder takes them: of each picture's candidates the z_i with the largest z_i · z_t.
    """
    if not isinstance(prior, PRIORS):
        raise UserError("this model has no prior: give image_embeds, a picture, or prior= of another model")
    B, n = len(seeds), settings.num_prior_candidates
    text, negative = (cut(each, prior.config.max_tokens) for each in (text, negative))
    generators = [seed.generator("prior", candidate) for seed in seeds for candidate in range(n)]
    start, noise = (None if each is None else each.repeat_interleave(n, dim=0) for each in (start, noise))
    draw = Draw(text, negative, generators, settings, scheduler, watch, start, strength, noise)
    z = draw_embeds(prior, draw).unflatten(0, (B, n))
    z_t = text.embeds.to(z).repeat_interleave(B // len(text.embeds), dim=0)
    best = (z * z_t[:, None]).sum(-1).argmax(dim=1)
    return z[torch.arange(B, device=z.device), best]


class SeveralPriors(DiffusionPipeline):
    """What a pipeline needs to hold priors by name; each is read when it is first asked for."""

    clip: Any
    prior: Any
    _priors_folder: Path | None = None

    def __init__(self) -> None:
        super().__init__()
        self._loaded_priors: dict[str, Any] = {}

    @property
    def priors_folder(self) -> Path | None:
        """Where further priors lie; None for a pipeline that was not loaded."""
        if self._priors_folder is None and (source := getattr(self.config, "_name_or_path", None)):
            self._priors_folder = find_priors(source)  # loaded by diffusers' own loader
        return self._priors_folder

    @property
    def prior_names(self) -> list[str]:
        """What `prior=` of a call may be, besides a network."""
        folder = self.priors_folder
        there = folder.iterdir() if folder is not None and folder.is_dir() else ()
        return [DIFFUSION, *sorted(path.name for path in there if path.is_dir()), NONE]

    def prior_of(self, wanted: str | nn.Module | None) -> Any:
        """The prior of a name, a network as it is, or for None the component `prior`.

        Raises:
            UserError: there is none of that name, or it was trained on another CLIP.
        """
        if wanted is None or wanted == DIFFUSION:
            return self.prior
        if not isinstance(wanted, str):
            return self._fitting(wanted, type(wanted).__name__).to(self.device).to(self.dtype)
        if wanted not in self.prior_names:
            raise UserError(f"no prior {wanted!r} in this model: choose one of {', '.join(self.prior_names)}")
        if wanted not in self._loaded_priors:
            self._loaded_priors[wanted] = self._fitting(self._load_prior(wanted), wanted)
        return self._loaded_priors[wanted].to(self.device).to(self.dtype)

    def _load_prior(self, name: str) -> Any:
        if name == NONE:
            return RegressionPrior.identity(self.clip.embed_dim, self.clip.token_dim, self.clip.unit_norm)
        assert self.priors_folder is not None  # else there was no such name
        return load_network(PRIORS, self.priors_folder / name)

    def _fitting(self, prior: Any, name: str) -> Any:
        if not isinstance(prior, PRIORS):
            known = ", ".join(kind.__name__ for kind in PRIORS)
            raise UserError(f"prior must be a name or one of {known}, got {name}")
        for size in ("embed_dim", "token_dim"):
            if (own := prior.config[size]) != (wanted := getattr(self.clip, size)):
                raise UserError(
                    f"the prior {name} was trained on another CLIP: its {size} is {own}, CLIP's is {wanted}"
                )
        return prior

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save all components, and the other priors if there are any."""
        super().save_pretrained(save_directory, *args, **kwargs)
        here, there = self.priors_folder, Path(save_directory) / PRIORS_FOLDER
        if here is not None and here.is_dir() and here.resolve() != there.resolve():
            shutil.copytree(here, there, dirs_exist_ok=True)
