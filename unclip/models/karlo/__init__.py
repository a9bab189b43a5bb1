"""The networks of the public unCLIP checkpoints (Karlo), and of those that were built like them (Kandinsky 2.x priors).

They hold the tensors of diffusers' classes under the same names: `from_diffusers` takes such a network over as it is.
"""

from __future__ import annotations

from unclip.models.karlo.decoder import KarloDecoder
from unclip.models.karlo.eclipse import EclipsePrior
from unclip.models.karlo.prior import KarloPrior
from unclip.models.karlo.text_proj import UnCLIPTextProjModel
from unclip.models.karlo.upsampler import KarloUpsampler

__all__ = ["EclipsePrior", "KarloDecoder", "KarloPrior", "KarloUpsampler", "UnCLIPTextProjModel"]
