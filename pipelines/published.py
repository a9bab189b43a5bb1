"""Reading unCLIP checkpoints as they were published for diffusers (Karlo), which diffusers itself no longer can.

The folder's model_index.json names diffusers' deprecated classes; here their tensors become the components of our
pipelines: text encoder and tokenizer, with image encoder and processor where they are, are `clip`; decoder and
text projection are `decoder`; the two super-resolution networks are `upsampler_256`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel

from unclip.clip import TransformersCLIP
from unclip.diffusion import UnCLIPScheduler
from unclip.errors import UserError
from unclip.models import KarloDecoder, KarloPrior, KarloUpsampler, UnCLIPTextProjModel
from unclip.models.saved import REMEDY, check_there, loading, tensors

from .loading import FORMER, HUB_OPTIONS, INDEX, is_published, read_index

ALWAYS = ("decoder", "text_proj", "text_encoder", "tokenizer", "super_res_first", "super_res_last")
WITH_PRIOR = ("prior", "prior_scheduler")
WITH_PICTURES = ("image_encoder", "feature_extractor")
NETWORKS: dict[str, Any] = {
    "prior": PriorTransformer,
    "decoder": UNet2DConditionModel,
    "text_proj": UnCLIPTextProjModel,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
}
SCHEDULERS = {  # as published -> as here
    "prior_scheduler": "prior_scheduler",
    "decoder_scheduler": "decoder_scheduler",
    "super_res_scheduler": "upsampler_256_scheduler",
}
Load = Callable[[Any, Path], Any]  # (class, folder) -> network
# The defaults of the calls of diffusers' pipelines.
DEFAULTS: dict[str, Any] = {
    "prior_num_inference_steps": 25,
    "decoder_num_inference_steps": 25,
    "upsampler_num_inference_steps": 7,
    "prior_guidance_scale": 4.0,
    "decoder_guidance_scale": 8.0,
    "num_prior_candidates": 1,
    "plain_words": False,
    "as_in_diffusers": True,
}


def check_published(folder: Path, index: dict[str, Any], variant: str | None = None) -> None:
    """Look whether a published checkpoint is whole and of one piece, by its small files and the headers of its weights.

    Raises:
        UserError: naming the file that is missing, pickled, cut off or of another model, and the remedy.
    """
    wanted: tuple[str, ...] = ("decoder_scheduler", "super_res_scheduler", *ALWAYS)
    wanted += WITH_PRIOR if FORMER[index["_class_name"]] else WITH_PICTURES
    check_components(folder, wanted, index["_class_name"], variant)


def check_components(
    folder: Path, wanted: tuple[str, ...], pipeline: str, variant: str | None = None
) -> None:
    """`check_published` for some components of a pipeline of diffusers."""
    if missing := [name for name in wanted if not (folder / name).is_dir()]:
        raise UserError(f"{folder / missing[0]} is missing, a component of {pipeline}: {REMEDY}")
    for name in wanted:
        if name.endswith("scheduler"):
            scheduler_class(folder / name)
        elif name == "tokenizer":
            _check_tokenizer(folder / name)
        elif name in ("feature_extractor", "image_processor"):
            check_there(folder / name / "preprocessor_config.json")
        else:
            read_json(folder / name / "config.json")
            weights_files(folder / name, variant)
    _check_one_clip(folder, wanted)
    for name in NETWORKS.keys() & set(wanted):
        _check_shapes(NETWORKS[name], folder / name, variant)


def published_folder(source: str, **hub: Any) -> Path | None:
    """The folder of a published checkpoint, fetched if `source` is a hub repository's id; None for another model.

    Args: hub: arguments of `from_pretrained`, of which those say what is fetched and where from.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder if is_published(read_index(folder)) else None
    from huggingface_hub import hf_hub_download

    given = {name: hub[name] for name in HUB_OPTIONS if name in hub}
    with loading(f"model {source}"):
        index = Path(hf_hub_download(source, INDEX, **given))
        return fetch(source, hub.get("variant"), **given) if is_published(read_index(index.parent)) else None


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


def read_published(
    folder: Path,
    *,
    without: Collection[str] = (),
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    **other: Any,
) -> dict[str, Any]:
    """The components of a published checkpoint, checked and loaded, but those that the caller brings.

    Raises:
        UserError: as `check_published` and `read_network` do; an option that is not known here.
    """
    if unknown := sorted(
        other.keys() - {*HUB_OPTIONS, "use_safetensors", "low_cpu_mem_usage", "force_download"}
    ):
        raise UserError(
            f"unknown option {unknown[0]!r}: a published checkpoint takes variant, torch_dtype, low_memory, components "
            "and defaults of this package's pipelines, and where it is fetched from"
        )
    index = read_index(folder)
    check_published(folder, index, variant)
    load = partial(read_network, variant=variant, dtype=dtype or torch_dtype)
    loaders = component_loaders(folder, index, load)
    made = {name: make() for name, make in loaders.items() if name not in without}
    return made | load_schedulers(folder, index)


