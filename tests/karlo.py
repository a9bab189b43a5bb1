"""Tiny checkpoints of random numbers in the layout in which Karlo was published, and the networks in them.

The sizes are such that every draw of noise is a multiple of 16 numbers, as in the real ones: then torch gives the same
numbers whether they are drawn for all pictures at once or for one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

EMBED, SIDE, FACTOR = 16, 16, 2

# As published: kakaobrain/karlo-v1-alpha and its image variations.
TEXT_TO_IMAGE = {
    "_class_name": "UnCLIPPipeline",
    "_diffusers_version": "0.15.0.dev0",
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
VARIATIONS = {
    **{name: part for name, part in TEXT_TO_IMAGE.items() if not name.startswith("prior")},
    "_class_name": "UnCLIPImageVariationPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}
SCHEDULERS = {
    "prior_scheduler": {
        "variance_type": "fixed_small_log",
        "prediction_type": "sample",
        "clip_sample_range": 5.0,
    },
    "decoder_scheduler": {
        "variance_type": "learned_range",
        "prediction_type": "epsilon",
        "clip_sample_range": 1.0,
    },
    "super_res_scheduler": {
        "variance_type": "fixed_small_log",
        "prediction_type": "epsilon",
        "clip_sample_range": 1.0,
    },
}


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Every parameter and statistic random; a network that began at zero would hide what never arrives."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return network.eval()


def networks() -> dict[str, Any]:
    """The networks of both pipelines by component, of diffusers' and transformers' own classes."""
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    towers = {"hidden_size": EMBED, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": EMBED}
    size = len(vocabulary())
    special = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 0}
    text = CLIPTextConfig(**towers, intermediate_size=24, vocab_size=size, **special)
    vision = CLIPVisionConfig(**towers, intermediate_size=24, image_size=32, patch_size=8)
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "resnet_time_scale_shift": "scale_shift"}
    decoder = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        class_embed_type="identity",
        norm_num_groups=8,
        **blocks,
    )
    super_res = {
        "sample_size": SIDE * FACTOR,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "add_attention": False,
        "norm_num_groups": 8,
        **blocks,
    }
    made = {
        "prior": PriorTransformer(
            num_attention_heads=2, attention_head_dim=12, num_layers=2, embedding_dim=EMBED, num_embeddings=77
        ),
        "decoder": decoder,
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=EMBED, time_embed_dim=64, cross_attention_dim=24
        ),
        "text_encoder": CLIPTextModelWithProjection(text),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "super_res_first": UNet2DModel(**super_res),
        "super_res_last": UNet2DModel(**{**super_res, "sample_size": None}),  # as it was published
    }
    return {name: fill(network, seed) for seed, (name, network) in enumerate(made.items())}


def vocabulary() -> dict[str, int]:
    """Pieces of the tiny tokenizer; "!" is 0, with which the published one pads."""
    letters = [*"!abcdefghijklmnopqrstuvwxyz,"]
    pieces = [*letters, *(f"{each}</w>" for each in letters), "re", "red</w>", "ap", "app"]
    return {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path) -> Path:
    """The files of a CLIPTokenizer as it was published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\na p\nap p\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_checkpoint(folder: Path, index: dict[str, Any] = TEXT_TO_IMAGE, variant: str | None = None) -> Path:
    """A checkpoint as it was published."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    parts = networks()
    for name in index:
        if name in parts:
            parts[name].save_pretrained(folder / name, variant=variant)
        elif name in SCHEDULERS:
            config = {"_class_name": "UnCLIPScheduler", "_diffusers_version": "0.15.0.dev0"}
            config |= {"clip_sample": True, "num_train_timesteps": 1000, **SCHEDULERS[name]}
            (folder / name).mkdir()
            (folder / name / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
        elif name == "tokenizer":
            write_tokenizer(folder / name)
        elif name == "feature_extractor":
            image_processor().save_pretrained(folder / name)
    return folder


def image_processor() -> Any:
    """As CLIP's, for 32 px."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=32, size=32)


def deprecated_pipeline(folder: Path, index: dict[str, Any] = TEXT_TO_IMAGE) -> Any:
    """diffusers' own pipeline in memory, of the networks that a checkpoint holds."""
    import diffusers
    from transformers import CLIPTokenizer

    parts = {name: part for name, part in networks().items() if name in index}
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if "feature_extractor" in index:
        parts["feature_extractor"] = image_processor()
    for name, config in SCHEDULERS.items():
        if name in index:
            parts[name] = diffusers.UnCLIPScheduler(clip_sample=True, **config)
    pipe = getattr(diffusers, index["_class_name"])(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
