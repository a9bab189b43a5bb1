"""Pipelines: subclasses of diffusers' DiffusionPipeline, composed of the stages in `unclip.pipelines.stages`."""

from __future__ import annotations

import diffusers

from .inputs import Settings
from .text_to_image import UnCLIPPipelineOutput, UnCLIPTextToImagePipeline

__all__ = ["Settings", "UnCLIPPipelineOutput", "UnCLIPTextToImagePipeline"]

# DiffusionPipeline.from_pretrained(folder) looks for the class named in model_index.json as an attribute of diffusers.
diffusers.UnCLIPTextToImagePipeline = UnCLIPTextToImagePipeline
