"""TransformersCLIP: CLIP as transformers has it, which the public unCLIP checkpoints bring along, as one component.

It has the interface of `FrozenCLIP`. Embeddings keep the length that the projection gives them, since the networks that
were trained on them expect it. Captions are not padded: CLIP's text tower is causal, so no padding is ever seen.

Shapes: B batch, D embed_dim, C token_dim, L tokens of the longest text in the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unclip.clip.frozen import TextEncoding, check_texts, fingerprint
from unclip.clip.things import PLACES
from unclip.errors import UserError


class TransformersCLIP(ModelMixin, ConfigMixin):
    """Frozen CLIP encoders of transformers, with their tokenizer and, if there are pictures to read, image processor.

    Args:
        text_config, vision_config: of the two towers; the second may be absent.
        image_processor: the settings of a CLIPImageProcessor.
    """

    unit_norm = False
    resizes_exactly = True

    @register_to_config
    def __init__(
        self,
        text_config: dict[str, Any],
        vision_config: dict[str, Any] | None = None,
        image_processor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**text_config))
        self.image_encoder = (
            None
            if vision_config is None
            else CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config))
        )
        self.tokenizer: Any = None
        self.preprocessor = CLIPImageProcessor(**(image_processor or {}))
        self.embed_dim: int = text_config["projection_dim"]
        self.token_dim: int = text_config["hidden_size"]
        self.context_length: int = text_config["max_position_embeddings"]
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_parts(
        cls, text_encoder: Any, tokenizer: Any, image_encoder: Any = None, image_processor: Any = None
    ) -> TransformersCLIP:
        """The parts of a pipeline of diffusers as one component; nothing is copied."""
        with torch.device("meta"):
            clip = cls(
                text_encoder.config.to_dict(),
                None if image_encoder is None else image_encoder.config.to_dict(),
                None if image_processor is None else image_processor.to_dict(),
            )
        clip.text_encoder, clip.image_encoder, clip.tokenizer = text_encoder, image_encoder, tokenizer
        if image_processor is not None:
            clip.preprocessor = image_processor
        clip.requires_grad_(False)
        return clip.eval()

    @classmethod
    def from_checkpoint(cls, folder: Path, load: Callable[[Any, Path], Any]) -> TransformersCLIP:
        """The parts in a pipeline's folder: text_encoder and tokenizer, image_encoder and its processor if there.

        Args: load: (class of transformers, folder) -> the network.
        """
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        text_encoder = load(CLIPTextModelWithProjection, folder / "text_encoder")
        if not (folder / "image_encoder").is_dir():
            return cls.from_parts(text_encoder, tokenizer)
        image_encoder = load(CLIPVisionModelWithProjection, folder / "image_encoder")
        own = "image_processor" if (folder / "image_processor").is_dir() else "feature_extractor"
        processor = CLIPImageProcessor.from_pretrained(folder / own)
        return cls.from_parts(text_encoder, tokenizer, image_encoder, processor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> TransformersCLIP:
        """Load what `save_pretrained` wrote: configuration, weights and the tokenizer's files.

        Raises:
            UserError: there is no tokenizer.
        """
        folder = Path(pretrained_model_name_or_path) / (kwargs.pop("subfolder", None) or "")
        clip = super().from_pretrained(folder, **kwargs)
        try:
            clip.tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"no tokenizer in {folder}: copy or save the CLIP folder again") from error
        clip.requires_grad_(False)
        return clip

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config.json, the weights as safetensors and the tokenizer."""
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, things: bool = False) -> TextEncoding:
        """Embed texts; "" is the null caption. The things that a text names (`things`) are not told apart.

        Warns, naming the words cut off, when a text is longer than `context_length` tokens.

        Raises:
            ValueError: texts is empty or not a list of strings.
        """
        check_texts(texts)
        ids, mask = self._tokens(list(texts))
        out = self.text_encoder(ids.to(self.device))
        mask = mask.to(self.device)
        tokens = out.last_hidden_state * mask[..., None]
        nothing = tokens.new_zeros(len(texts), len(PLACES), self.embed_dim)
        return TextEncoding(out.text_embeds, tokens, mask, nothing)

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of real tokens, [B, L]."""
        whole = self.tokenizer(texts, padding="longest", return_tensors="pt")
        if whole.input_ids.shape[1] <= self.context_length:
            return whole.input_ids, whole.attention_mask.bool()
        for text, ids in zip(texts, self.tokenizer(texts).input_ids, strict=True):
            if lost := self.tokenizer.decode(ids[self.context_length - 1 : -1]):
                warnings.warn(
                    f'"{text:.40}…" is longer than {self.context_length} tokens; these words were cut off: "{lost}"',
                    stacklevel=4,
                )
        short = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return short.input_ids, short.attention_mask.bool()

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed pictures [B, 3, H, W] in [-1, 1], any size -> [B, D]; CLIP's own processor makes them smaller.

        Raises:
            UserError: this CLIP has no image encoder.
        """
        if self.image_encoder is None:
            raise UserError(
                "this model's CLIP reads no pictures: load the checkpoint for image variations "
                "(kakaobrain/karlo-v1-alpha-image-variations), or give image_embeds"
            )
        levels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        pictures = [Image.fromarray(each) for each in levels]
        values = self.preprocessor(images=pictures, return_tensors="pt").pixel_values
        return self.image_encoder(values.to(self.device, self.dtype)).image_embeds

    def fingerprint(self) -> str:
        """Name these encoders by 16 hex digits: equal for equal configuration and weights."""
        return fingerprint(self.config.text_config, self.state_dict())
