"""From training runs to a pipeline folder: the answer to "I trained it; which file do I replace?"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import nn

from unclip.clip import FrozenCLIP
from unclip.clip.prune import keep_frequent_pieces
from unclip.data.images import CaptionedImages
from unclip.data.words import Lexicon
from unclip.errors import UserError
from unclip.files import atomic_dir
from unclip.models import PRIORS, Decoder, DiffusionPrior, RecallPrior, Upsampler, warn_of_another_clip
from unclip.models.saved import load_network

from .inputs import Settings
from .loading import INDEX, PRIORS_FOLDER
from .priors import DIFFUSION, NONE
from .text_to_image import UnCLIPTextToImagePipeline


def assemble(
    *,
    clip: str | Path,
    prior: str | Path,
    decoder: str | Path,
    upsampler_256: str | Path | None = None,
    upsampler_1024: str | Path | None = None,
    out: str | Path,
    dtype: torch.dtype = torch.float16,
    defaults: Mapping[str, Any] | None = None,
    lexicon: str | Path | None = None,
    word_pieces: int | None = None,
    data: str | Path | None = None,
    priors: Mapping[str, str | Path] | None = None,
) -> Path:
    """Put trained networks together and save them as a pipeline folder.

    Args:
        clip, prior, decoder, upsampler_256, upsampler_1024: outputs of training runs (RUN or RUN/model), or
            component folders of another pipeline, so that a part of a model can be replaced.
        out: the folder to write, whole or not at all. A pipeline folder that is there already is replaced.
        dtype: of the matrices on disk. Vectors (norms, biases, statistics) stay in float32: they cost nothing.
        defaults: settings of a call to save with the model, e.g. {"decoder_num_inference_steps": 20}.
        lexicon: file of `unclip data lexicon`, by which the model understands plain words.
        priors: further priors by the names that calls may ask for them by; each lies in the model's folder `priors`.
        word_pieces: keep only so many of CLIP's commonest, and those in the captions of `data`, for a smaller model.

    Returns: `out`, ready for `UnCLIPTextToImagePipeline.from_pretrained`.

    Raises:
        UserError: a folder is missing or damaged, the networks do not fit together, or `out` holds other things.
    """
    folder = Path(out)
    check_output(folder)
    if upsampler_1024 is not None and upsampler_256 is None:
        raise UserError("upsampler_1024 enlarges what upsampler_256 makes: give that one too")
    if (word_pieces is None) != (data is None):
        raise UserError("word_pieces and data go together: the pieces in the captions of the data are kept")
    words = None if lexicon is None else Lexicon.load(lexicon)
    parts = _read_parts(clip, prior, decoder, upsampler_256, upsampler_1024)
    others = {name: load_network(PRIORS, path) for name, path in (priors or {}).items()}
    _check_fit(parts, others)
    if word_pieces is not None and data is not None:
        parts["clip"] = keep_frequent_pieces(parts["clip"], word_pieces, captions_of(data))
    networks = [*filter(None, parts.values()), *others.values()]
    for name, network in list(parts.items()):
        if name != "clip":
            parts[f"{name}_scheduler"] = None if network is None else default_scheduler(network)
    pipe = UnCLIPTextToImagePipeline(**parts)
    if defaults:
        pipe = UnCLIPTextToImagePipeline(**parts, **vars(Settings.of(pipe.config, defaults)))
    pipe.lexicon = words
    for network in networks:
        round_matrices(network, dtype)
    with atomic_dir(folder) as temporary:
        pipe.save_pretrained(temporary)
        for name, network in others.items():
            network.save_pretrained(temporary / PRIORS_FOLDER / name)
    return folder


def _read_parts(
    clip: str | Path,
    prior: str | Path,
    decoder: str | Path,
    upsampler_256: str | Path | None,
    upsampler_1024: str | Path | None,
) -> dict[str, Any]:
    """The networks of a pipeline by component."""
    return {
        "clip": load_network(FrozenCLIP, clip),
        "prior": load_network((DiffusionPrior, RecallPrior), prior),
        "decoder": load_network(Decoder, decoder),
        "upsampler_256": None if upsampler_256 is None else load_network(Upsampler, upsampler_256),
        "upsampler_1024": None if upsampler_1024 is None else load_network(Upsampler, upsampler_1024),
    }


def captions_of(data: str | Path) -> list[str]:
    """Every caption of a data folder, of whatever split, once."""
    pictures = CaptionedImages(data, split=None)
    return list(dict.fromkeys(text for i in range(len(pictures)) for text in pictures.captions(i)))


def default_scheduler(network: Any) -> SchedulerMixin:
    """A scheduler for a network by the schedule it was trained with; any other may take its place."""
    schedule = network.config.schedule
    if schedule == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[schedule],
        prediction_type="sample",
        clip_sample=False,  # embeddings know no range
        timestep_spacing="trailing",  # begins at pure noise however few the steps
    )


def round_matrices(module: nn.Module, dtype: torch.dtype) -> None:
    """Store matrices and kernels, learned or fitted, in `dtype`, in place; vectors and whole numbers keep their own."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim >= 2 and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def check_output(folder: Path) -> None:
    """Raise UserError where writing would replace anything but a pipeline."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file()):
        raise UserError(f"{folder} holds something that is no pipeline: choose another output folder")


def _check_fit(parts: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raise UserError where sizes differ, and warn where the networks seem to be trained on another CLIP."""
    if reserved := {DIFFUSION, NONE} & others.keys():
        raise UserError(f"a further prior cannot be called {reserved.pop()}: that name has a meaning already")
    clip: FrozenCLIP = parts["clip"]
    networks = {name: parts[name] for name in ("prior", "decoder")}
    networks |= {f"prior {name}": prior for name, prior in others.items()}
    for name, network in networks.items():
        for what, own in (("embed_dim", clip.embed_dim), ("token_dim", clip.token_dim)):
            if network.config[what] != own:
                raise UserError(
                    f"the {name} was trained on another CLIP: its {what} is {network.config[what]}, CLIP's "
                    f"is {own}; train the {name} on embeddings of this CLIP"
                )
        if hasattr(network, "embed_mean"):
            warn_of_another_clip(f"the {name}", network.embed_mean, clip.embed_mean)
