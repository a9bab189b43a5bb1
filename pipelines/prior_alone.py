"""A prior without a decoder: captions to image embeddings, for the decoder of any pipeline that takes them.

It does the work of diffusers' KandinskyV22PriorPipeline, with every prior that there is: that of this package's own
models, of Karlo, of Kandinsky 2.x, of ECLIPSE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor
from typing_extensions import Unpack

from unclip.clip import TextEncoding, TransformersCLIP
from unclip.errors import UserError

from .base import UnCLIPStages
from .calls import CallOptions
from .components import COMPONENTS
from .inputs import check_request
from .prior_checkpoints import prior_folder, prior_of_diffusers, read_prior
from .published import DEFAULTS

OF_THE_PRIOR = ("clip", "prior", "prior_scheduler")
OTHERS = tuple(name for name in COMPONENTS if name not in OF_THE_PRIOR)
# Of the options of other pipelines' calls, those that a prior has a use for.
PRIOR_OPTIONS = (
    *("prior", "prior_num_inference_steps", "prior_guidance_scale", "num_prior_candidates"),
    *("prior_temperature", "prior_top_p", "prior_latents", "plain_words"),
)
WATCHED = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
OPTIONS = (*PRIOR_OPTIONS, *WATCHED, "generator", "return_dict")


@dataclass
class UnCLIPPriorPipelineOutput(BaseOutput):
    """Image embeddings [B, D], and those of what a decoder's guidance should move away from.

    These are what the prior makes of the negative prompts; without any, the embedding of a picture of nothing but
    zeros, or None if CLIP reads no pictures. All embeddings of the first prompt come first.
    """

    image_embeds: Tensor
    negative_image_embeds: Tensor | None


class UnCLIPPriorPipeline(UnCLIPStages):
    """Captions to image embeddings.

    A call takes:
        prompt: a caption or P of them, at least one word each.
        negative_prompt: what the embeddings should move away from, one or one for each prompt; also becomes
            `negative_image_embeds`.
        num_images_per_prompt: embeddings for each prompt.
        prior_latents: noise that the prior begins with, [B, D], with negative prompts [2B, D].
        generator, prior, prior_num_inference_steps, prior_guidance_scale, num_prior_candidates, prior_temperature,
            prior_top_p, plain_words, callback_on_step_end, callback_on_step_end_tensor_inputs: as of
            `UnCLIPTextToImagePipeline`.
        return_dict: False gives the tuple (image_embeds, negative_image_embeds).
    """

    _optional_components = [*UnCLIPStages._optional_components, "decoder", "decoder_scheduler"]  # noqa: RUF012
    _required = ("clip", "prior")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        low_memory: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the prior and its CLIP out of a folder or hub repository; without a name, the embedded model's.

        Reads the models of this package, Karlo's published checkpoint (kakaobrain/karlo-v1-alpha) and those of
        diffusers' KandinskyV22PriorPipeline and KandinskyPriorPipeline. No decoder is read, nor fetched of the
        published ones. The arguments are those of `UnCLIPTextToImagePipeline.from_pretrained`.

        Raises:
            UserError: a file is missing, cut off, pickled or does not fit.
        """
        folder = prior_folder(pretrained_model_name_or_path, **kwargs)
        if folder is None:
            absent = dict.fromkeys(OTHERS)
            return super().from_pretrained(
                pretrained_model_name_or_path, low_memory=low_memory, **absent, **kwargs
            )
        own = {name: kwargs.pop(name) for name in OF_THE_PRIOR if name in kwargs}
        given: dict[str, Any] = {name: kwargs.pop(name, value) for name, value in DEFAULTS.items()}
        parts, stored = read_prior(folder, without=own, low_memory=low_memory, **kwargs)
        pipe: Any = cls(**{**dict.fromkeys(COMPONENTS), **parts, **own, **given})
        pipe._looked, pipe._stored = True, stored
        pipe._fitting(pipe.prior, type(pipe.prior).__name__)
        return pipe

    @classmethod
    def from_diffusers(cls, pipeline: Any) -> Any:
        """The prior of a KandinskyV22PriorPipeline, KandinskyPriorPipeline or UnCLIPPipeline in memory.

        Nothing is copied, and the other pipeline goes on working.
        """
        pipe: Any = cls(**{**dict.fromkeys(COMPONENTS), **prior_of_diffusers(pipeline), **DEFAULTS})
        pipe._looked = True
        return pipe

    @property
    def sizes(self) -> dict[int, str]:
        """No pictures, so of one size only."""
        return {0: "prior"}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make image embeddings; the arguments are explained at the class. Returns an UnCLIPPriorPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise UserError(f"unknown argument {unknown[0]!r}: a prior takes {', '.join(OPTIONS)}")
        call = self.check(options)
        request = check_request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            image_embeds=None,
            num_images_per_prompt=num_images_per_prompt,
            generator=call.generator,
            embed_dim=self.clip.embed_dim,
        )
        assert request.prompts is not None
        seeds = self.seeds(call, request.count, num_images_per_prompt)
        if request.negatives is None:
            embeds = self.embeds_of(self.encode(request.prompts, call), None, seeds, call)
            zero = self.zero_image_embeds()
            negative = None if zero is None else zero.expand(len(embeds), -1).to(embeds)
        else:
            # One batch for both, as Kandinsky has it; guided away from itself, a negative prompt goes nowhere.
            text = self.encode([*request.prompts, *request.negatives], call)
            unwanted = TextEncoding(
                *(each[request.count :].repeat(2, *[1] * (each.ndim - 1)) for each in text)
            )
            embeds, negative = self.embeds_of(text, unwanted, [*seeds, *seeds], call).chunk(2)
        self.maybe_free_model_hooks()
        made = UnCLIPPriorPipelineOutput(image_embeds=embeds, negative_image_embeds=negative)
        return made if call.return_dict else (embeds, negative)

    def zero_image_embeds(self) -> Tensor | None:
        """The embedding [1, D] of a picture whose pixels reach the encoder as zeros; None if there is no encoder."""
        with self.at_work("clip"):
            clip, options = self.clip, {"device": self.device, "dtype": self.clip.dtype}
            if not isinstance(clip, TransformersCLIP):
                size = clip.image_size
                return F.normalize(clip.model.encode_image(torch.zeros(1, 3, size, size, **options)), dim=-1)
            if clip.image_encoder is None:
                return None
            size = clip.image_encoder.config.image_size
            return clip.image_encoder(torch.zeros(1, 3, size, size, **options)).image_embeds
