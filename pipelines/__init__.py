"""Pipelines: subclasses of diffusers' DiffusionPipeline, composed of the functions in `stages`."""

from __future__ import annotations

import diffusers

from .inputs import Settings
from .text_to_image import UnCLIPPipelineOutput, UnCLIPTextToImagePipeline

__all__ = ["Settings", "UnCLIPPipelineOutput", "UnCLIPTextToImagePipeline"]

# DiffusionPipeline.from_pretrained(folder) looks in diffusers for the class that model_index.json names, and imports no
# module that a folder names: it can load our models once this package is imported.
diffusers.UnCLIPTextToImagePipeline = UnCLIPTextToImagePipeline
