"""Frozen CLIP encoders: the only room that imports open_clip and transformers' CLIP."""

from unclip.clip.frozen import FrozenCLIP, TextEncoding
from unclip.clip.transformers_clip import TransformersCLIP

__all__ = ["FrozenCLIP", "TextEncoding", "TransformersCLIP"]
