"""Pickled unCLIP checkpoints (Karlo v1 alpha) as safetensors, in the layout in which diffusers published them.

Two kinds are known by their files: a folder in that layout whose weights are pickles, and kakaobrain's own checkpoints,
whose tensors have other names (`original_names`) and which come without CLIP (`original_clip`). No code in a pickle is
ever run (`pickles`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors.torch import load_file

from unclip.errors import UserError
from unclip.files import atomic_dir
from unclip.models.saved import REMEDY, check_there, loading, tensors

from .assemble import check_output
from .loading import FORMER, INDEX, components, is_published, read_index, read_json
from .original_clip import IMAGE, NEEDED, TEXT, check_tokenizer, tower_of, write_tokenizer
from .original_names import Network, decoder_of, prior_of, upsamplers_of
from .pickles import read_pickle, read_state, write_safetensors

Jobs = dict[str, Callable[[Path], Any]]  # file or folder of the new checkpoint -> what writes it
VERSION = "0.15.0.dev0"  # of diffusers, as published
WEIGHTS = re.compile(
    r"(?:diffusion_)?pytorch_model[\w.-]*\.bin|(?:diffusion_pytorch_)?model[\w.-]*\.safetensors"
)
SHARDS = re.compile(r"(?:diffusion_)?pytorch_model\.bin\.index[\w.-]*\.json")
PICKLES = {
    ".bin",
    ".ckpt",
    ".pkl",
    ".pt",
    ".pth",
    ".th",
}  # that are no weights of a component: not taken over

PROCESSOR = "feature_extractor/preprocessor_config.json"

ORIGINALS = {
    "prior": "prior-ckpt*.ckpt",
    "statistics": "*stats.th",
    "decoder": "decoder-ckpt*.ckpt",
    "super_res": "*sr-ckpt*.ckpt",
}
CLASSES = {
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
WITH_PRIOR = {
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
}
WITH_PICTURES = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}
SCHEDULER = {
    "_class_name": "UnCLIPScheduler",
    "_diffusers_version": VERSION,
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small_log",
}
SCHEDULERS = {
    "prior_scheduler": SCHEDULER | {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder_scheduler": SCHEDULER | {"variance_type": "learned_range"},
    "super_res_scheduler": SCHEDULER,
}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    clip: str | Path | None = None,
    variations: bool = False,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint of Karlo as a folder of safetensors that `from_pretrained` reads.

    Args:
        source: a folder in the published layout, or one with kakaobrain's own files.
        out: the folder to write, whole or not at all. A pipeline folder that is there already is replaced.
        clip: for kakaobrain's own files, openai/clip-vit-large-patch14 as a folder of transformers.
        variations: of kakaobrain's own files make the pipeline of image variations, which has no prior.
        dtype: of the weights; by default as they are.

    Raises:
        UserError: the folder holds neither kind; a file is missing, damaged or holds code; a tensor is missing or
            left over; `out` holds other things.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if not source.is_dir():
        raise UserError(f"no folder at {source}: name the folder of the checkpoint")
    clip = None if clip is None else Path(clip).expanduser()
    for read in filter(None, (source, clip)):
        if out.resolve().is_relative_to(read.resolve()) or read.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out} overlaps {read}, which is read: choose another output folder")
    check_output(out)
    if (source / INDEX).is_file():
        if clip is not None or variations:
            raise UserError(
                f"{source} brings its own CLIP and kind of pipeline: leave out clip and variations"
            )
        jobs = _published(source, dtype)
    else:
        jobs = _originals(source, clip, variations, dtype)
    with atomic_dir(out) as folder:
        progress = logging.tqdm(jobs.items(), desc="convert", unit="file", disable=None)
        for name, write in progress:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
    return out


def _published(source: Path, dtype: torch.dtype | None) -> Jobs:
    """Of a folder in the published layout: weights are written anew, pickles of other things left, the rest copied."""
    if not is_published(index := read_index(source)):
        raise UserError(f"{source} holds a {index.get('_class_name')}: expected {' or '.join(FORMER)}")
    jobs: Jobs = {}
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        inside = len(place.parts) > 1
        target = str(place.with_name(_new_name(place.name)))
        if inside and WEIGHTS.fullmatch(place.name):
            if place.suffix == ".bin" and (source / target).is_file():
                continue  # the same weights are there as safetensors
            jobs[target] = partial(_rewrite, path, dtype)
        elif inside and SHARDS.fullmatch(place.name):
            jobs.setdefault(target, partial(_rename_shards, path))
        elif place.suffix not in PICKLES:
            jobs[str(place)] = partial(shutil.copyfile, path)
    _check_components(source, jobs)
    return jobs


def _check_components(source: Path, jobs: Jobs) -> None:
    """Raise UserError where a component of model_index.json has no weights, or not its configuration."""
    for name in components(source):
        if name == "tokenizer":
            continue
        if name == "feature_extractor":
            check_there(source / PROCESSOR)
        elif name.endswith("_scheduler"):
            check_there(source / name / "scheduler_config.json")
        else:
            check_there(source / name / "config.json")
            if not any(job.startswith(f"{name}/") and job.endswith(".safetensors") for job in jobs):
                raise UserError(f"{source / name} has no weights (*.bin or *.safetensors): {REMEDY}")


def _new_name(name: str) -> str:
    """`pytorch_model.fp16.bin` -> `model.fp16.safetensors`; the index of shards likewise."""
    if not (WEIGHTS.fullmatch(name) or SHARDS.fullmatch(name)):
        return name
    return re.sub(r"^pytorch_", "", re.sub(r"\.bin(?=$|\.index)", ".safetensors", name))


def _rewrite(path: Path, dtype: torch.dtype | None, to: Path) -> None:
    if path.suffix == ".bin":
        write_safetensors(read_state(path), to, dtype)
        return
    tensors(path)  # is it whole?
    if dtype is None:
        shutil.copyfile(path, to)
    else:
        write_safetensors(load_file(path), to, dtype)


def _rename_shards(path: Path, to: Path) -> None:
    index = read_json(path)
    with loading(f"index {path}"):
        index["weight_map"] = {name: _new_name(file) for name, file in dict(index["weight_map"]).items()}
    _write_json(index, to)


def _originals(source: Path, clip: Path | None, variations: bool, dtype: torch.dtype | None) -> Jobs:
    """Of kakaobrain's own files. All is looked at before anything is written; most tensors stay in the files so far."""
    files = _find_originals(source, variations)
    if clip is None:
        raise UserError(f"Karlo's own files come without CLIP: give {NEEDED} (--clip FOLDER)")
    if not clip.is_dir():
        raise UserError(f"no folder at {clip}: expected {NEEDED}")
    check_tokenizer(clip)
    networks: dict[str, Network] = {}
    if not variations:
        networks["prior"] = prior_of(read_state(files["prior"]), *_statistics(files["statistics"]))
    networks["decoder"], networks["text_proj"] = decoder_of(read_state(files["decoder"]))
    networks["super_res_first"], networks["super_res_last"] = upsamplers_of(read_state(files["super_res"]))
    towers = {"text_encoder": tower_of(clip, TEXT)}
    if variations:
        towers["image_encoder"] = tower_of(clip, IMAGE)
        check_there(clip / Path(PROCESSOR).name)
    _check_fit(networks, {name: config for name, (config, _) in towers.items()})

    kind = "UnCLIPImageVariationPipeline" if variations else "UnCLIPPipeline"
    parts = CLASSES | (WITH_PICTURES if variations else WITH_PRIOR)
    saved = {name: (_config(each), each.tensors, "diffusion_pytorch_") for name, each in networks.items()}
    saved |= {name: (config, own, "") for name, (config, own) in towers.items()}
    jobs: Jobs = {}
    for name, (config, own, stem) in saved.items():
        jobs[f"{name}/config.json"] = partial(_write_json, config)
        jobs[f"{name}/{stem}model.safetensors"] = partial(write_safetensors, own, dtype=dtype)
    for name in sorted(SCHEDULERS.keys() & parts.keys()):
        jobs[f"{name}/scheduler_config.json"] = partial(_write_json, SCHEDULERS[name])
    jobs["tokenizer"] = partial(write_tokenizer, clip, towers["text_encoder"][0]["max_position_embeddings"])
    if variations:
        jobs[PROCESSOR] = partial(shutil.copyfile, clip / Path(PROCESSOR).name)
    index = {"_class_name": kind, "_diffusers_version": VERSION, **dict(sorted(parts.items()))}
    jobs[INDEX] = partial(_write_json, index)
    return jobs


