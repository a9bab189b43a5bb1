"""Load an open_clip model by name, local folder or configuration, with all that is needed to rebuild it offline."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from unclip.clip.tokenize import BytePairTokenizer, FileTokenizer, TextTokenizer
from unclip.clip.towers import build_clip
from unclip.errors import UserError


@dataclass(frozen=True)
class OpenCLIPSource:
    """A module with its tokenizer and self-contained architecture; mean/std are those of pixels in [0, 1]."""

    module: nn.Module
    tokenizer: TextTokenizer
    architecture: dict[str, Any]
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)


def load_open_clip(name: str | dict[str, Any], pretrained: str | None = None) -> OpenCLIPSource:
    """Load `name` (see FrozenCLIP.from_open_clip); the only function here that may download, and only for weights.

    Raises:
        UserError: unknown name, or not a plain CLIP.
    """
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    if isinstance(name, dict):
        context_length = name["text_cfg"].get("context_length", 77)
        return OpenCLIPSource(build_clip(name), BytePairTokenizer(context_length), name, mean, std)
    if "hf-hub:" not in name and "local-dir:" not in name and name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1, cutoff=0.0)[0]
        raise UserError(
            f"open_clip has no model {name!r}; the nearest is {near!r} (or give 'local-dir:PATH')"
        )
    module = open_clip.create_model(name, pretrained=pretrained)
    if not isinstance(module, (CLIP, CustomTextCLIP)):
        raise UserError(f"{name!r} is a {type(module).__name__}; choose a plain CLIP such as 'ViT-B-32'")
    architecture = open_clip.get_model_config(name)
    architecture["custom_text"] = isinstance(module, CustomTextCLIP)
    _inline_text_config(architecture["text_cfg"], module)
    preprocess = getattr(module.visual, "preprocess_cfg", {})
    tokenizer = _tokenizer_of(open_clip.get_tokenizer(name), architecture["text_cfg"])
    return OpenCLIPSource(
        module, tokenizer, architecture, preprocess.get("mean", mean), preprocess.get("std", std)
    )


def _inline_text_config(text_cfg: dict[str, Any], module: Any) -> None:
    """Put a transformers tower's configuration itself in the place of its hub name."""
    if text_cfg.pop("hf_model_name", None):
        text_cfg.pop("hf_model_pretrained", None)
        text_cfg["hf_config"] = module.text.config.to_dict()


def _tokenizer_of(tokenizer: Any, text_cfg: dict[str, Any]) -> TextTokenizer:
    context_length = text_cfg.get("context_length", 77)
    if isinstance(tokenizer, SimpleTokenizer):
        return BytePairTokenizer(context_length)
    fast = tokenizer.tokenizer
    hf_config = text_cfg.get("hf_config")
    pad_id = hf_config["pad_token_id"] if hf_config else text_cfg.get("pad_id", fast.pad_token_id)
    clean = text_cfg.get("tokenizer_kwargs", {}).get("clean", "whitespace")
    # open_clip's own text towers add positions for, and pool over, the whole window.
    return FileTokenizer(
        fast.backend_tokenizer, context_length, pad_id=pad_id, fixed_length=hf_config is None, clean=clean
    )
