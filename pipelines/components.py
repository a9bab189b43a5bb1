"""What a pipeline of unCLIP is made of: its components, and how they are loaded, shared and kept out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin

from unclip.clip import FrozenCLIP, TransformersCLIP
from unclip.errors import UserError
from unclip.models import Decoder, DiffusionPrior, KarloDecoder, KarloPrior, KarloUpsampler, Upsampler
from unclip.models.autoregressive_prior import TOP_P
from unclip.models.saved import loading

from .inputs import Settings
from .loading import FORMER, PRIORS_FOLDER, REQUIRED, find_lexicon, find_priors, locate, published_folder
from .memory import Stored, is_outline, of_model_folder
from .plain_words import PlainWords
from .priors import SeveralPriors
from .published import DEFAULTS as PUBLISHED_DEFAULTS
from .published import read_published, taken_over

COMPONENTS = (
    *("clip", "prior", "prior_scheduler", "decoder", "decoder_scheduler"),
    *("upsampler_256", "upsampler_256_scheduler", "upsampler_1024", "upsampler_1024_scheduler"),
)
# What pipelines of the same components share besides them.
SHARED = ("_lexicon_file", "_lexicon", "_looked", "_priors_folder", "_loaded_priors", "_stored")
DEFAULTS = (*(field.name for field in fields(Settings)), "plain_words", "as_in_diffusers")


class UnCLIPComponents(PlainWords, SeveralPriors):
    """The components of unCLIP as a diffusers pipeline.

    The components are CLIP, and for prior, decoder and each upsampler a network and a scheduler; any scheduler of
    diffusers may take a place (`pipe.decoder_scheduler = DPMSolverMultistepScheduler.from_config(...)`). The upsamplers
    may be absent. The constructor's other arguments are the defaults of a call, saved with the model. Every pipeline is
    made of any other's components by `from_pipe`.
    """

    _optional_components = [  # noqa: RUF012 - diffusers' name and type
        "prior",
        "prior_scheduler",
        "upsampler_256",
        "upsampler_256_scheduler",
        "upsampler_1024",
        "upsampler_1024_scheduler",
    ]
    _callback_tensor_inputs = ["latents", "x0"]  # noqa: RUF012
    _required = REQUIRED  # of a model folder

    clip: FrozenCLIP | TransformersCLIP
    prior: DiffusionPrior | KarloPrior | None
    prior_scheduler: SchedulerMixin | None
    decoder: Decoder | KarloDecoder
    decoder_scheduler: SchedulerMixin
    upsampler_256: Upsampler | KarloUpsampler | None
    upsampler_256_scheduler: SchedulerMixin | None
    upsampler_1024: Upsampler | None
    upsampler_1024_scheduler: SchedulerMixin | None

    def __init__(
        self,
        clip: FrozenCLIP | TransformersCLIP,
        prior: DiffusionPrior | KarloPrior | None,
        prior_scheduler: SchedulerMixin | None,
        decoder: Decoder | KarloDecoder,
        decoder_scheduler: SchedulerMixin,
        upsampler_256: Upsampler | KarloUpsampler | None = None,
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
        as_in_diffusers: bool = False,  # call defaults of the public checkpoints; see `docs/migration.md`
    ) -> None:
        given = locals()
        super().__init__()
        self.register_modules(**{name: given[name] for name in COMPONENTS})
        self.register_to_config(**{name: given[name] for name in DEFAULTS})
        self._stage: str | None = None
        self._stored: Stored | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        low_memory: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline folder or hub repository; without a name, the model embedded in this package.

        The public checkpoints of diffusers' `UnCLIPPipeline` and `UnCLIPImageVariationPipeline` are read as they are.
        The arguments are those of `DiffusionPipeline.from_pretrained`. Weights run in float32 unless `dtype` says
        otherwise, however small they are stored.

        Args:
            low_memory: read each network from its folder when its stage begins and forget it when that ends. Takes the
                time of reading, and no more memory than the largest stage.

        Raises:
            UserError: a file is missing, cut off, pickled or does not fit.
        """
        source = locate(pretrained_model_name_or_path, cls._required)
        own = {name: kwargs.pop(name) for name in COMPONENTS if name in kwargs}
        folder = published_folder(source, dict.fromkeys(FORMER), **kwargs)
        if folder is None:
            stored = of_model_folder(source, own, **kwargs) if low_memory else None
            outlines = {} if stored is None else stored.outlines()
            with loading(f"model {source}"):
                pipe: Any = super().from_pretrained(source, **outlines, **own, **kwargs)
            pipe._lexicon_file = find_lexicon(source, **kwargs)
            pipe._priors_folder = find_priors(source, **kwargs)
        else:
            defaults = {name: kwargs.pop(name, value) for name, value in PUBLISHED_DEFAULTS.items()}
            parts, stored = read_published(folder, without=own, low_memory=low_memory, **kwargs)
            pipe = cls(**{**dict.fromkeys(COMPONENTS), **parts, **own}, **defaults)
            pipe._looked, pipe._priors_folder = True, folder / PRIORS_FOLDER
        pipe._stored = stored
        return pipe

    @classmethod
    def from_diffusers(cls, pipeline: Any) -> Any:
        """A pipeline of diffusers' deprecated UnCLIPPipeline or UnCLIPImageVariationPipeline as this one, in memory.

        Nothing is copied, and the other pipeline goes on working.
        """
        pipe = cls(**{**dict.fromkeys(COMPONENTS), **taken_over(pipeline)}, **PUBLISHED_DEFAULTS)
        pipe._looked = True
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
        return self.decoder.sample_size

    @property
    def sizes(self) -> dict[int, str]:
        """Side in pixels -> component that makes pictures of it, smallest first."""
        side = self._base_size
        sizes = {side: "decoder"}
        for name in ("upsampler_256", "upsampler_1024"):
            if (upsampler := getattr(self, name)) is not None:
                side *= upsampler.factor
                sizes[side] = name
        return sizes

    @property
    def stage(self) -> str | None:
        """The component at work, for callbacks: prior, decoder, upsampler_256, …; None between calls."""
        return self._stage

    @property
    def device(self) -> torch.device:
        """Where the networks work."""
        return super().device if self._stored is None else self._stored.device

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of DiffusionPipeline; with `low_memory` the networks go there when they are read."""
        if self._stored is None:
            return super().to(*args, **kwargs)
        self._stored.move(*args, **kwargs)
        return self

    @contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """While a component works it is in memory; with `low_memory` no longer."""
        network = getattr(self, name)
        if self._stored is None or name not in self._stored or not is_outline(network):
            yield
            return
        with self._stored.reading(name, network):
            yield

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save all components, the lexicon and the other priors.

        Raises:
            UserError: the networks are not in memory.
        """
        if self._stored is not None:
            raise UserError("low_memory holds no networks to save: load the model without it first")
        super().save_pretrained(save_directory, *args, **kwargs)
