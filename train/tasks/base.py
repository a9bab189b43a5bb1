"""What a stage of training is: a network, batches, a loss and something to look at.

The trainer owns devices, EMA, checkpoints, resuming and logging; a task owns everything that differs between stages.
To add a stage: subclass `Task`, name it in `unclip.train.tasks.TASKS`, and write a preset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models import warn_of_another_clip

from ..config import TrainConfig, dataclass_slots, fill, network_slots

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Batch = dict[str, Tensor]

DRY_SAMPLES = 256  # enough to tell how long a step takes

# What is fitted to image embeddings and stored with the networks that see them.
MEAN = "embed_mean"
STATISTICS = {MEAN, "embed_std", "draft_weight", "draft_bias"}


# What a network keeps of its training pictures: never that of the weights it starts from.
REMEMBERED = {"memory.keys", "memory.values", "memory.value_scale", "memory.levels"}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a task that has none."""


class Task:
    """One stage of training; subclasses set `model` in their constructor.

    `Options` is a frozen dataclass: the task's own options with their defaults, filled from `config.task`.
    `network` makes the model or its description; its arguments are the valid keys of `config.model`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[DataclassInstance]] = NoOptions

    model: nn.Module  # trained, averaged (EMA) and saved
    config: TrainConfig

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options: Any = self.Options(**fill(config.task, dataclass_slots(self.Options), "task."))

    @classmethod
    def network(cls) -> Callable[..., Any] | None:
        """What `config.model` are the arguments of; None where it is not looked at."""
        return None

    @classmethod
    def derived(cls) -> set[str]:
        """Arguments of the network that follow from the data or the objective, so that a config may not set them."""
        return {"embed_dim", "token_dim", "schedule", "prediction_type", "time_scale"}

    @classmethod
    def resolve(cls, config: TrainConfig) -> TrainConfig:
        """The config with every default of the task and the network written out.

        Raises:
            UserError: an unknown key in `config.model` or `config.task` (the nearest valid one is named), a wrong type.
        """
        task = fill(config.task, dataclass_slots(cls.Options), "task.")
        network = cls.network()
        model = (
            config.model
            if network is None
            else fill(config.model, network_slots(network, cls.derived()), "model.")
        )
        return replace(config, task=task, model=model)

    @classmethod
    def to_measure(cls, config: TrainConfig) -> TrainConfig:
        """A config whose steps cost what those of `config` do, without slow preparations: for a dry run."""
        return replace(config, limit=min(config.limit or DRY_SAMPLES, DRY_SAMPLES))

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """Draw n training samples; every tensor has leading dimension n.

        Runs in a DataLoader worker (which gets the task without its model), so all of its chance comes from `rng`.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Losses of a batch on the model's device: "loss" (scalar) is differentiated, the other scalars are logged.

        Args:
            model: `self.model`, possibly wrapped for distributed training: call it, read no attributes from it.
            batch: what `draw` gave, on the device.
            generator: torch.Generator on the same device; the only source of chance besides dropout.
        """
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """Figures and pictures for the log, from the averaged model (eval mode, no gradients)."""
        return {}

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the finished model into the folder `path`, as a pipeline or `from_pretrained` will read it."""
        model.save_pretrained(path, safe_serialization=True)  # type: ignore[operator]

    def load(self, path: Path) -> None:
        """Start from the weights in folder `path`, one that `save` wrote (`initial=`).

        Raises:
            UserError: no weights there, or weights of another architecture.
        """
        load_weights(self.model, path)

    def learning_rate_scale(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`, e.g. below 1 for a pretrained tower."""
        return 1.0

    def describe(self) -> dict[str, Any]:
        """Facts about the data for the log and the dry run, e.g. the number of pictures."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are spawned, not forked, get the task without its networks: they only draw."""
        return {key: value for key, value in self.__dict__.items() if key not in ("model", "clip")}


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise shaped like x, float32."""
    return torch.randn(x.shape, generator=generator, device=x.device)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the one safetensors file of `folder`, or of `folder`/model when it is the output of a run.

    Weights for embeddings of fewer entries are taken as those of the last ones: zeros stand in front, so the network is
    blind to the entries that are new until it learns of them (a longer layout code has its weaker components in front,
    `LayoutTower.fit_layout`). The statistics of the embeddings are then those of the data at hand; else they are the
    weights', which learned in that scale: a few pictures to fine-tune on would give poor ones. A UserWarning says when
    the two are so far apart that the weights seem to be of another CLIP. What a network remembers of its pictures is
    that of the data at hand, and layers that it has beside those of its base class may be missing: they start afresh.

    Raises:
        UserError: no weights there, damaged ones, or those of another architecture.
    """
    folder = folder / "model" if (folder / "model").is_dir() else folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"initial={folder}: expected one .safetensors file there, found {len(files)}")
    own = model.state_dict()
    layers: tuple[str, ...] = getattr(model, "EMBED_LAYERS", ())
    new: tuple[str, ...] = getattr(model, "NEW_LAYERS", ())
    try:
        state = load_file(files[0])
        plain = not any(name.split(".")[0] in new for name in state)  # weights of the base class
        for name in own:
            if name in REMEMBERED or (plain and name.split(".")[0] in new):
                state[name] = own[name]
        for name in own.keys() & state.keys():
            if name.split(".")[0] in layers:
                state[name] = padded_in_front(state[name], own[name].shape)
        if MEAN in own and MEAN in state:
            if state[MEAN].shape != own[MEAN].shape:
                state |= {name: own[name] for name in STATISTICS & own.keys()}
            warn_of_another_clip(f"initial={folder}", state[MEAN], own[MEAN])
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"initial={folder} does not fit the model: {reason}; set the same model.* keys, and give cache= and clip= "
            "of a CLIP whose embeddings are not smaller than those it was trained on"
        ) from error


def padded_in_front(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor with zeros put in front in each dimension, up to `shape`; one that is larger stays as it is."""
    missing = [wanted - here for here, wanted in zip(tensor.shape, shape, strict=True)]
    if min(missing, default=0) < 0:
        return tensor
    return F.pad(tensor, [n for each in reversed(missing) for n in (each, 0)])
