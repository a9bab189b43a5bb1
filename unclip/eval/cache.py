"""Features of the whole data set, computed once and kept as safetensors beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unclip.files import atomic_path


def cached(path: Path, fingerprint: str, compute: Callable[[], Tensor]) -> Tensor:
    """Read the tensor at `path` if it was made from the same `fingerprint`, else compute and keep it."""
    try:
        with safe_open(str(path), "pt") as file:
            if (file.metadata() or {}).get("fingerprint") == fingerprint:
                return file.get_tensor("features")
    except (OSError, SafetensorError):  # absent, or damaged
        pass
    features = compute()
    with atomic_path(path) as temporary:
        save_file({"features": features.contiguous()}, str(temporary), metadata={"fingerprint": fingerprint})
    return features


def cache_folder(data: Path, out: Path) -> Path:
    """DATA/cache for a data folder that can be written to, else OUT/cache."""
    root = data.parent if data.name == "shards" else data
    return root / "cache" if root.is_dir() and os.access(root, os.W_OK) else out / "cache"
