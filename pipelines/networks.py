"""Reading what diffusers and transformers saved, strictly: safetensors alone, every tensor there, none left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from unclip.diffusion import UnCLIPScheduler
from unclip.errors import UserError
from unclip.models.saved import REMEDY, check_there, loading, tensors

from .loading import read_json


def weights_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component, each whole by its header.

    Raises:
        UserError: there are none, or pickles alone, or one is cut off.
    """
    middle = f".{variant}" if has_variant(folder, variant) else ""
    for stem in ("diffusion_pytorch_model", "model"):
        shards = folder / f"{stem}.safetensors.index{middle}.json"
        whole = folder / f"{stem}{middle}.safetensors"
        if shards.is_file():
            places = read_json(shards).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{shards} is damaged (no weight_map): {REMEDY}")
            files = sorted({folder / str(name) for name in places.values()})
        elif whole.is_file():
            files = [whole]
        else:
            continue
        for path in files:
            check_there(path)
            tensors(path)
        return files
    if pickles := sorted(folder.glob(f"*pytorch_model*{middle}.bin")):
        raise UserError(
            f"{pickles[0]} is a pickle, which can run any code, and is not loaded: convert the checkpoint by "
            f"`unclip convert {folder.parent} --output DIR`"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    kind = f"weights of variant {variant!r}" if variant else "weights without a variant"
    raise UserError(
        f"{folder} has no {kind}"
        + (f", but {', '.join(others)}: choose another variant" if others else f": {REMEDY}")
    )


def has_variant(folder: Path, variant: str | None) -> bool:
    """Whether a component has weights of a variant; one that has not is read without, as diffusers does."""
    return variant is not None and any(folder.glob(f"*.{variant}*"))


def check_shapes(kind: Any, folder: Path, variant: str | None) -> None:
    """Raise UserError where a tensor is of another shape than the configuration says."""
    expected = {name: list(tensor.shape) for name, tensor in outline(kind, folder).state_dict().items()}
    for path in weights_files(folder, variant):
        for name, entry in tensors(path).items():
            if name in expected and entry["shape"] != expected[name]:
                raise UserError(
                    f"{path} does not fit the config.json beside it: expected {name} of shape {expected[name]}, got "
                    f"{entry['shape']}; take both from one checkpoint"
                )


def read_network(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype | None) -> Any:
    """A network of diffusers or transformers, every tensor of which was in its files; float32 unless told otherwise.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    of_diffusers = issubclass(kind, diffusers.ModelMixin)
    options: dict[str, Any] = {"torch_dtype" if of_diffusers else "dtype": dtype or torch.float32}
    with loading(f"{kind.__name__} in {folder}"):
        network, report = kind.from_pretrained(
            folder,
            variant=variant if has_variant(folder, variant) else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report.get("mismatched_keys", ())]
    wrong = [each for each in wrong if not str(each).endswith("position_ids")]  # a buffer of old transformers
    if wrong:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or of "
            f"another shape, e.g. {wrong[0]}; {REMEDY}"
        )
    return network.eval()


def outline(kind: Any, folder: Path) -> Any:
    """A network of diffusers or transformers without its numbers, on the meta device."""
    with loading(f"configuration of {kind.__name__} in {folder}"), torch.device("meta"):
        if issubclass(kind, diffusers.ModelMixin):
            return kind.from_config(kind.load_config(folder)).eval()
        return kind(kind.config_class.from_pretrained(folder)).eval()


def scheduler_class(folder: Path) -> Any:
    """The class of a saved scheduler: this package's own for Karlo's, else one of diffusers.

    Raises:
        UserError: it is unknown.
    """
    path = folder / "scheduler_config.json"
    name = read_json(path).get("_class_name")
    if name == UnCLIPScheduler.__name__:
        return UnCLIPScheduler
    found = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if found is None:
        raise UserError(
            f"{path} names the unknown scheduler {name!r}: write one of diffusers' there, as UnCLIPScheduler"
        )
    return found


def own_scheduler(scheduler: Any) -> Any:
    """A scheduler of diffusers; of its deprecated UnCLIPScheduler this package's own."""
    if type(scheduler).__name__ == UnCLIPScheduler.__name__:
        return UnCLIPScheduler.from_config(scheduler.config)
    return scheduler
