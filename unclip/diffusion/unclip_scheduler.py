"""The scheduler of the public unCLIP checkpoints (Karlo): DDPM (2006.11239), but for the timesteps that it visits."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unclip.errors import UserError


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

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """x_t [B, ...] -> x_s of the timestep s that comes next, by q(x_s | x_t, x_0) (DDPM, eq. 6-7).

        Args:
            model_output: [B, ...], with a learned variance [B, 2C, ...], of which the second half is 2v - 1.
        Raises:
            UserError: a prediction type that Karlo's scheduler has not.
        """
        t, s = int(timestep), int(self.previous_timestep(timestep))
        alpha_bar, alpha_bar_s = self.alphas_cumprod[t], self.alphas_cumprod[s] if s >= 0 else self.one
        # Where no step is skipped beta is the table's, in float32 up to 0.2 % off 1 - alpha_bar_t / alpha_bar_s
        # at t = 0. So the public pictures were made; that they come out again counts for more.
        beta = self.betas[t] if s == t - 1 else 1 - alpha_bar / alpha_bar_s
        model_output, fraction = self._split(model_output, sample)
        x0 = self._x0(model_output, sample, alpha_bar)
        mean = alpha_bar_s**0.5 * beta / (1 - alpha_bar) * x0
        mean = mean + (1 - beta) ** 0.5 * (1 - alpha_bar_s) / (1 - alpha_bar) * sample
        if t > 0:
            log_var = ((1 - alpha_bar_s) / (1 - alpha_bar) * beta).clamp(min=1e-20).log()
            if fraction is not None:
                log_var = fraction * beta.log() + (1 - fraction) * log_var
            noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            mean = mean + (0.5 * log_var).exp() * noise
        return DDPMSchedulerOutput(prev_sample=mean, pred_original_sample=x0) if return_dict else (mean, x0)

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the fraction v in [0, 1] of a learned variance (Improved DDPM, eq. 15)."""
        if self.config.variance_type != "learned_range" or model_output.shape[1] != 2 * sample.shape[1]:
            return model_output, None
        prediction, fraction = model_output.chunk(2, dim=1)
        return prediction, (fraction + 1) / 2

    def _x0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        if self.config.prediction_type not in ("epsilon", "sample"):
            raise UserError(
                f"UnCLIPScheduler takes predictions of type epsilon or sample, got {self.config.prediction_type!r}"
            )
        if self.config.prediction_type == "epsilon":  # (DDPM, eq. 15)
            prediction = (x_t - (1 - alpha_bar) ** 0.5 * prediction) / alpha_bar**0.5
        limit = self.config.clip_sample_range if self.config.clip_sample else float("inf")
        return prediction.clamp(-limit, limit)
