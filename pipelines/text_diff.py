"""Text diffs (unCLIP §3.3): z_i is turned towards the difference of two captions, x_T stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from unclip.errors import UserError

from .calls import Call, CallOptions
from .inputs import check_choice, check_count, check_share, prompt_list
from .manipulation import INVERSION_STEPS, Manipulation, Noise, read, seeds_of
from .reading import Fit, Source
from .sphere import slerp
from .stages import ImageSeed

MOST = 0.5  # of theta: half-way from the picture to the difference
SAME = 1e-4  # difference of two embeddings below which the captions say the same


class UnCLIPTextDiffPipeline(Manipulation):
    """Pictures to what they become when one caption turns into another.

    The difference z_d is normalised, z_i goes by slerp(z_i, z_d, θ). The paper takes z_d of the captions' embeddings
    z_t; here the difference of what the prior makes of the two captions is offered, too: it knows what the change does
    to an image embedding.

    A call takes:
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation.
        source_prompt: what the picture shows, or a dummy ("a photo", or "" for nothing).
        target_prompt: what it is to become. Lists of both, equally long, are several diffs, which are added.
        theta: in [0, 0.5], how far; 0 is the picture again. A list gives a picture for each.
        num_frames: in place of a list: so many pictures from 0 to theta.
        via: "prior" or "text", where the difference is taken.
        noise: "inverted" keeps the picture's own x_T, "fresh" draws one.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is INVERSION_STEPS where x_T is found.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Sequence[Source],
        source_prompt: str | Sequence[str],
        target_prompt: str | Sequence[str],
        *,
        theta: float | Sequence[float] = 0.3,
        num_frames: int | None = None,
        via: Literal["prior", "text"] = "prior",
        noise: Noise = "inverted",
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make the change; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        thetas = check_thetas(theta, num_frames)
        via_text = check_choice(via, "via", ("prior", "text")) == "text"
        inverted = check_choice(noise, "noise", ("inverted", "fresh")) == "inverted"
        call = self.check(options, **({"decoder_num_inference_steps": INVERSION_STEPS} if inverted else {}))
        sources, targets = check_diffs(source_prompt, target_prompt)
        given = read(image, fit)
        frames = len(thetas)
        seeds = seeds_of(call, len(given), 1)
        of_frames = [seed for seed in seeds for _ in thetas]
        z = self.embed(given)
        z_d = self._text_diff(sources, targets, seeds, call, via_text)
        turned = slerp(
            z[:, None].expand(-1, frames, -1),
            z_d[:, None].expand(-1, frames, -1),
            torch.tensor(thetas, device=z.device).expand(len(z), -1),
        )
        embeds = F.normalize(turned.flatten(0, 1), dim=-1)
        x_T = (
            self.noise_of(given, z, None, seeds, call).repeat_interleave(frames, dim=0) if inverted else None
        )
        scheduler = self.ddim_scheduler if inverted else None
        pictures = self.decode(embeds, None, None, of_frames, call, scheduler=scheduler, noise=x_T)
        return self.finish(embeds, pictures, of_frames, call)

    def _text_diff(
        self, sources: list[str], targets: list[str], seeds: list[ImageSeed], call: Call, via_text: bool
    ) -> Tensor:
        """z_d [P, D] of unit norm: the sum of all differences, each normalised before.

        Raises:
            UserError: two captions say the same, or the differences cancel out.
        """
        total = torch.zeros(len(seeds), self.clip.embed_dim, device=self.device)
        for source, target in zip(sources, targets, strict=True):
            ends = []
            for caption in (target, source):
                text = self.encode([caption], call)
                # The same seeds for both ends: what chance adds is no part of the difference.
                ends.append(text.embeds if via_text else self.embeds_of(text, None, seeds, call))
            difference = ends[0] - ends[1]
            if float(difference.norm(dim=-1).min()) < SAME:
                raise UserError(
                    f"{source!r} and {target!r} mean the same to this model: there is no difference to go"
                )
            total = total + F.normalize(difference, dim=-1)
        if float(total.norm(dim=-1).min()) < SAME:
            raise UserError("the differences cancel out: leave out those that undo each other")
        return F.normalize(total, dim=-1)


def check_diffs(source: str | Sequence[str], target: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Equally many source and target captions; a source may be "".

    Raises:
        UserError: they are not.
    """
    sources = [source] if isinstance(source, str) else source
    targets = prompt_list(target)
    if not isinstance(sources, (list, tuple)) or not all(isinstance(each, str) for each in sources):
        raise UserError(f"source_prompt must be a string or a list of strings, got {source!r}")
    if len(sources) != len(targets):
        raise UserError(
            f"got {len(sources)} source and {len(targets)} target prompts: every diff has one of each"
        )
    return list(sources), targets


def check_thetas(theta: float | Sequence[float], num_frames: int | None) -> list[float]:
    """The theta of each frame: those listed, or `num_frames` from 0 to theta; of one frame theta itself.

    Raises:
        UserError: one is out of range, there is none, or a list and num_frames are both given.
    """
    if isinstance(theta, (list, tuple)):
        if num_frames is not None or not theta:
            raise UserError("give a list of thetas, at least one, or one theta and num_frames")
        return [check_share(each, "theta", MOST) for each in theta]
    most = check_share(theta, "theta", MOST)
    if num_frames is None:
        return [most]
    count = check_count(num_frames, "num_frames")
    return [most] if count == 1 else [most * k / (count - 1) for k in range(count)]
