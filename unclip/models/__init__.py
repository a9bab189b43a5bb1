"""Networks of unCLIP: they map (x, t, conditions) to a tensor and know no noise schedule."""

from __future__ import annotations

from unclip.models.decoder import Decoder
from unclip.models.layers import warn_of_another_clip
from unclip.models.prior import DiffusionPrior, PrefixCache, TextCache
from unclip.models.recall_prior import RecallPrior
from unclip.models.upsampler import Upsampler

Prior = DiffusionPrior | RecallPrior  # either serves every pipeline
PRIORS = (DiffusionPrior, RecallPrior)

__all__ = [
    "PRIORS",
    "Decoder",
    "DiffusionPrior",
    "PrefixCache",
    "Prior",
    "RecallPrior",
    "TextCache",
    "Upsampler",
    "warn_of_another_clip",
]
