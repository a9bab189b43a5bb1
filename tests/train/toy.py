"""A task of a few numbers, for the trainer's tests; run as a script it kills itself in the middle of a step."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip.train.config import TrainConfig
from unclip.train.tasks.base import Task
from unclip.train.trainer import Trainer


class ToyTask(Task):
    """Regression of a fixed linear map by a network with dropout, a norm and a buffer."""

    name = "toy"

    def __init__(self, config: TrainConfig, noise: float = 0.1, kill_after: int | None = None) -> None:
        super().__init__(config)
        torch.manual_seed(config.seed)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.2 if noise else 0.0), nn.Linear(8, 2)
        )
        self.model.register_buffer("calls", torch.zeros(1))
        self.noise, self.kill_after, self.count = noise, kill_after, 0

    def draw(self, n: int, rng: np.random.Generator) -> dict[str, Tensor]:
        x = torch.from_numpy(rng.standard_normal((n, 4), dtype=np.float32))
        return {"x": x, "y": torch.stack([x.sum(1), x[:, 0] - x[:, 1]], dim=1)}

    def loss(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        self.count += 1
        if self.count == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.model.calls += 1
        noise = torch.randn(batch["y"].shape, generator=generator) * self.noise
        error = (model(batch["x"]) - batch["y"] - noise) ** 2
        return {"loss": error.mean(), "first": error[:, 0].mean()}

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        return {"training": float(model.training), "picture": Image.new("RGB", (4, 4))}

    def save(self, model: nn.Module, path: Path) -> None:
        save_file(model.state_dict(), path / "model.safetensors")


def toy_config(output: str | Path, **changes: Any) -> TrainConfig:
    """Ten steps, no time-driven checkpoints."""
    values: dict[str, Any] = {
        "stage": "toy",
        "preset": "toy",
        "output": str(output),
        "steps": 10,
        "batch_size": 8,
        "learning_rate": 0.05,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "checkpoint_every_minutes": 0.0,
        "log_every_steps": 3,
    }
    return TrainConfig(**(values | changes))


if __name__ == "__main__":
    config = toy_config(sys.argv[1], **json.loads(sys.argv[3]))
    Trainer(config, ToyTask(config, kill_after=int(sys.argv[2]))).run()
