"""Between pictures and prompts (unCLIP §3.2): z_i along the arc from one to the next, or a weighted mean of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from unclip.errors import UserError

from .calls import Call, CallOptions, seeds_of
from .inputs import check_choice, check_count, check_embeds, prompt_list
from .manipulation import INVERSION_STEPS, Manipulation, read
from .reading import Fit, Source
from .sphere import spherical_mean
from .stages import ImageSeed, decoder_noise

PROMPT = "prompt:"  # in front of what is no picture's path but a caption

Weights = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Ends:
    """What is blended: of each of n inputs z_i [n, D] and x_T [n, 3, S, S]."""

    embeds: Tensor
    noise: Tensor


class UnCLIPInterpolationPipeline(Manipulation):
    """Pictures and prompts to what lies between them.

    A call takes:
        inputs: two or more: pictures, strings "prompt:a red apple", and embeddings, tensors [D].
        weights: how much of each input, none negative: [n] for one picture, [F, n] for F of them.
        num_frames: without weights, so many pictures on the way through all inputs; 1 is the even blend of all.
        noise: "slerp" blends the x_T of the inputs likewise (those of pictures are found by inversion), "fixed" takes
            one new x_T for all pictures, "fresh" one for each.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is INVERSION_STEPS where x_T is found.
    """

    @torch.no_grad()
    def __call__(
        self,
        inputs: Sequence[Source],
        *,
        weights: Weights | None = None,
        num_frames: int | None = None,
        noise: Literal["slerp", "fixed", "fresh"] = "slerp",
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make what lies between; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        how = check_choice(noise, "noise", ("slerp", "fixed", "fresh"))
        call = self.check(
            options, **({"decoder_num_inference_steps": INVERSION_STEPS} if how == "slerp" else {})
        )
        if not isinstance(inputs, (list, tuple)) or len(inputs) < 2:
            raise UserError(
                "a blend needs a list of two inputs or more: pictures, or prompts as 'prompt:a red apple'"
            )
        shares = check_weights(weights, num_frames, len(inputs)).to(self.device)
        seeds = seeds_of(call, 1, len(shares))
        if how != "fresh":  # one x_T, or the way between some: the upsamplers' noise is the same, too
            seeds = seeds[:1] * len(shares)
        # An input's own seed: the k-th of the first picture's, however many pictures are made.
        own = [ImageSeed(seeds[0].base, k) for k in range(len(inputs))]
        ends = self._ends(inputs, fit, own, call, with_noise=how == "slerp")
        embeds = spherical_mean(ends.embeds.expand(len(shares), -1, -1), shares)
        if how == "slerp":
            flat = spherical_mean(ends.noise.flatten(1).expand(len(shares), -1, -1), shares)
            x_T = flat.unflatten(1, ends.noise.shape[1:])
            pictures = self.decode(embeds, None, None, seeds, call, scheduler=self.ddim_scheduler, noise=x_T)
        else:
            pictures = self.decode(embeds, None, None, seeds, call)
        return self.finish(embeds, pictures, seeds, call)

    def _ends(
        self, inputs: Sequence[Any], fit: Fit, seeds: list[ImageSeed], call: Call, *, with_noise: bool
    ) -> Ends:
        """z_i of all inputs and, if asked for, x_T: of pictures by inversion, of others drawn; a seed for each."""
        n = len(inputs)
        prompts = {i: each.removeprefix(PROMPT) for i, each in enumerate(inputs) if _is_prompt(each)}
        vectors = {i: each for i, each in enumerate(inputs) if isinstance(each, Tensor) and each.ndim == 1}
        places = [i for i in range(n) if i not in prompts and i not in vectors]
        texts = prompt_list(list(prompts.values())) if prompts else []
        given = read([inputs[i] for i in places], fit) if places else None
        embeds = torch.zeros(n, self.clip.embed_dim, device=self.device)
        for i, vector in vectors.items():
            embeds[i] = check_embeds(vector[None], self.clip.embed_dim, 1, self.clip.unit_norm)[0].to(embeds)
        if prompts:
            which = list(prompts)
            drawn = self.embeds_of(self.encode(texts, call), None, [seeds[i] for i in which], call)
            embeds[which] = drawn.to(embeds)
        if given is not None:
            embeds[places] = self.embed(given).to(embeds)
        if not with_noise:
            return Ends(embeds, embeds.new_zeros(n, 0))
        x_T = decoder_noise(self.decoder, seeds)[0]
        if given is not None:
            own = self.noise_of(given, embeds[places], None, [seeds[i] for i in places], call)
            x_T[places] = own.to(x_T)
        return Ends(embeds, x_T)


def _is_prompt(each: Any) -> bool:
    return isinstance(each, str) and each.startswith(PROMPT)


def check_weights(weights: Weights | None, num_frames: int | None, n: int) -> Tensor:
    """The weights [F, n] of F pictures, each row of sum 1.

    Raises:
        UserError: both or wrong ones are given; a row is negative somewhere or sums to zero.
    """
    if weights is None:
        return path_weights(check_count(1 if num_frames is None else num_frames, "num_frames"), n)
    if num_frames is not None:
        raise UserError(
            "give weights or num_frames, not both: weights say themselves how many pictures there are"
        )
    try:
        found = torch.tensor(weights, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"weights must be numbers, got {weights!r}") from error
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] != n or len(found) == 0:
        raise UserError(f"got weights of shape {tuple(found.shape)} for {n} inputs: give one weight for each")
    if not bool(found.isfinite().all()) or bool((found < 0).any()):
        raise UserError(f"weights must be 0 or more, got {weights!r}: to take something away use a text diff")
    sums = found.sum(1, keepdim=True)
    if not bool((sums > 0).all()):
        raise UserError(f"weights sum to zero ({weights!r}): make at least one of them positive")
    return found / sums


def path_weights(frames: int, n: int) -> Tensor:
    """Evenly spaced stops on the way through n inputs in turn, [frames, n]; a single one is in the midst of all."""
    if frames == 1:
        return torch.full((1, n), 1 / n)
    places = torch.linspace(0, n - 1, frames)
    return (1 - (places[:, None] - torch.arange(n)).abs()).clamp(min=0)
