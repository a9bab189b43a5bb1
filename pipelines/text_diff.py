"""Text diffs (unCLIP §3.3): z_i is turned towards what one caption has and another has not, x_T stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from unclip.errors import UserError
from unclip.models import NoisedPrior

from .calls import Call, CallOptions, seeds_of
from .inputs import check_choice, check_count, check_share, prompt_list
from .manipulation import INVERSION_STEPS, Given, Manipulation, read
from .reading import Fit, Source
from .sphere import slerp
from .stages import ImageSeed, decoder_noise

MOST = 0.5  # of theta: half-way from the picture to the difference
SAME = 1e-4  # difference of two embeddings below which the captions say the same
STRENGTH = 0.7  # of redrawing; docs/experiments.md has others

Via = Literal["prior", "text", "redraw"]
DiffNoise = Literal["inverted", "slerp", "fresh"]


@dataclass(frozen=True)
class Way:
    """How a change is made: the arguments of a call, checked, with what depends on `via` where they are not given."""

    sources: list[str]
    targets: list[str]
    via: Via
    noise: DiffNoise
    thetas: list[float]
    strength: float

    @classmethod
    def check(
        cls,
        source_prompt: str | Sequence[str] | None,
        target_prompt: str | Sequence[str],
        via: Via | None,
        noise: DiffNoise | None,
        theta: float | Sequence[float] | None,
        num_frames: int | None,
        strength: float | None,
    ) -> Way:
        """Without a source there is no difference: the target is drawn on the picture's own embedding.

        Raises:
            UserError: an argument is wrong, or two do not go together.
        """
        if via is None:
            via = "redraw" if source_prompt is None else "prior"
        redraw = check_choice(via, "via", get_args(Via)) == "redraw"
        if redraw != (source_prompt is None):
            raise UserError(
                "via 'redraw' begins with the picture itself: leave the source caption out"
                if redraw
                else f"via {via!r} takes the difference of two captions: give a source caption, or leave via out, too"
            )
        if strength is not None and not redraw:
            raise UserError(
                f"strength is of redrawing, which takes no source caption: leave strength {strength!r} out, or the "
                "source"
            )
        sources, targets = check_diffs(
            target_prompt if source_prompt is None else source_prompt, target_prompt
        )
        if redraw and len(targets) != 1:
            raise UserError(
                f"without a source caption there is one target caption, got {len(targets)}: give as many sources"
            )
        share = STRENGTH if strength is None else check_share(strength, "strength")
        if share == 0:
            raise UserError("strength 0 leaves the picture as it is: give more than 0, up to 1 for all of it")
        if noise is None:
            noise = "slerp" if redraw else "inverted"
        if theta is None:
            theta = MOST if redraw else 0.3
        return cls(
            [] if redraw else sources,
            targets,
            via,
            cast(DiffNoise, check_choice(noise, "noise", get_args(DiffNoise))),
            check_thetas(theta, num_frames),
            share,
        )


class UnCLIPTextDiffPipeline(Manipulation):
    """Pictures to what they become when one caption turns into another, or as one caption says.

    The difference z_d is normalised, z_i goes by slerp(z_i, z_d, θ). The paper takes z_d of the captions' embeddings
    z_t; here the difference of what the prior makes of the two captions is offered, too: it knows what the change does
    to an image embedding.

    Both keep what the picture is and change its manner. Where it is to become something else, such as a face with
    another expression, z_i itself is redrawn: a diffusion prior gives it noise and takes it away as the target caption
    says (SDEdit, 2108.01073, on embeddings), and z_i goes by slerp(z_i, redrawn, 2θ).

    A call takes:
        image: a picture or P of them: paths, PIL pictures, arrays, tensors; any size, mode and orientation.
        target_prompt: what it is to become.
        source_prompt: what the picture shows, or a dummy ("a photo", or "" for nothing); None to redraw. Lists of both,
            equally long, are several diffs, which are added.
        theta: in [0, 0.5], how far; 0 is the picture again, 0.5 all the way. A list gives a picture for each. By
            default 0.3, where it is redrawn 0.5.
        num_frames: in place of a list: so many pictures from 0 to theta.
        via: "prior" or "text", where the difference is taken, or "redraw"; by default "prior" if there is a source.
        strength: in (0, 1], how much noise z_i is given where it is redrawn: more of it, the less of z_i stays.
        noise: "inverted" keeps the picture's own x_T, "slerp" goes from there to a drawn one as theta goes from 0 to
            0.5, "fresh" draws one. By default "inverted", where it is redrawn "slerp": x_T holds the lines of what the
            picture was, too.
        fit: how a picture is made square: "pad" on white, "crop" the middle, "stretch".
    and the options that every pipeline takes (`CallOptions`, explained at `UnCLIPTextToImagePipeline`), of which
    decoder_num_inference_steps is INVERSION_STEPS where x_T is found.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Sequence[Source],
        target_prompt: str | Sequence[str],
        *,
        source_prompt: str | Sequence[str] | None = None,
        theta: float | Sequence[float] | None = None,
        num_frames: int | None = None,
        via: Via | None = None,
        strength: float | None = None,
        noise: DiffNoise | None = None,
        fit: Fit = "pad",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Make the change; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        way = Way.check(source_prompt, target_prompt, via, noise, theta, num_frames, strength)
        inverted = way.noise != "fresh"
        call = self.check(options, **({"decoder_num_inference_steps": INVERSION_STEPS} if inverted else {}))
        if way.via == "redraw" and not isinstance(call.prior, NoisedPrior):
            raise UserError(
                "without a source caption the picture is redrawn, which takes the diffusion prior: leave the other "
                "prior out, or give a source caption"
            )
        given = read(image, fit)
        seeds = seeds_of(call, len(given), 1)
        of_frames = [seed for seed in seeds for _ in way.thetas]
        z = self.embed(given)
        embeds = F.normalize(self._turned(z, way, seeds, call).flatten(0, 1), dim=-1)
        embeds = embeds * z.norm(dim=-1, keepdim=True).repeat_interleave(len(way.thetas), dim=0)
        x_T = self._noise(given, z, way, seeds, call) if inverted else None
        scheduler = self.ddim_scheduler if inverted else None
        pictures = self.decode(embeds, None, None, of_frames, call, scheduler=scheduler, noise=x_T)
        return self.finish(embeds, pictures, of_frames, call)

    def _turned(self, z: Tensor, way: Way, seeds: list[ImageSeed], call: Call) -> Tensor:
        """z_i [P, D] of pictures -> [P, T, D] for T thetas."""
        shares = torch.tensor(way.thetas, device=z.device)
        if way.via == "redraw":
            target = self.encode(way.targets, call)
            end = self.embeds_of(target, None, seeds, call, start=z, strength=way.strength)
            shares = shares / MOST
        else:
            end = self._text_diff(way.sources, way.targets, seeds, call, way.via == "text")
        return slerp(z[:, None], end[:, None], shares.expand(len(z), -1))

    def _noise(self, given: Given, z: Tensor, way: Way, seeds: list[ImageSeed], call: Call) -> Tensor:
        """x_T [P·T, 3, S, S]: the pictures' own, or from there towards drawn ones."""
        own = self.noise_of(given, z, None, seeds, call)
        shares = torch.tensor(way.thetas, device=own.device).repeat(len(own)) / MOST
        own = own.repeat_interleave(len(way.thetas), dim=0)
        if way.noise == "inverted":
            return own
        drawn = decoder_noise(self.decoder, seeds)[0].repeat_interleave(len(way.thetas), dim=0)
        return slerp(own.flatten(1), drawn.to(own).flatten(1), shares).view_as(own)

    def _text_diff(
        self, sources: list[str], targets: list[str], seeds: list[ImageSeed], call: Call, via_text: bool
    ) -> Tensor:
        """z_d [P, D] of unit norm: the sum of all differences, each normalised before.

        Raises:
            UserError: two captions say the same, or the differences cancel out.
        """
        # Both ends are the first candidate: the best of several might be of other noise.
        call = replace(call, settings=replace(call.settings, num_prior_candidates=1))
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
