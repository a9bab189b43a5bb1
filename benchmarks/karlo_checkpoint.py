"""Checkpoints of random numbers in the layout in which Karlo was published, of its own size and smaller.

The sizes are such that every draw of noise is a multiple of 16 numbers: then torch gives the same numbers whether they
are drawn for all pictures at once or for one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    Attributes:
        embed: D of CLIP. text: width, layers, heads and pieces of its text tower. prior: heads, their size, layers.
        side: of the decoder's picture. factor: of the upsampler. channels: of both, by level. blocks: of a level.
        context: width of the decoder's. head, groups: of its attention and of all norms.
    """

    embed: int
    text: tuple[int, int, int, int]
    prior: tuple[int, int, int]
    side: int
    factor: int
    channels: tuple[int, ...]
    blocks: int
    context: int
    head: int
    groups: int


SIZES = {
    "tiny": Size(16, (16, 2, 2, 66), (2, 12, 2), 16, 2, (16, 32), 1, 24, 8, 8),
    "small": Size(256, (256, 6, 4, 66), (8, 64, 8), 64, 4, (64, 128, 192, 256), 2, 384, 64, 32),
    # As published.
    "full": Size(768, (768, 12, 12, 49408), (32, 64, 20), 64, 4, (320, 640, 960, 1280), 3, 1536, 64, 32),
}
EMBED, SIDE, FACTOR = SIZES["tiny"].embed, SIZES["tiny"].side, SIZES["tiny"].factor

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
            parameter.normal_(generator=generator).mul_(scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return network.eval()


def networks(size: str = "tiny") -> dict[str, Any]:
    """The networks of both pipelines by component, of diffusers' and transformers' own classes."""
    return dict(each_network(size))


def each_network(size: str) -> Iterator[tuple[str, Any]]:
    """The networks of both pipelines by component, one after the other."""
    from diffusers import PriorTransformer, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    own = SIZES[size]
    heads, width, layers = own.prior
    makers = {
        "prior": lambda: PriorTransformer(
            num_attention_heads=heads, attention_head_dim=width, num_layers=layers, embedding_dim=own.embed
        ),
        "decoder": lambda: decoder(own),
        "text_proj": lambda: UnCLIPTextProjModel(
            clip_embeddings_dim=own.embed,
            time_embed_dim=4 * own.channels[0],
            cross_attention_dim=own.context,
        ),
        "text_encoder": lambda: text_encoder(own),
        "image_encoder": lambda: image_encoder(own),
        "super_res_first": lambda: UNet2DModel(**super_res(own)),
        "super_res_last": lambda: UNet2DModel(**super_res(own) | {"sample_size": None}),  # as published
    }
    for seed, (name, make) in enumerate(makers.items()):
        with init_empty_weights(
            include_buffers=False
        ):  # to be filled: initialising 2.4B numbers takes minutes
            network = make()
        for module in network.modules():
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        yield name, fill(network, seed)


def decoder(size: Size) -> Any:
    """The U-Net of the decoder."""
    from diffusers import UNet2DConditionModel

    levels = len(size.channels)
    return UNet2DConditionModel(
        sample_size=size.side,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * (levels - 1)),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * (levels - 1), "ResnetUpsampleBlock2D"),
        cross_attention_dim=size.context,
        attention_head_dim=size.head,
        class_embed_type="identity",
        **blocks(size),
    )


def super_res(size: Size) -> dict[str, Any]:
    """The configuration of an upsampler's U-Net."""
    levels = len(size.channels)
    return {
        "sample_size": size.side * size.factor,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D",) * levels,
        "up_block_types": ("ResnetUpsampleBlock2D",) * levels,
        "add_attention": False,
        **blocks(size),
    }


def blocks(size: Size) -> dict[str, Any]:
    """What both U-Nets have in common."""
    return {
        "block_out_channels": size.channels,
        "layers_per_block": size.blocks,
        "norm_num_groups": size.groups,
        "resnet_time_scale_shift": "scale_shift",
    }


def text_encoder(size: Size) -> Any:
    """CLIP's text tower."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width, layers, heads, pieces = size.text
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0}
    return CLIPTextModelWithProjection(
        CLIPTextConfig(**tower(width, layers, heads, size.embed), vocab_size=pieces, **special)
    )


def image_encoder(size: Size) -> Any:
    """CLIP's image tower, small whatever the size."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(**tower(16, 2, 2, size.embed), image_size=32, patch_size=8)
    )


def tower(width: int, layers: int, heads: int, embed: int) -> dict[str, int]:
    """What both towers have in common."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": embed,
    }


def vocabulary() -> dict[str, int]:
    """Pieces of the tiny tokenizer; "!" is 0, with which the published one pads."""
    letters = [*"!abcdefghijklmnopqrstuvwxyz,"]
    pieces = [*letters, *(f"{each}</w>" for each in letters), "re", "red</w>", "ap", "app"]
    return {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


BOS, EOS = (vocabulary()[each] for each in ("<|startoftext|>", "<|endoftext|>"))


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


def write_checkpoint(
    folder: Path, index: dict[str, Any] = TEXT_TO_IMAGE, variant: str | None = None, size: str = "tiny"
) -> Path:
    """A checkpoint as it was published."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, network in each_network(size):
        if name in index:
            network.save_pretrained(folder / name, variant=variant, max_shard_size="20GB")
    for name in index:
        if name in SCHEDULERS:
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


def deprecated_pipeline(
    folder: Path, index: dict[str, Any] = TEXT_TO_IMAGE, parts: dict[str, Any] | None = None
) -> Any:
    """diffusers' own pipeline in memory, of the networks that a tiny checkpoint holds, or of those given."""
    import diffusers
    from transformers import CLIPTokenizer

    parts = {name: part for name, part in (parts or networks()).items() if name in index}
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if "feature_extractor" in index:
        parts["feature_extractor"] = image_processor()
    for name, config in SCHEDULERS.items():
        if name in index:
            parts[name] = diffusers.UnCLIPScheduler(clip_sample=True, **config)
    pipe = getattr(diffusers, index["_class_name"])(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