def taken_over(pipeline: Any) -> dict[str, Any]:
    """The components of a pipeline of diffusers' deprecated classes in memory, on the same tensors."""
    parts = pipeline.components
    first, decoder = parts["super_res_first"], parts["decoder"]
    factor = first.config.sample_size // decoder.config.sample_size
    own: dict[str, Any] = {
        "clip": TransformersCLIP.from_parts(
            *(parts.get(name) for name in ("text_encoder", "tokenizer", "image_encoder", "feature_extractor"))
        ),
        "decoder": KarloDecoder.from_diffusers(decoder, parts["text_proj"]),
        "upsampler_256": KarloUpsampler.from_diffusers(first, parts["super_res_last"], factor),
    }
    if "prior" in parts:
        own["prior"] = KarloPrior.from_diffusers(parts["prior"])
    for former, name in SCHEDULERS.items():
        if former in parts:
            own[name] = UnCLIPScheduler.from_config(parts[former].config)
    return own


def component_loaders(folder: Path, index: dict[str, Any], load: Load) -> dict[str, Callable[[], Any]]:
    """Component of this package's pipelines -> what makes it.

    Args: load: what makes a network of its class and folder: `read_network`, or `outline` for none of its numbers.
    """

    def network(name: str) -> Any:
        return load(NETWORKS[name], folder / name)

    def clip() -> TransformersCLIP:
        with loading(f"CLIP in {folder}"):
            return TransformersCLIP.from_checkpoint(folder, load)

    loaders: dict[str, Callable[[], Any]] = {
        "clip": clip,
        "decoder": lambda: KarloDecoder.from_diffusers(network("decoder"), network("text_proj")),
        "upsampler_256": lambda: KarloUpsampler.from_diffusers(
            network("super_res_first"), network("super_res_last"), _factor(folder)
        ),
    }
    if FORMER[index["_class_name"]]:
        loaders["prior"] = lambda: KarloPrior.from_diffusers(network("prior"))
    return loaders


def load_schedulers(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The schedulers of a published checkpoint, and None for a prior that it has not."""
    with_prior = FORMER[index["_class_name"]]
    absent = {} if with_prior else {"prior": None, "prior_scheduler": None}
    with loading(f"schedulers in {folder}"):
        return absent | {
            own: scheduler_class(folder / former).from_pretrained(folder / former)
            for former, own in SCHEDULERS.items()
            if with_prior or former != "prior_scheduler"
        }


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


def _check_tokenizer(folder: Path) -> None:
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
        return
    read_json(folder / "vocab.json")
    check_there(folder / "merges.txt")


def _check_one_clip(folder: Path, parts: tuple[str, ...]) -> None:
    """Raise UserError where a network was made for embeddings of another size than the text encoder's."""
    keys = {"prior": "embedding_dim", "text_proj": "clip_embeddings_dim", "image_encoder": "projection_dim"}
    own = read_json(folder / "text_encoder" / "config.json").get("projection_dim", 512)
    for name, key in keys.items():
        if name not in parts:
            continue
        found = read_json(folder / name / "config.json").get(key, 512 if name == "image_encoder" else 768)
        if found != own:
            raise UserError(
                f"{folder / name / 'config.json'} belongs to another CLIP: its {key} is {found}, the text encoder's "
                f"projection_dim {own}; take both from one checkpoint"
            )


def _check_shapes(kind: Any, folder: Path, variant: str | None) -> None:
    """Raise UserError where a tensor is of another shape than the configuration says."""
    expected = {name: list(tensor.shape) for name, tensor in outline(kind, folder).state_dict().items()}
    for path in weights_files(folder, variant):
        for name, entry in tensors(path).items():
            if name in expected and entry["shape"] != expected[name]:
                raise UserError(
                    f"{path} does not fit the config.json beside it: expected {name} of shape {expected[name]}, got "
                    f"{entry['shape']}; take both from one checkpoint"
                )


def _factor(folder: Path) -> int:
    """How much larger the upsampler's pictures are than the decoder's.

    Raises:
        UserError: a size is missing, or the larger is no multiple of the smaller.
    """
    paths = [folder / name / "config.json" for name in ("decoder", "super_res_first")]
    sizes: list[Any] = [read_json(path).get("sample_size") for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{path} must have a sample_size in pixels, got {size!r}: {REMEDY}")
    if sizes[1] % sizes[0]:
        raise UserError(
            f"{paths[1]} makes pictures of {sizes[1]} px, no multiple of the decoder's {sizes[0]}: {REMEDY}"
        )
    return sizes[1] // sizes[0]


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
