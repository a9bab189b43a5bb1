"""Captioned art: building it, reading it, composing scenes from it, degrading and embedding it.

Names are loaded on first use, so that the command line can import `unclip.data.cli` without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip.data import degradations
    from unclip.data.build import build_emoji
    from unclip.data.embeddings import EmbeddingCache
    from unclip.data.images import CaptionedImages
    from unclip.data.render import render_svg
    from unclip.data.scenes import ComposedScenes, Scene

__all__ = [
    "CaptionedImages",
    "ComposedScenes",
    "EmbeddingCache",
    "Scene",
    "build_emoji",
    "degradations",
    "render_svg",
]

_HOME = {
    "CaptionedImages": "images",
    "ComposedScenes": "scenes",
    "Scene": "scenes",
    "EmbeddingCache": "embeddings",
    "build_emoji": "build",
    "render_svg": "render",
}


def __getattr__(name: str) -> Any:
    if name == "degradations":
        return importlib.import_module("unclip.data.degradations")
    if name not in _HOME:
        raise AttributeError(f"module 'unclip.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unclip.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