def _find_originals(source: Path, variations: bool) -> dict[str, Path]:
    found = {name: sorted(source.glob(pattern)) for name, pattern in ORIGINALS.items()}
    wanted = [name for name in ORIGINALS if not variations or name in ("decoder", "super_res")]
    missing = [ORIGINALS[name] for name in wanted if not found[name]]
    if not any(found.values()):
        raise UserError(
            f"no unCLIP checkpoint in {source}: expected {INDEX} of a published one, or Karlo's own files "
            f"{', '.join(missing)}"
        )
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(missing)} of Karlo's own files: copy or download them, too"
        )
    for name in wanted:
        if len(found[name]) > 1:
            names = ", ".join(path.name for path in found[name])
            raise UserError(
                f"{source} has several files {ORIGINALS[name]} ({names}): leave one of them there"
            )
    return {name: found[name][0] for name in wanted}


def _statistics(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of CLIP's image embeddings, each [D]."""
    found = read_pickle(path)
    if isinstance(found, list | tuple) and len(found) == 2:
        mean, deviation = found
        if all(isinstance(each, torch.Tensor) and each.ndim == 1 for each in found):
            return mean, deviation
    raise UserError(
        f"expected in {path} two tensors, mean and deviation of CLIP's embeddings: it is not Karlo's"
    )


def _config(network: Network) -> dict[str, Any]:
    return {"_class_name": network.kind.__name__, "_diffusers_version": VERSION, **network.config}


def _check_fit(networks: dict[str, Network], towers: dict[str, dict[str, Any]]) -> None:
    """Raise UserError where Karlo was trained on another CLIP."""
    text, own = towers["text_encoder"], networks["text_proj"].config
    sizes = {name: config["projection_dim"] for name, config in towers.items()}
    sizes["text_encoder's tokens"] = text["hidden_size"]
    for name, size in sizes.items():
        if size != own["clip_embeddings_dim"]:
            raise UserError(
                f"expected of CLIP's {name} {own['clip_embeddings_dim']} numbers, found {size}: give {NEEDED}"
            )
    prior = networks["prior"].config if "prior" in networks else None
    if prior and prior["embedding_dim"] != own["clip_embeddings_dim"]:
        raise UserError("prior and decoder are of different models: their embeddings differ in size")
    if prior and prior["num_embeddings"] != text["max_position_embeddings"]:
        raise UserError(
            f"expected of CLIP {prior['num_embeddings']} tokens, found {text['max_position_embeddings']}: give {NEEDED}"
        )


def _write_json(what: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
