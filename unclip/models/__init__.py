"""Networks of unCLIP: they map (x, t, conditions) to a tensor and know no noise schedule."""

from __future__ import annotations

from unclip.models.autoregressive_prior import AutoregressivePrior
from unclip.models.caption_prior import PrefixCache
from unclip.models.decoder import Decoder
from unclip.models.karlo import EclipsePrior, KarloDecoder, KarloPrior, KarloUpsampler, UnCLIPTextProjModel
from unclip.models.layers import warn_of_another_clip
from unclip.models.prior import DiffusionPrior, NoisedPrior
from unclip.models.recall_prior import RecallPrior
from unclip.models.regression_prior import RegressionPrior
from unclip.models.upsampler import Upsampler

PRIORS = (
    DiffusionPrior,
    RecallPrior,
    AutoregressivePrior,
    RegressionPrior,
    KarloPrior,
    EclipsePrior,
)  # any of them serves every pipeline

__all__ = [
    "PRIORS",
    "AutoregressivePrior",
    "Decoder",
    "DiffusionPrior",
    "EclipsePrior",
    "KarloDecoder",
    "KarloPrior",
    "KarloUpsampler",
    "NoisedPrior",
    "PrefixCache",
    "RecallPrior",
    "RegressionPrior",
    "UnCLIPTextProjModel",
    "Upsampler",
    "warn_of_another_clip",
]
