"""Reading tensors from PyTorch's pickles without running what they hold, and writing them as safetensors.

The only place where a pickle is opened, and only for `unclip convert`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unclip.errors import UserError

ZIP = b"PK"  # how files of torch >= 1.6 begin; they alone can be mapped into memory
# What PyTorch says of a pickle that names other things than tensors, numbers, texts and containers.
REFUSALS = ("GLOBAL", "Can only", "Trying to call", "TorchScript", "must be imported", "Unsupported class")


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors, numbers, texts and containers of them; nothing is run.

    Raises:
        UserError: it is missing or damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or download the checkpoint again")
    with path.open("rb") as file:
        mapped = file.read(2) == ZIP
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may end in any
        said = str(error)
        if any(each in said for each in REFUSALS):
            what = re.search(r"GLOBAL ([\w.]+)", said)
            raise UserError(
                f"{path} is a pickle that holds code{f' ({what[1]})' if what else ''}, not tensors alone, and is not "
                "loaded: get the weights as safetensors"
            ) from error
        raise UserError(
            f"{path} is no file of torch.save, or cut off ({path.stat().st_size} bytes): copy or download it again"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save` by name, which may lie in its "state_dict".

    Raises:
        UserError: as `read_pickle`, or there are none, or other things among them.
    """
    found = read_pickle(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"expected in {path} tensors by name, found: {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"expected in {path} tensors by name, found: {name!r}: {type(value).__name__}")
    return {name: value.detach() for name, value in found.items()}


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors, whatever memory they share; those of real numbers in `dtype`, if one is given.

    Raises:
        UserError: a number is too large for it.
    """
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = _in(dtype, name, tensor.detach()).contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    save_file(apart, path, metadata={"format": "pt"})


def _in(dtype: torch.dtype | None, name: str, tensor: Tensor) -> Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    if not torch.equal(rounded.isinf(), tensor.isinf()):
        raise UserError(
            f"{name} has numbers too large for {str(dtype).removeprefix('torch.')}: choose bfloat16 or float32"
        )
    return rounded
