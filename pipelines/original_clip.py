"""CLIP of OpenAI, as a folder of transformers holds it, apart: text encoder, tokenizer, image encoder, image processor.

The original Karlo files come without it, since Karlo was trained on openai/clip-vit-large-patch14 as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from unclip.errors import UserError
from unclip.models.saved import check_there, loading, tensors

from .loading import read_json
from .pickles import read_state

NEEDED = "a folder of transformers' openai/clip-vit-large-patch14 (config.json, model.safetensors, tokenizer)"
PAD = "!"  # the token of number 0, with which Karlo fills up captions
TOKENIZER = ("vocab.json", "merges.txt")
LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
    "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
# Settings that no shape tells. Others of a CLIP's configuration are of transformers, and old.
SETTINGS = (
    "num_attention_heads", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_factor",
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "image_size", "patch_size", "num_channels",
)  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """A half of CLIP: where its tensors lie, its class in transformers, and tensors that it cannot be without."""

    prefix: str
    projection: str
    config: str
    architecture: str
    model_type: str
    others: tuple[str, ...]


TEXT = Tower(
    "text_model.",
    "text_projection.weight",
    "text_config",
    "CLIPTextModelWithProjection",
    "clip_text_model",
    (
        "embeddings.token_embedding.weight", "embeddings.position_embedding.weight",
        "final_layer_norm.weight", "final_layer_norm.bias",
    ),
)  # fmt: skip
IMAGE = Tower(
    "vision_model.",
    "visual_projection.weight",
    "vision_config",
    "CLIPVisionModelWithProjection",
    "clip_vision_model",
    (
        "embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight",
        "pre_layrnorm.weight", "pre_layrnorm.bias", "post_layernorm.weight", "post_layernorm.bias",
    ),
)  # fmt: skip


def tower_of(folder: Path, tower: Tower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a half of CLIP; `position_ids`, which are counted anew, are left out.

    Raises:
        UserError: the folder is none of a CLIP, or a tensor is missing.
    """
    whole = read_json(folder / "config.json")
    if not isinstance(whole.get(tower.config), dict):
        raise UserError(f"{folder / 'config.json'} is of no CLIP: expected {NEEDED}")
    given = whole[tower.config] | (whole.get(f"{tower.config}_dict") or {})
    own = _read(folder, lambda name: name.startswith(tower.prefix) or name == tower.projection)
    layers = len({name.split(".")[3] for name in own if name.startswith(f"{tower.prefix}encoder.layers.")})
    expected = [tower.projection, *(tower.prefix + name for name in tower.others)]
    expected += [
        f"{tower.prefix}encoder.layers.{n}.{module}.{kind}"
        for n in range(max(1, layers))
        for module in LAYER
        for kind in ("weight", "bias")
    ]
    for name in expected:
        if name not in own:
            raise UserError(f"the CLIP in {folder} has no tensor {name}: expected {NEEDED}")
    for name in sorted(own.keys() - set(expected)):
        raise UserError(f"nothing is known of the tensor {name} in {folder}: expected {NEEDED}")
    with loading(f"CLIP in {folder}"):
        embed, width = own[tower.projection].shape
        config = {
            "architectures": [tower.architecture],
            "model_type": tower.model_type,
            "num_attention_heads": width // 64,
            **{name: given[name] for name in SETTINGS if given.get(name) is not None},
            "hidden_size": width,
            "intermediate_size": len(own[f"{tower.prefix}encoder.layers.0.mlp.fc1.bias"]),
            "num_hidden_layers": layers,
            "projection_dim": embed,
        }
        if tower is TEXT:
            config["vocab_size"], config["max_position_embeddings"] = (
                len(own[tower.prefix + name]) for name in tower.others[:2]
            )
    return config, own


def write_tokenizer(source: Path, length: int, folder: Path) -> None:
    """The tokenizer's files as diffusers has them: captions of `length` tokens, filled up by number 0."""
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER:
        shutil.copyfile(source / name, folder / name)
    own = {
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "do_lower_case": True,
        "model_max_length": length,
        "pad_token": PAD,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def check_tokenizer(source: Path) -> None:
    """Raise UserError where CLIP's word pieces are missing or others."""
    for name in TOKENIZER:
        check_there(source / name)
    if read_json(source / "vocab.json").get(PAD) != 0:
        raise UserError(
            f"expected in {source / 'vocab.json'} the number 0 for {PAD!r}: it is not OpenAI's CLIP"
        )


def _read(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if path.is_file():
        tensors(path)
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    elif (folder / "pytorch_model.bin").is_file():
        found = {n: tensor for n, tensor in read_state(folder / "pytorch_model.bin").items() if wanted(n)}
    else:
        raise UserError(f"no model.safetensors or pytorch_model.bin in {folder}: expected {NEEDED}")
    return {name: tensor for name, tensor in found.items() if not name.endswith(".position_ids")}
