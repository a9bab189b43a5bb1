"""Reading unCLIP checkpoints as they were published for diffusers (Karlo), which diffusers itself no longer can.

The folder's model_index.json names diffusers' deprecated classes; here their tensors become the components of our
pipelines: text encoder and tokenizer, with image encoder and processor where they are, are `clip`; decoder and
text projection are `decoder`; the two super-resolution networks are `upsampler_256`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel

from unclip.clip import TransformersCLIP
from unclip.errors import UserError
from unclip.models import KarloDecoder, KarloPrior, KarloUpsampler, UnCLIPTextProjModel
from unclip.models.saved import REMEDY, check_there, loading

from .loading import FORMER, HUB_OPTIONS, read_index, read_json
from .memory import Load, Stored, in_memory
from .networks import check_shapes, own_scheduler, scheduler_class, weights_files

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
        check_shapes(NETWORKS[name], folder / name, variant)


def read_published(
    folder: Path,
    *,
    without: Collection[str] = (),
    low_memory: bool = False,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    **other: Any,
) -> tuple[dict[str, Any], Stored | None]:
    """The components of a published checkpoint but those that the caller brings, and with `low_memory` what reads them.

    Raises:
        UserError: as `check_published` and `read_network` do; an option that is not known here.
    """
    refuse_unknown(other)
    index = read_index(folder)
    check_published(folder, index, variant)
    names = {"clip", "decoder", "upsampler_256", *(("prior",) if FORMER[index["_class_name"]] else ())}
    parts, stored = in_memory(
        partial(component_loaders, folder, names - set(without)),
        low_memory=low_memory,
        variant=variant,
        dtype=dtype or torch_dtype,
    )
    return parts | load_schedulers(folder, index), stored


def refuse_unknown(options: Collection[str]) -> None:
    """Raise UserError for an option of `from_pretrained` that means nothing for a published checkpoint."""
    if unknown := sorted(set(options) - {*HUB_OPTIONS, "use_safetensors"}):
        raise UserError(
            f"unknown option {unknown[0]!r}: a published checkpoint takes variant, torch_dtype, low_memory, components "
            "and defaults of this package's pipelines, and where it is fetched from"
        )


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
            own[name] = own_scheduler(parts[former])
    return own


def component_loaders(folder: Path, names: Collection[str], load: Load) -> dict[str, Callable[[], Any]]:
    """Components of this package's pipelines -> what makes them out of a published checkpoint.

    Args:
        names: of the components that are wanted.
        load: what makes a network of its class and folder: `read_network`, or `outline` for none of its numbers.
    """

    def network(name: str) -> Any:
        return load(NETWORKS[name], folder / name)

    def clip() -> TransformersCLIP:
        with loading(f"CLIP in {folder}"):
            return TransformersCLIP.from_checkpoint(folder, load)

    loaders: dict[str, Callable[[], Any]] = {
        "clip": clip,
        "prior": lambda: KarloPrior.from_diffusers(network("prior")),
        "decoder": lambda: KarloDecoder.from_diffusers(network("decoder"), network("text_proj")),
        "upsampler_256": lambda: KarloUpsampler.from_diffusers(
            network("super_res_first"), network("super_res_last"), _factor(folder)
        ),
    }
    return {name: make for name, make in loaders.items() if name in names}


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
