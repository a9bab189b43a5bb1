"""Guidance: a denoiser that asks another with and without the condition, and combines the two answers.

The rule of combination is one of `diffusers.guiders`, which also decides on which steps it applies. Both
branches go through the network in one batch; on a step without guidance only the conditional branch runs.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor

from unclip.diffusion.denoiser import Conditions, Denoiser, Posterior
from unclip.diffusion.prediction import check_prediction_type, from_x0, to_x0
from unclip.diffusion.schedule import at_least_float32
from unclip.errors import UserError

# Every guider warns that guiders are experimental: nothing that a user of this library can act on.
logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)


def classifier_free(scale: float, start: float = 0.0, stop: float = 1.0) -> ClassifierFreeGuidance:
    """Classifier-free guidance (2207.12598): uncond + scale · (cond - uncond), 1 being no guidance.

    `start` and `stop` bound it to an interval of the steps (2404.07724), as fractions of their number.
    """
    return ClassifierFreeGuidance(guidance_scale=scale, start=start, stop=stop)


class Guided:
    """A denoiser under guidance; it is called as the denoiser is, with the conditions of the wanted branch.

    Args:
        denoiser: the one to guide.
        guider: a rule of `diffusers.guiders` that needs a conditional and an unconditional prediction of one
            network as it is.
        uncond: the conditions to replace in the unconditional (or negative) branch, with batch size B or 1;
            those that it does not name are shared. Sequences [B, L, ...] may be shorter or longer than the
            wanted branch's: zeros (False in masks) fill the end.
        space: the prediction type to which the rule applies. Rules that are linear give the same in each; by
            default x_0, and the velocity for CFG-Zero*, which is about a zero velocity.
    """

    def __init__(self, denoiser: Denoiser, guider: Any, uncond: Conditions, space: str | None = None) -> None:
        alters_network = type(guider).prepare_models is not BaseGuidance.prepare_models
        if alters_network or guider._input_predictions != ["pred_cond", "pred_uncond"]:
            raise UserError(
                f"{type(guider).__name__} needs more than a conditional and an unconditional branch of the same "
                "network: choose ClassifierFreeGuidance, AdaptiveProjectedGuidance or the like"
            )
        self.denoiser = denoiser
        self.guider = guider
        self.uncond = dict(uncond)
        default = "flow" if isinstance(guider, ClassifierFreeZeroStarGuidance) else "sample"
        self.space = check_prediction_type(space or default)

    @property
    def learned_variance(self) -> bool:
        return self.denoiser.learned_variance

    def begin_step(self, index: int, count: int, timestep: Tensor) -> None:
        """Told by the sampling loop that step `index` of `count` comes next."""
        self.guider.set_state(index, count, timestep)
        self.denoiser.begin_step(index, count, timestep)

    def begin_run(self) -> None:
        """Told by the sampling loop that a new run begins: rules with a memory forget the last one."""
        self.guider.set_state(0, 1, None)
        self.guider.prepare_inputs({})  # the guiders of diffusers clear their memory when they prepare step 0

    def __call__(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, cond: Conditions | None = None
    ) -> Posterior:
        """The guided posterior at x_t [B, ...]; a learned variance is that of the conditional branch."""
        x_t = at_least_float32(x_t)
        alpha, sigma = alpha.to(x_t).expand(len(x_t)), sigma.to(x_t).expand(len(x_t))
        cond = dict(cond or {})
        branches = self.guider.prepare_inputs({"conditions": (cond, self._unconditional(cond))})
        n = len(branches)
        both = self.denoiser(
            x_t.repeat(n, *[1] * (x_t.ndim - 1)),
            alpha.repeat(n),
            sigma.repeat(n),
            _join([branch.conditions for branch in branches], len(x_t)),
        )
        for branch, mean in zip(branches, both.mean.chunk(n), strict=True):
            branch.noise_pred = from_x0(self.space, mean, x_t, alpha, sigma)
        mean = to_x0(self.space, self.guider(branches).pred, x_t, alpha, sigma)
        if both.log_var is None or both.variance_fraction is None:
            return Posterior(mean)
        return Posterior(mean, both.log_var[: len(x_t)], both.variance_fraction[: len(x_t)])

    def _unconditional(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        if unknown := self.uncond.keys() - cond.keys():
            raise UserError(
                f"the unconditional branch replaces {sorted(unknown)}, which the condition does not have: "
                f"give both of them, got {sorted(cond)}"
            )
        return cond | self.uncond


def _join(branches: list[dict[str, Tensor]], batch: int) -> dict[str, Tensor]:
    """The conditions of all branches [n·B, ...] from those of each one ([B, ...] or [1, ...])."""
    return {name: _cat(name, [branch[name] for branch in branches], batch) for name in branches[0]}


def _cat(name: str, tensors: list[Tensor], batch: int) -> Tensor:
    ragged = tensors[0].ndim > 1 and len({tensor.shape[1] for tensor in tensors}) > 1
    if ragged:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [_fill_to(tensor, longest) for tensor in tensors]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(shape[0] not in (1, batch) or shape[1:] != shapes[0][1:] for shape in shapes):
        raise UserError(f"condition {name!r}: cannot join {shapes} in one batch of {batch} samples a branch")
    return torch.cat([tensor.expand(batch, *tensor.shape[1:]) for tensor in tensors])


def _fill_to(sequence: Tensor, length: int) -> Tensor:
    """Zeros at the end of dimension 1, up to `length`."""
    missing = sequence.new_zeros(len(sequence), length - sequence.shape[1], *sequence.shape[2:])
    return torch.cat([sequence, missing], dim=1)
