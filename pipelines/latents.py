"""The bipartite latent of a picture (unCLIP §3): z_i, what CLIP sees in it, and x_T, what else the decoder needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unclip.errors import UserError
from unclip.files import atomic_path

FACTS = "unclip"  # key of a file's metadata


@dataclass(frozen=True)
class Latents:
    """(z_i, x_T) of P pictures, and how x_T was found: only so does it give them again.

    Attributes:
        image_embeds: [P, D] of unit norm. noise: [P, 3, S, S].
        num_inference_steps, guidance_scale: of the decoder.
    """

    image_embeds: Tensor
    noise: Tensor
    num_inference_steps: int
    guidance_scale: float

    def __len__(self) -> int:
        return len(self.noise)

    def options(self) -> dict[str, Any]:
        """What of a call decodes them as they were found."""
        return {
            "decoder_num_inference_steps": self.num_inference_steps,
            "decoder_guidance_scale": self.guidance_scale,
        }

    def check_found_with(self, settings: Any) -> None:
        """Raise UserError if settings of a call decode them otherwise than they were found."""
        for name, own in self.options().items():
            if (given := getattr(settings, name)) != own:
                raise UserError(
                    f"these latents were found with {name} {own}, got {given}: leave it out, or invert the "
                    "picture again"
                )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {
            "image_embeds": self.image_embeds.cpu().contiguous(),
            "noise": self.noise.cpu().contiguous(),
        }
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, str(temporary), metadata={FACTS: json.dumps(self.options())})

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Read what `save` wrote.

        Raises:
            UserError: it is missing, damaged, or holds something else.
        """
        tensors, facts = _read(path)
        try:
            return cls(
                tensors["image_embeds"].float(),
                tensors["noise"].float(),
                facts["decoder_num_inference_steps"],
                facts["decoder_guidance_scale"],
            )
        except KeyError as error:
            raise UserError(f"{path} holds no {error.args[0]}: make it with `unclip invert`") from error


def load_embeds(path: str | Path) -> Tensor:
    """The image embeddings [P, D] in a safetensors file: its tensor `image_embeds`, or the only one that it has.

    Raises:
        UserError: it is missing or damaged, or it does not say which tensor they are.
    """
    tensors, _ = _read(path)
    found = tensors.get("image_embeds", next(iter(tensors.values())) if len(tensors) == 1 else None)
    if found is None:
        raise UserError(
            f"{path} holds {', '.join(tensors) or 'nothing'}: expected a tensor image_embeds [N, D]"
        )
    if found.ndim not in (1, 2):
        raise UserError(f"{path} holds a tensor of shape {list(found.shape)}: expected embeddings [N, D]")
    return found.float()[None] if found.ndim == 1 else found.float()


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file at {file}: make one with `unclip invert IMAGE -o {file.name}`")
    try:
        with safe_open(str(file), "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get(FACTS, "{}"))
        return load_file(file), facts if isinstance(facts, dict) else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} is no sound safetensors file ({error}): make it again") from error
