"""Reading a prior without a decoder: Karlo's and Kandinsky's with their CLIP, and single networks such as ECLIPSE's.

Of a published pipeline only what the prior needs is fetched, checked and read.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer
from safetensors.torch import load_file
from torch import nn

from unclip.clip import TransformersCLIP
from unclip.errors import UserError
from unclip.models import PRIORS, EclipsePrior, KarloPrior
from unclip.models.saved import load_network, loading

from .loading import fetch, may_be_hub_id, published_folder, read_index, read_json
from .memory import Stored, in_memory
from .networks import own_scheduler, read_network, scheduler_class, weights_files
from .published import check_components, component_loaders, refuse_unknown

# Pipelines of diffusers that have a prior -> what its parts are called besides prior, text_encoder and tokenizer.
KANDINSKY = {"scheduler": "scheduler", "pictures": ("image_encoder", "image_processor")}
LAYOUTS: dict[str, dict[str, Any]] = {
    "UnCLIPPipeline": {"scheduler": "prior_scheduler", "pictures": ()},
    "KandinskyPriorPipeline": KANDINSKY,
    "KandinskyV22PriorPipeline": KANDINSKY,
}
CONFIG = "config.json"


def prior_folder(source: str | Path | None, **hub: Any) -> Path | None:
    """The folder of a published pipeline that has a prior; of a hub repository the prior's parts are fetched.

    Args: hub: arguments of `from_pretrained`, of which those say what is fetched and where from.

    Returns: None for a model of this package.
    """
    return (
        None if source is None else published_folder(source, {kind: _parts(kind) for kind in LAYOUTS}, **hub)
    )


def read_prior(
    folder: Path,
    *,
    without: Collection[str] = (),
    low_memory: bool = False,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> tuple[dict[str, Any], Stored | None]:
    """The components clip, prior and prior_scheduler of a folder that `prior_folder` found.

    Args:
        without: components that the caller brings; they need not be there.
        low_memory: give clip and prior without their numbers, and what reads them.

    Raises:
        UserError: a part is missing, cut off, pickled or does not fit; an option is unknown.
    """
    refuse_unknown(hub)
    kind = read_index(folder)["_class_name"]
    brought = {"clip": _clip_parts(kind), "prior": ("prior",), "prior_scheduler": (_scheduler(kind),)}
    omitted = {part for name in without for part in brought.get(name, ())}
    wanted = tuple(name for name in _parts(kind) if name not in omitted)
    for name in wanted:
        _refuse_pickles(folder / name)
    check_components(folder, wanted, kind, variant)

    parts, stored = in_memory(
        partial(component_loaders, folder, {"clip", "prior"} - set(without)),
        low_memory=low_memory,
        variant=variant,
        dtype=dtype or torch_dtype,
    )
    if "prior_scheduler" not in without:
        own = folder / _scheduler(kind)
        parts["prior_scheduler"] = scheduler_class(own).from_pretrained(own)
    return parts, stored


def prior_of_diffusers(pipeline: Any) -> dict[str, Any]:
    """clip, prior and prior_scheduler of a pipeline of diffusers in memory, on the same tensors.

    Raises:
        UserError: it is no pipeline with a prior that is known here.
    """
    kind, parts = type(pipeline).__name__, pipeline.components
    if kind not in LAYOUTS:
        raise UserError(f"{kind} has no prior that is known here: expected one of {', '.join(LAYOUTS)}")
    clip = ("text_encoder", "tokenizer", *LAYOUTS[kind]["pictures"])
    return {
        "clip": TransformersCLIP.from_parts(*(parts[name] for name in clip)),
        "prior": KarloPrior.from_diffusers(parts["prior"]),
        "prior_scheduler": own_scheduler(parts[_scheduler(kind)]),
    }


def load_prior(
    source: str | Path,
    *,
    subfolder: str = "",
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> nn.Module:
    """A prior's network alone, for `prior=` of any pipeline whose CLIP it was trained on; it brings no CLIP of its own.

    Args:
        source: a folder or hub repository with config.json and weights: of this package's priors, of diffusers'
            PriorTransformer as Karlo and Kandinsky have it, or of ECLIPSE's.
        subfolder: where in it, as "prior" of a pipeline.
        hub: cache_dir, local_files_only, revision and token.

    Raises:
        UserError: there is none, or it is of another kind, pickled or damaged.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not may_be_hub_id(source):
            raise UserError(f"no folder at {source}: give that of a prior, or a hub id (owner/name)")
        with loading(f"prior {source}"):
            folder = fetch(str(source), variant, (subfolder,), **hub)
    folder = folder / subfolder
    config = read_json(folder / CONFIG)
    name = config.get("_class_name")
    if name in {kind.__name__ for kind in PRIORS}:
        return load_network(PRIORS, folder).to(dtype=dtype)
    if name != PriorTransformer.__name__:
        raise UserError(f"{folder / CONFIG} is of a {name}, which is no prior: name the folder of a prior")
    _refuse_pickles(folder)
    if config.get("additional_embeddings") == 1 + EclipsePrior.step_tokens:
        return read_eclipse(folder, variant, dtype)
    return KarloPrior.from_diffusers(read_network(PriorTransformer, folder, variant, dtype))


def read_eclipse(folder: Path, variant: str | None = None, dtype: torch.dtype | None = None) -> EclipsePrior:
    """A prior of ECLIPSE from its repository's config.json and safetensors; float32 unless told otherwise."""
    files, config = weights_files(folder, variant), read_json(folder / CONFIG)
    with loading(f"EclipsePrior in {folder}"):
        tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
        try:
            return EclipsePrior.from_tensors(config, tensors).to(dtype or torch.float32)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error


def _scheduler(kind: str) -> str:
    return str(LAYOUTS[kind]["scheduler"])


def _clip_parts(kind: str) -> tuple[str, ...]:
    return ("text_encoder", "tokenizer", *LAYOUTS[kind]["pictures"])


def _parts(kind: str) -> tuple[str, ...]:
    return ("prior", _scheduler(kind), *_clip_parts(kind))


def _refuse_pickles(folder: Path) -> None:
    """Raise UserError where a network has pickled weights alone, with a remedy that serves a single one."""
    pickles = sorted(path.name for path in folder.glob("*pytorch_model*.bin"))
    if pickles and not list(folder.glob("*.safetensors")):
        own = pickles[0].replace("pytorch_model", "model", not pickles[0].startswith("diffusion"))
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which can run any code, and is not loaded: take a revision with "
            f"safetensors, or write {own.removesuffix('.bin')}.safetensors beside it by "
            "safetensors.torch.save_file(torch.load(PICKLE, weights_only=True), FILE)"
        )
