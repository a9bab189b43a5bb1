"""Checkpoints of a run: safetensors and json, written whole or not at all.

OUTPUT/checkpoints/step-00000123/ holds model.safetensors, ema.safetensors, optimizer.safetensors ("NAME.KEY" for the
optimizer's value KEY of parameter NAME) and state.json. The newest is the one with the highest step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.files import atomic_dir

from .ema import EMA

CHECKPOINTS = "checkpoints"  # folder of a run


def latest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint in a folder, 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


class CheckpointIO:
    """Saves and restores the state of a run; keeps the last `keep` checkpoints of `folder`."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        *,
        model: nn.Module,
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        data: dict[str, Any],
    ) -> None:
        """`data`: facts about what is trained on; a run does not go on with data of which others hold."""
        self.folder, self.keep, self.data = folder, keep, data
        self.model, self.ema, self.optimizer = model, ema, optimizer
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        # Parameters as the optimizer numbers them.
        self._names = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, then remove those that are too old.

        Raises:
            UserError: the disk is full; the earlier checkpoints are untouched.
        """
        path = self.folder / f"step-{step:08d}"
        with atomic_dir(path) as temporary:
            save_model(self.model, str(temporary / "model.safetensors"))
            save_model(self.ema.model, str(temporary / "ema.safetensors"))
            save_file(self._optimizer_tensors(), temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(
                json.dumps({"step": step, "data": self.data, **state}, indent=1)
            )
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def load_latest(self) -> dict[str, Any] | None:
        """Restore model, average and optimizer from the newest checkpoint; its state, or None if there is none.

        Raises:
            UserError: the checkpoint is damaged or belongs to another model, or the data is not what it was.
        """
        for leftover in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        if not self.paths():
            return None
        path = self.paths()[-1]
        self._check_data(path)
        try:
            load_model(self.model, str(path / "model.safetensors"))
            load_model(self.ema.model, str(path / "ema.safetensors"))
            self._load_optimizer(load_file(path / "optimizer.safetensors"))
            state: dict[str, Any] = json.loads((path / "state.json").read_text())
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot resume from {path}: {reason}; remove that folder to use the one before"
            ) from error
        return state

    def _check_data(self, path: Path) -> None:
        try:
            before = json.loads((path / "state.json").read_text())["data"]
        except (OSError, ValueError, KeyError):
            return  # damaged, which loading the rest explains
        if before != json.loads(json.dumps(self.data)):
            raise UserError(
                f"cannot resume from {path}: the data was {before}, got {self.data}; give the data and the options "
                "that the run began with, or start another run from its weights (initial=)"
            )

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        states = self.optimizer.state_dict()["state"]
        return {
            f"{self._names[index]}.{key}": torch.as_tensor(value).contiguous()
            for index, values in states.items()
            for key, value in values.items()
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        number = {name: index for index, name in enumerate(self._names)}
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parameter, key = name.rsplit(".", 1)
            states.setdefault(number[parameter], {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
