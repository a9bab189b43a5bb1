"""Text to image with unCLIP (Ramesh et al. 2022): caption, prior, image embedding, decoder, upsamplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from unclip.errors import UserError

from .base import UnCLIPStages
from .calls import CallOptions, warn_of_idle_negative
from .inputs import check_encoded, check_request
from .stages import repeat

ENCODED = "(encoded)"  # what stands for a prompt that came as CLIP gave it


class UnCLIPTextToImagePipeline(UnCLIPStages):
    """Captions to pictures.

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
        prior: another prior, one of `pipe.prior_names` or a network of `unclip.models.PRIORS`.
        captions_only: decode captions without image embeddings, and so without a prior, as GLIDE does (2112.10741).
            The decoder has learned that from one sample in ten.
        num_prior_candidates: embeddings that the prior draws for a picture; the nearest to the caption is
            kept.
        prior_temperature, prior_top_p: of an autoregressive prior: smaller, likelier embeddings; a top_p of 1 draws
            from all that it has learned.
        noise_level: in [0, 1], noise mixed into the image embedding: more variety, less likeness.
        upsampler_noise_level: in [0, 1], how damaged the small picture may be: more repair, less likeness.
        size (or height and width): side in pixels, one of `pipe.sizes`; by default the first upsampler's.
        generator: one, or one for each picture. A seed gives the same picture whatever else is in the call.
        prior_latents, decoder_latents, upsampler_latents: noise that the prior [B, D], the decoder [B, 3, S, S] and the
            first upsampler [B, 3, size, size] begin with for B pictures, in place of what the generator gives.
        text_model_output, text_attention_mask: captions as CLIP gave them, in place of prompts: embeddings [P, D] and
            token states [P, L, C], and a mask [P, L] of real tokens.
        output_type: "pil", "np", "pt" or "latent"; see UnCLIPPipelineOutput.
        return_dict: False gives the tuple (images, image_embeds).
        callback_on_step_end: called as (pipe, step, timestep, tensors) after each denoising step of each stage, which
            `pipe.stage` names. "latents" of the dict that it may return replaces the noised embeddings or
            pictures.
        callback_on_step_end_tensor_inputs: which of "latents" and "x0" (the present guess) the callback gets.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        image_embeds: Tensor | None = None,
        captions_only: bool = False,
        text_model_output: Sequence[Tensor] | None = None,
        text_attention_mask: Tensor | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make pictures; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        call = self.check(options)
        encoded = check_encoded(prompt, text_model_output, text_attention_mask)
        request = check_request(
            prompt=prompt if encoded is None else [ENCODED] * len(encoded.embeds),
            negative_prompt=negative_prompt,
            image_embeds=image_embeds,
            num_images_per_prompt=num_images_per_prompt,
            generator=call.generator,
            embed_dim=self.clip.embed_dim,
            unit_norm=self.clip.unit_norm,
        )
        if captions_only and (request.prompts is None or image_embeds is not None):
            raise UserError("captions_only decodes captions alone: give prompt and no image_embeds")
        if request.negatives is not None:
            warn_of_idle_negative(call.settings, with_prior=request.image_embeds is None)
        seeds = self.seeds(call, request.count, num_images_per_prompt)
        captions, negative = (
            None if texts is None else self.encode(texts, call)
            for texts in (request.prompts if encoded is None else None, request.negatives)
        )
        captions = encoded or captions
        embeds: Tensor | None = None
        if request.image_embeds is not None:
            embeds = request.image_embeds.to(self.device).repeat_interleave(num_images_per_prompt, dim=0)
        elif not captions_only:
            assert captions is not None  # check_request asks for a prompt where there is no embedding
            embeds = self.embeds_of(captions, negative, seeds, call)
        captions, negative = (
            None if text is None else repeat(text, num_images_per_prompt) for text in (captions, negative)
        )
        pictures = self.decode(embeds, captions, negative, seeds, call)
        return self.finish(embeds, pictures, seeds, call)
