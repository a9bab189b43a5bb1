"""What describes a training run: a frozen dataclass, checked, overridden by `key=value`, dumped beside the checkpoints.

What is saved with the weights is another matter (`register_to_config` of the network). Values come from a preset, then
from the command line; defaults of a task's options and of the network stand with those and are filled in by `fill`.
This module imports nothing heavy, since the command line reads it before anything else.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from unclip.errors import UserError
from unclip.files import write_text


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of one stage. Counts are in optimiser steps; `batch_size` is what one process draws for a step."""

    stage: str
    preset: str
    data: str | None = None  # folder made by `unclip data build`, or a .tar shard
    output: str | None = None  # everything that the run writes is here
    cache: str | None = None  # precomputed embeddings of `data`
    clip: str | None = None  # FrozenCLIP folder, for tasks that encode while they train or have no cache yet
    initial: str | None = None  # start from these weights
    limit: int | None = None  # train on the first N samples only
    device: str | None = None  # None: accelerate chooses
    mixed_precision: str = "no"  # "no" | "bf16" (not on CPU)
    seed: int = 0

    steps: int  # 0: what is prepared without training is validated and saved
    batch_size: int
    accumulation: int = 1  # parts a batch is computed in, to save memory; the result is the same
    learning_rate: float
    warmup_steps: int = 500
    decay: str = "linear"  # how the rate falls to zero: "none" | "linear" | "cosine"
    decay_fraction: float = 0.2  # over this last part of the steps; before, it is constant
    weight_decay: float = 0.0  # never on 1-D parameters (norms, biases)
    betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-8
    grad_clip: float = 1.0
    max_skipped: int = 20  # give up after so many steps in a row without a finite loss
    ema_decay: float = 0.999

    checkpoint_every_steps: int = 0  # 0: not by steps
    checkpoint_every_minutes: float = 15.0  # 0: not by time
    keep_checkpoints: int = 2
    validate_every_steps: int = 0  # 0: at the end only
    log_every_steps: int = 50
    num_workers: int = 0  # processes that draw batches ahead; 0: drawn in the training process

    model: dict[str, Any] = field(default_factory=dict)  # arguments of the network
    task: dict[str, Any] = field(default_factory=dict)  # the task's own options

    def __post_init__(self) -> None:
        """Reject values that no run can have.

        Raises:
            UserError: naming the key, what was expected and what came.
        """
        for key in (
            "batch_size",
            "accumulation",
            "keep_checkpoints",
            "log_every_steps",
            "max_skipped",
        ):
            _expect(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in (
            "steps",
            "checkpoint_every_steps",
            "validate_every_steps",
            "num_workers",
            "warmup_steps",
            "seed",
        ):
            _expect(getattr(self, key) >= 0, key, "0 or more", getattr(self, key))
        _expect(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            "a divisor of batch_size",
            self.accumulation,
        )
        _expect(self.learning_rate > 0, "learning_rate", "a positive number", self.learning_rate)
        _expect(self.grad_clip > 0, "grad_clip", "a positive number", self.grad_clip)
        _expect(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)
        _expect(0 <= self.decay_fraction <= 1, "decay_fraction", "in [0, 1]", self.decay_fraction)
        _expect(self.decay in ("none", "linear", "cosine"), "decay", "none, linear or cosine", self.decay)
        _expect(self.mixed_precision in ("no", "bf16"), "mixed_precision", "no or bf16", self.mixed_precision)
        _expect(self.limit is None or self.limit >= 1, "limit", "at least 1", self.limit)

    def override(self, assignments: Sequence[str]) -> TrainConfig:
        """The config with `key=value` assignments applied; nested keys are written `model.width=128`.

        Raises:
            UserError: no "=", an unknown key (the nearest valid one is named), a value of the wrong type.
        """
        from omegaconf import OmegaConf

        for assignment in assignments:
            if "=" not in assignment:
                raise UserError(f"expected key=value, got {assignment!r}")
        try:
            changes: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(assignments)))
        except Exception as error:  # of omegaconf or of the YAML parser below it
            raise UserError(f"cannot read {' '.join(assignments)!r}: {str(error).splitlines()[0]}") from error
        return self.updated(changes)

    def updated(self, changes: Mapping[str, Any]) -> TrainConfig:
        """The config with values replaced; `model` and `task` are merged key by key."""
        checked = fill(changes, dataclass_slots(TrainConfig), "", complete=False)
        for key in ("model", "task"):
            if key in checked:
                checked[key] = {**getattr(self, key), **checked[key]}
        return replace(self, **checked)

    def to_yaml(self) -> str:
        """The config as YAML, as `load` reads it."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(_plain(asdict(self))))

    def save(self, path: Path) -> None:
        """Write YAML to `path`, whole or not at all."""
        write_text(path, self.to_yaml())

    @staticmethod
    def load(path: Path) -> TrainConfig:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, or not a training config.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        if not path.is_file():
            raise UserError(f"expected a training config at {path}, found none")
        try:
            values: Any = OmegaConf.to_container(OmegaConf.load(path))
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
            raise UserError(
                f"{path} is no training config ({error}); put back the one the run wrote"
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is no training config (no keys); put back the one the run wrote")
        return TrainConfig(**fill(values, dataclass_slots(TrainConfig), ""))


class Slot(NamedTuple):
    """A key that may be set: its type and its default (MISSING if it must be given)."""

    hint: Any
    default: Any


def dataclass_slots(kind: type) -> dict[str, Slot]:
    """The keys of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {
        f.name: Slot(hints[f.name], f.default if f.default_factory is MISSING else f.default_factory())
        for f in fields(kind)
    }


