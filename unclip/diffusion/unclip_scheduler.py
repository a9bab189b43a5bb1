"""The scheduler of the public unCLIP checkpoints (Karlo): DDPM (2006.11239), but for the timesteps that it visits."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config


# diffusers loads a component only if the file that defines it names the base class.
class UnCLIPScheduler(DDPMScheduler, SchedulerMixin):
    """DDPM on timesteps that go evenly from the last of training to the first, both among them.

    Reads the configs that diffusers' deprecated class of this name wrote, and steps as that does.

    Args:
        num_train_timesteps: T; steps are at round(k (T - 1) / (n - 1)), k = n - 1 … 0.
        variance_type: "fixed_small_log", the posterior's variance (eq. 7), or "learned_range" between that and beta
            (2102.09672, eq. 15).
        clip_sample, clip_sample_range: whether x_0 is clipped, and to what.
        prediction_type: "epsilon" or "sample".
        beta_schedule: "squaredcos_cap_v2", the cosine schedule.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        variance_type: str = "fixed_small_log",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            variance_type=variance_type,
            clip_sample=clip_sample,
            clip_sample_range=clip_sample_range,
            prediction_type=prediction_type,
            beta_schedule=beta_schedule,
        )

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """n timesteps from T - 1 to 0; a single one is T - 1."""
        last = self.config.num_train_timesteps - 1
        places = torch.linspace(last, 0, num_inference_steps, dtype=torch.float64).round()
        super().set_timesteps(timesteps=places.long().tolist(), device=device)
