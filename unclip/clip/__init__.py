"""Frozen CLIP encoders: the only room that imports open_clip."""

from unclip.clip.frozen import FrozenCLIP, TextEncoding

__all__ = ["FrozenCLIP", "TextEncoding"]
