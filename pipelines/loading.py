"""Finding a model and saying in one line what is wrong with it, before anything slow is done."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import unclip
from unclip.data.words import LEXICON_FILE
from unclip.errors import UserError
from unclip.models.saved import REMEDY, check_network_folder, check_there, loading

EMBEDDED = Path(unclip.__file__).parent / "weights" / "emoji"
INDEX = "model_index.json"
PRIORS_FOLDER = "priors"  # of a model's folder: further priors by their names
REQUIRED = ("clip", "decoder")
# Classes of diffusers whose checkpoints `unclip.pipelines.published` reads -> whether they have a prior.
FORMER = {"UnCLIPPipeline": True, "UnCLIPImageVariationPipeline": False}
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "token")


def locate(model: str | Path | None, required: Sequence[str] = REQUIRED) -> str:
    """Where a model lies: the embedded one for None, a checked folder, or a hub repository's id as it is.

    Args: required: the components that it must have.

    Raises:
        UserError: no such folder, or one that is not a whole pipeline.
    """
    if model is None:
        if not (EMBEDDED / INDEX).is_file():
            raise UserError(
                f"no embedded model at {EMBEDDED}: name a model folder (--model DIR); "
                "docs/training.md tells how to make one"
            )
        model = EMBEDDED
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_pipeline_folder(folder, required)
        return str(folder)
    name = str(model)
    if not may_be_hub_id(model):
        raise UserError(f"no model folder at {name}: give a folder with a {INDEX}, or a hub id (owner/name)")
    return name


def may_be_hub_id(model: str | Path) -> bool:
    """Whether a name has the form owner/name."""
    return isinstance(model, str) and not model.startswith((".", "/", "~")) and model.count("/") == 1


def find_lexicon(source: str, **hub: Any) -> Path | None:
    """The lexicon of plain words of a model that `locate` found; None if it has none.

    Args:
        hub: arguments of `from_pretrained`, of which those say where and how a hub repository is fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder.resolve() / LEXICON_FILE  # wherever the program goes before it is read
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    given = {name: hub[name] for name in HUB_OPTIONS if name in hub}
    try:
        return Path(hf_hub_download(source, LEXICON_FILE, **given))
    except (EntryNotFoundError, OSError):  # there is no such file, or no way to it
        return None


def find_priors(source: str, **hub: Any) -> Path:
    """The folder of further priors of a model that `locate` found, which need not be there.

    Args:
        hub: as of `find_lexicon`.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        given = {name: hub[name] for name in HUB_OPTIONS if name in hub}
        with suppress(OSError):  # there is no way to it
            folder = Path(snapshot_download(source, allow_patterns=f"{PRIORS_FOLDER}/*", **given))
    return folder.resolve() / PRIORS_FOLDER  # wherever the program goes before it is read


def published_folder(
    source: str | Path, layouts: Mapping[str, Collection[str] | None], **hub: Any
) -> Path | None:
    """The folder of a pipeline of diffusers; of a hub repository what is needed is fetched. None for another model.

    Args:
        layouts: the classes of pipelines that are meant -> the folders needed of each, None for all.
        hub: arguments of `from_pretrained`, of which those say what is fetched and where from.
    """
    folder = Path(source).expanduser().resolve()  # wherever the program goes before it is read
    if folder.is_dir():
        return folder if read_index(folder).get("_class_name") in layouts else None
    if not may_be_hub_id(source):
        return None
    from huggingface_hub import hf_hub_download

    given = {name: hub[name] for name in HUB_OPTIONS if name in hub}
    with loading(f"model {source}"):
        index = Path(hf_hub_download(str(source), INDEX, **given))
        kind = str(read_index(index.parent).get("_class_name"))
        return fetch(str(source), hub.get("variant"), layouts[kind], **given) if kind in layouts else None


def fetch(source: str, variant: str | None, parts: Collection[str] | None = None, **given: Any) -> Path:
    """The folder of a hub repository's snapshot: its configurations, and its weights in safetensors.

    Args:
        variant: of the weights, where a component has it.
        parts: the folders in it that are wanted, "" for the repository's own; all of them by default.
        given: HUB_OPTIONS.

    Raises:
        UserError: weights are there as pickles alone; said before anything large is fetched.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    if given.get("local_files_only"):
        return Path(snapshot_download(source, **given))
    names = list_repo_files(source, revision=given.get("revision"), token=given.get("token"))
    return Path(
        snapshot_download(source, allow_patterns=wanted_files(source, names, variant, parts), **given)
    )


def wanted_files(
    source: str, names: Sequence[str], variant: str | None, parts: Collection[str] | None = None
) -> list[str]:
    """Of the files of a hub repository those that `fetch` takes."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder = name.rpartition("/")[0]
        if "/" not in folder and (folder in parts if parts is not None else True):
            folders.setdefault(folder, []).append(name)
    wanted = [INDEX] if INDEX in names else []
    for own in folders.values():
        wanted += [name for name in own if name.endswith((".json", ".txt"))]
        weights = [name for name in own if name.endswith(".safetensors")]
        pickles = [name for name in own if name.endswith(".bin")]
        if pickles and not weights:
            raise UserError(
                f"{source} has {pickles[0]} as a pickle alone, which can run any code: download it by `hf download "
                f"{source} --local-dir FOLDER` and convert it by `unclip convert FOLDER --output DIR`"
            )
        of_variant = [name for name in weights if variant and f".{variant}" in name]
        wanted += of_variant or [name for name in weights if name.rpartition("/")[2].count(".") == 1]
    return wanted


def choose_device(name: str | None) -> str:
    """A device by name, or the best there is.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"no device {name!r} here: leave out --device, or give cpu") from error
    return name


def components(folder: Path) -> dict[str, str]:
    """Component -> class name of a pipeline folder, without those that are absent.

    Raises:
        UserError: no index, or a damaged one.
    """
    return {
        name: value[1]
        for name, value in read_index(folder).items()
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_") and value[1] is not None
    }


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a pipeline folder.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        hint = (
            "; it holds one network: build a pipeline with `unclip assemble`"
            if (folder / "config.json").is_file()
            else ""
        )
        raise UserError(f"no {INDEX} in {folder}: not a pipeline folder{hint}")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it is missing or damaged.
    """
    check_there(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {REMEDY}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (not a JSON object): {REMEDY}")
    return found


def is_published(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is of one of diffusers' deprecated unCLIP pipelines."""
    return index.get("_class_name") in FORMER


def check_pipeline_folder(folder: Path, required: Sequence[str] = REQUIRED) -> None:
    """Look whether every component is there and every weights file whole; published ones are checked on reading.

    Raises:
        UserError: naming the first file that is missing or cut off.
    """
    if is_published(read_index(folder)):
        return
    parts = components(folder)
    if missing := [name for name in required if name not in parts]:
        kind = read_index(folder).get("_class_name", "pipeline of no class")
        raise UserError(
            f"{folder} holds a {kind} without {', '.join(missing)}: name the folder of an unCLIP model"
        )
    for name, kind in parts.items():
        if "Scheduler" in kind:
            check_there(folder / name / "scheduler_config.json")
        else:
            check_network_folder(folder / name, kind)
