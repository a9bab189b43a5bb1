"""Networks as they are saved: whether a folder holds one that is whole, and the network in it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unclip.errors import UserError

REMEDY = "copy, download or train the model again"
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


# What they raise for one.
BAD = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    SafetensorError,
)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn what diffusers, safetensors and the hub raise for a bad model into one line, a UserError."""
    try:
        yield
    except UserError:
        raise
    except BAD as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot load the {what}: {reason:.300}") from error


def load_network(kinds: Any, run: str | Path) -> Any:
    """The network in a folder, or the one in its `model` where it is the output of a run; float32.

    Args:
        kinds: the class that it is of, or a tuple of those it may be of.

    Raises:
        UserError: there is none, or a damaged one, or one of another class.
    """
    folder = Path(run)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    allowed = {kind.__name__: kind for kind in (kinds if isinstance(kinds, tuple) else (kinds,))}
    name = check_network_folder(folder, *allowed)
    with loading(f"{name} in {folder}"):
        network = allowed[name].from_pretrained(folder).float()
    network.register_to_config(_name_or_path="")  # else a model tells everybody where it was made
    return network


def check_network_folder(folder: Path, *kinds: str) -> str:
    """Look whether a saved network is there and whole, and of one of the classes `kinds`; gives its class.

    Raises:
        UserError: naming the file that is missing, cut off or of another class.
    """
    config = folder / "config.json"
    check_there(config)
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("_class_name", kinds[0])
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config} is damaged ({error}): {REMEDY}") from error
    if found not in kinds:
        expected = " or ".join(kinds)
        raise UserError(f"expected in {folder}: {expected}, found: {found}; name the folder of another run")
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights or [folder / "diffusion_pytorch_model.safetensors"]:
        check_there(path)
        tensors(path)
    return str(found)


def check_there(path: Path) -> None:
    """Raise UserError if a file of a model is missing."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {REMEDY}")


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape", …} of the tensors in a safetensors file, from its header alone.

    Raises:
        UserError: the file is cut off or not safetensors at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= SAFETENSORS_HEADER_LIMIT:
            raise UserError(f"{path} is no safetensors file ({size} bytes): {REMEDY}")
        header = file.read(length)
    if len(header) < length:
        raise UserError(
            f"{path} is truncated: its header alone has {length + 8} bytes, the file {size}; {REMEDY}"
        )
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file (its header is unreadable): {REMEDY}") from error
    if size < expected:
        raise UserError(f"{path} is truncated: expected {expected} bytes, got {size}; {REMEDY}")
    return entries
