"""Pipelines: subclasses of diffusers' DiffusionPipeline, composed of the stages in `base`."""

from __future__ import annotations

import diffusers

from .calls import UnCLIPPipelineOutput
from .editing import UnCLIPImg2ImgPipeline, UnCLIPInpaintPipeline
from .inputs import Settings
from .interpolation import UnCLIPInterpolationPipeline
from .latents import Latents
from .mixing import UnCLIPMix, check_same_clip, decoder_arguments
from .prior_alone import UnCLIPPriorPipeline, UnCLIPPriorPipelineOutput
from .prior_checkpoints import load_prior
from .text_diff import UnCLIPTextDiffPipeline
from .text_to_image import UnCLIPTextToImagePipeline
from .upscale import UnCLIPUpscalePipeline
from .variation import UnCLIPVariationPipeline

__all__ = [
    "Latents",
    "Settings",
    "UnCLIPImg2ImgPipeline",
    "UnCLIPInpaintPipeline",
    "UnCLIPInterpolationPipeline",
    "UnCLIPMix",
    "UnCLIPPipelineOutput",
    "UnCLIPPriorPipeline",
    "UnCLIPPriorPipelineOutput",
    "UnCLIPTextDiffPipeline",
    "UnCLIPTextToImagePipeline",
    "UnCLIPUpscalePipeline",
    "UnCLIPVariationPipeline",
    "check_same_clip",
    "decoder_arguments",
    "load_prior",
]

# DiffusionPipeline.from_pretrained(folder) looks in diffusers for the class that model_index.json names, and imports no
# module that a folder names: it can load our models once this package is imported.
for _pipeline in (
    UnCLIPTextToImagePipeline,
    UnCLIPVariationPipeline,
    UnCLIPInterpolationPipeline,
    UnCLIPTextDiffPipeline,
    UnCLIPImg2ImgPipeline,
    UnCLIPInpaintPipeline,
    UnCLIPUpscalePipeline,
    UnCLIPPriorPipeline,
):
    setattr(diffusers, _pipeline.__name__, _pipeline)
