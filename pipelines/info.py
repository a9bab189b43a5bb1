"""What a pipeline folder holds, read from its small files and from the headers of its weights."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import unclip
from unclip.errors import UserError
from unclip.models import PRIORS
from unclip.models.saved import check_network_folder, tensors

from .inputs import Settings
from .loading import PRIORS_FOLDER, components, is_published, locate, read_index
from .published import DEFAULTS as PUBLISHED_DEFAULTS

VERSIONS_OF = ("torch", "diffusers", "transformers", "open_clip_torch", "safetensors", "accelerate")


def model_info(model: str | Path | None) -> dict[str, Any]:
    """Versions, and a model's components with their parameters (as in the files), bytes, sizes and defaults.

    Raises:
        UserError: no whole pipeline folder there.
    """
    folder = Path(locate(model))
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}: download the repository first, then name its folder")
    index = read_index(folder)
    parts = {
        name: _component(folder / name, kind)
        for name, kind in components(folder).items()
        if "Scheduler" in kind or (folder / name / "config.json").is_file()  # a tokenizer has none
    }
    # Priors that calls may ask for by name; whatever else lies there is none.
    for path in sorted(filter(Path.is_dir, (folder / PRIORS_FOLDER).glob("*"))):
        kind = check_network_folder(path, *(each.__name__ for each in PRIORS))
        parts[f"{PRIORS_FOLDER}/{path.name}"] = _component(path, kind)
    defaults: dict[str, Any] = PUBLISHED_DEFAULTS if is_published(index) else index
    return {
        "unclip": unclip.__version__,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "model": str(folder),
        "sizes": _sizes(parts),
        "defaults": {name: defaults[name] for name in Settings.__dataclass_fields__ if name in defaults},
        "components": parts,
        "parameters": sum(part.get("parameters", 0) for part in parts.values()),
        "bytes": sum(part.get("bytes", 0) for part in parts.values()),
    }


def _sizes(parts: dict[str, Any]) -> list[int]:
    """Sides in pixels of the pictures that the decoder and each upsampler make."""
    config = parts["decoder"]["config"]
    sizes = [config["sample_size"] if "sample_size" in config else config["unet_config"]["sample_size"]]
    if "super_res_first" in parts:  # as published
        return [*sizes, parts["super_res_first"]["config"]["sample_size"]]
    for name in ("upsampler_256", "upsampler_1024"):
        if name in parts:
            sizes.append(sizes[-1] * parts[name]["config"]["factor"])
    return sizes


def _component(folder: Path, kind: str) -> dict[str, Any]:
    if "Scheduler" in kind:
        return {"class": kind}
    files = sorted(folder.glob("*.safetensors"))
    entries = [entry for path in files for entry in tensors(path).values()]
    return {
        "class": kind,
        "parameters": sum(math.prod(entry["shape"]) for entry in entries),
        "bytes": sum(path.stat().st_size for path in files),
        "dtypes": sorted({entry["dtype"] for entry in entries}),
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
    }
