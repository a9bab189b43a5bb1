"""Networks of unCLIP: they map (x, t, conditions) to a tensor and know no noise schedule."""

from __future__ import annotations

from unclip.models.decoder import Decoder
from unclip.models.layers import warn_of_another_clip
from unclip.models.prior import DiffusionPrior, PrefixCache
from unclip.models.recall_prior import RecallPrior
from unclip.models.upsampler import Upsampler

PRIORS = (DiffusionPrior, RecallPrior)  # either serves every pipeline

__all__ = [
    "PRIORS",
    "Decoder",
    "DiffusionPrior",
    "PrefixCache",
    "RecallPrior",
    "Upsampler",
    "warn_of_another_clip",
]