def network_slots(network: Callable[..., Any], without: Iterable[str]) -> dict[str, Slot]:
    """The arguments of a network's class (or of a function), but for those that are not the user's to set."""
    hints = typing.get_type_hints(network.__init__ if isinstance(network, type) else network)  # type: ignore[misc]
    parameters = inspect.signature(network).parameters
    return {
        name: Slot(hints.get(name, Any), MISSING if p.default is inspect.Parameter.empty else p.default)
        for name, p in parameters.items()
        if name not in without
    }


def fill(
    given: Mapping[str, Any], slots: Mapping[str, Slot], prefix: str, complete: bool = True
) -> dict[str, Any]:
    """Check `given` against `slots` and, if `complete`, add the defaults of what is not given.

    Raises:
        UserError: an unknown key (the nearest valid one is named), a value of the wrong type, a missing key.
    """
    unknown = sorted(set(given) - set(slots))
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], slots, n=1, cutoff=0.0)
        hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "it takes no options"
        raise UserError(
            f"unknown key {prefix}{unknown[0]}: {hint} (valid: {', '.join(sorted(slots)) or 'none'})"
        )
    values = {key: coerce(value, slots[key].hint, prefix + key) for key, value in given.items()}
    if complete:
        missing = [key for key, slot in slots.items() if slot.default is MISSING and key not in values]
        if missing:
            raise UserError(f"{prefix}{missing[0]} must be given: {prefix}{missing[0]}=…")
        values = {key: values.get(key, slot.default) for key, slot in slots.items()}
    return values


def coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`: whole floats become int, lists tuples; anything else that differs is an error.

    Raises:
        UserError: the value has another type; the message names both.
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(value, next(a for a in arguments if a is not type(None)), name)
    if origin in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
        items = (
            arguments if origin is tuple and arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        )
        if len(items) == len(value):
            return tuple(
                coerce(v, item, f"{name}[{i}]") for i, (v, item) in enumerate(zip(value, items, strict=True))
            )
    elif (hint is dict or origin is dict) and isinstance(value, Mapping):
        return dict(value)
    elif hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
    elif hint is float and isinstance(value, (int, float)):
        return float(value)
    elif hint is int and isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    elif hint is str and isinstance(value, (str, int, float)):
        return str(value)
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint).replace("typing.", "")
    raise UserError(f"{name}: expected {expected}, got {value!r} ({type(value).__name__})")


def _expect(holds: bool, key: str, expected: str, got: Any) -> None:
    if not holds:
        raise UserError(f"{key}: expected {expected}, got {got!r}")


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
