"""FrozenCLIP: one interface over open_clip models and our own two-tower model, as a diffusers component.

A caller gives text, or pictures in [-1, 1] of any size; resizing, normalisation and tokenisation are inside. The
model is frozen for good: both encoders run without gradients and in eval mode, whatever a trainer does to it.

Shapes: B batch, D embed_dim, C token_dim, L tokens of the longest text in the batch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from torch import Tensor, nn

from unclip.clip.open_clip_names import OpenCLIPSource, load_open_clip
from unclip.clip.things import PLACES, things_in
from unclip.clip.tokenize import BytePairTokenizer, FileTokenizer, TextTokenizer
from unclip.clip.towers import build_clip
from unclip.errors import UserError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


class TextEncoding(NamedTuple):
    """What the text tower makes of B texts.

    Attributes:
        embeds: [B,D], of unit norm if the CLIP has `unit_norm`.
        tokens: last hidden states [B,L,C]. mask: [B,L], True = real token.
        things: [B,4,D], the embeddings of two things that a text names beside or above one another, by their places
            (`unclip.clip.things`); zeros where there are none, or none are asked for.
    """

    embeds: Tensor
    tokens: Tensor
    mask: Tensor
    things: Tensor


class FrozenCLIP(ModelMixin, ConfigMixin):
    """Frozen CLIP encoders.

    Args:
        architecture: open_clip's model configuration; see `unclip.clip.towers` for the two additions.
        tokenizer: "file" (a tokenizer.json beside the weights) or "byte_pair" (open_clip's own).
        tokenizer_options: keyword arguments of FileTokenizer (pad_id, fixed_length, clean).
        image_mean, image_std: per-channel statistics of pixels in [0, 1] that the image tower expects.
    """

    unit_norm = True  # of the embeddings
    resizes_exactly = False  # pictures come at a size of their own, not as they are

    @register_to_config
    def __init__(
        self,
        architecture: dict[str, Any],
        tokenizer: str = "file",
        tokenizer_options: dict[str, Any] | None = None,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.model = build_clip(architecture)
        self.embed_dim: int = architecture["embed_dim"]
        text, size = architecture["text_cfg"], architecture["vision_cfg"]["image_size"]
        self.token_dim: int = (
            text["hf_config"]["hidden_size"] if "hf_config" in text else text.get("width", 512)
        )
        self.context_length: int = text.get("context_length", 77)
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.text_tokenizer: TextTokenizer | None = (
            BytePairTokenizer(self.context_length) if tokenizer == "byte_pair" else None
        )
        # Statistics of image embeddings; the identity until `set_statistics`.
        self.register_buffer("embed_mean", torch.zeros(self.embed_dim))
        self.register_buffer("embed_std", torch.ones(self.embed_dim))
        self.embed_mean: Tensor
        self.embed_std: Tensor
        self.requires_grad_(False)
        self.eval()

    # ---- making one -------------------------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls, module: nn.Module, tokenizer: TextTokenizer, architecture: dict[str, Any]
    ) -> FrozenCLIP:
        """Freeze a copy of a trained open_clip module of that architecture."""
        source = OpenCLIPSource(module, tokenizer, architecture)
        return cls._from_source(source)

    @classmethod
    def from_open_clip(cls, name: str | dict[str, Any], pretrained: str | None = None) -> FrozenCLIP:
        """Freeze any open_clip model: a name ("ViT-B-32"), "local-dir:PATH", or a configuration dict.

        Args:
            pretrained: tag or file of open_clip weights; None gives random weights (a local dir brings its own).

        Raises:
            UserError: the name is unknown (the nearest known name is given) or the model is no plain CLIP.
        """
        return cls._from_source(load_open_clip(name, pretrained))

    @classmethod
    def _from_source(cls, source: OpenCLIPSource) -> FrozenCLIP:
        tokenizer, kind, options = source.tokenizer, "byte_pair", None
        if isinstance(tokenizer, FileTokenizer):
            kind, options = "file", tokenizer.options
        clip = cls(source.architecture, kind, options, source.image_mean, source.image_std)
        clip.model.load_state_dict(source.module.state_dict())
        clip.text_tokenizer = tokenizer
        return clip

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> FrozenCLIP:
        """Load a saved folder: config.json, weights, tokenizer.json; weights run in float32 unless torch_dtype says so.

        Raises:
            UserError: the folder or a file in it is missing, truncated or of another model. Never asks a hub.
        """
        folder = Path(pretrained_model_name_or_path) / (kwargs.pop("subfolder", None) or "")
        _check_folder(folder)
        if kwargs.get("torch_dtype") is None:
            kwargs["torch_dtype"] = torch.float32  # fp16 on disk is for size only: CPUs compute in fp32
        clip, info = super().from_pretrained(folder, **{**kwargs, "output_loading_info": True})
        wrong = [*info["missing_keys"], *info["unexpected_keys"]]
        if wrong:
            raise UserError(
                f"weights in {folder} do not fit its config.json ({len(wrong)} tensors differ, e.g. {wrong[0]}); "
                "copy or save the CLIP folder again"
            )
        if clip.config.tokenizer == "file":
            options = clip.config.tokenizer_options or {}
            clip.text_tokenizer = FileTokenizer.from_folder(folder, clip.context_length, **options)
        clip.requires_grad_(False)
        return clip

    def save_pretrained(
        self, save_directory: str | Path, *, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        """Write config.json, the weights as safetensors and the tokenizer.

        Args:
            dtype: store matrices and kernels in this type (torch.float16 halves the file); vectors (norms, biases,
                statistics) keep theirs, since they cost nothing and run from 1e-8 to 1e4.

        Raises:
            UserError: pickled weights were asked for.
        """
        if kwargs.get("safe_serialization") is False:
            raise UserError("safe_serialization=False would write a pickle; only safetensors are written")
        source = self
        if dtype is not None:
            source = copy.deepcopy(self)
            for parameter in source.parameters():
                if parameter.ndim >= 2:
                    parameter.data = parameter.data.to(dtype)
        super(FrozenCLIP, source).save_pretrained(save_directory, **kwargs)
        if self.text_tokenizer is not None:
            self.text_tokenizer.save(save_directory)

    # ---- encoding ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed pictures [B,3,H,W] in [-1,1], any size -> [B,D] of unit norm.

        The shorter side is resized to `image_size`, then the centre is cut out.

        Raises:
            ValueError: the tensor is not [B,3,H,W].
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels must be [B,3,H,W] in [-1,1], got {tuple(pixels.shape)}; add the batch dimension"
            )
        return F.normalize(self.model.encode_image(self.preprocess(pixels)), dim=-1)

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Resize, crop and normalise pixels [B,3,H,W] in [-1,1] -> [B,3,image_size,image_size] as the tower expects."""
        # In float32: CPUs have no antialiasing in half precision.
        pixels = resize_and_crop(pixels.to(self.device, torch.float32), self.image_size).to(self.dtype)
        mean, std = (
            pixels.new_tensor(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std)
        )
        # Channels last: 1.2 to 1.9 times as fast on CPUs.
        return ((pixels * 0.5 + 0.5 - mean) / std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, things: bool = False) -> TextEncoding:
        """Embed texts. "" is the null caption.

        With `things` the two things that texts name are embedded too; else they are zeros.

        Warns, naming the words cut off, when a text is longer than `context_length` tokens.

        Raises:
            ValueError: texts is empty or not a list of strings.
        """
        check_texts(texts)
        if self.text_tokenizer is None:
            raise ValueError(
                "this FrozenCLIP has no tokenizer; load it with from_pretrained or from_open_clip"
            )
        ids, mask, lost = self.text_tokenizer(texts)
        for words in filter(None, lost):
            warnings.warn(
                f'text longer than {self.context_length} tokens; these words were cut off: "{words}"',
                stacklevel=3,
            )
        embeds, states = text_features(self.model, ids.to(self.device))
        length = int(mask.sum(1).max())  # a fixed-length tokenizer pads further than the batch needs
        mask = mask[:, :length].to(self.device)
        states = states[:, :length] * mask[..., None]
        named = (
            self.encode_things(texts) if things else embeds.new_zeros(len(texts), len(PLACES), self.embed_dim)
        )
        return TextEncoding(F.normalize(embeds, dim=-1), states, mask, named)

    @torch.no_grad()
    def encode_things(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of the two things that texts name beside or above one another, by place, [B,4,D]."""
        result = torch.zeros(len(texts), len(PLACES), self.embed_dim, device=self.device)
        named = [
            (i, PLACES.index(place), thing)
            for i, text in enumerate(texts)
            for place, thing in things_in(text).items()
        ]
        if named:
            rows, places, things = zip(*named, strict=True)
            result[list(rows), list(places)] = self.encode_text(list(things)).embeds.to(result)
        return result

    # ---- statistics and identity ------------------------------------------------------------------------------

    def set_statistics(self, image_embeds: Tensor) -> None:
        """Store mean and standard deviation per dimension of image embeddings [N,D] in embed_mean/embed_std."""
        if image_embeds.ndim != 2 or image_embeds.shape[1] != self.embed_dim or len(image_embeds) < 2:
            raise ValueError(
                f"image_embeds must be [N,{self.embed_dim}] with N >= 2, got {tuple(image_embeds.shape)}"
            )
        values = image_embeds.to(self.embed_mean.device, torch.float32)
        self.embed_mean.copy_(values.mean(0))
        self.embed_std.copy_(values.std(0).clamp_min(1e-6))

    def fingerprint(self) -> str:
        """Name these encoders by 16 hex digits: equal for equal configuration and weights.

        Weights are compared in half precision, so a model and its fp16 copy on disk are the same; the statistics
        are left out, since no embedding depends on them.
        """
        return fingerprint(self.config.architecture, self.model.state_dict())

    # ---- frozen for good --------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stay in eval mode, also inside a parent that is being trained."""
        super().train(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> FrozenCLIP:
        """Stay without gradients."""
        super().requires_grad_(False)
        return self


def check_texts(texts: Sequence[str]) -> None:
    """Raise ValueError unless texts is a list of strings, at least one."""
    if isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(
            f"texts must be a non-empty list of strings, got {texts!r:.80}; wrap one text in a list"
        )


def fingerprint(architecture: Any, weights: Mapping[str, Tensor]) -> str:
    """Name encoders by 16 hex digits, equal for equal configuration and weights in half precision."""
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def text_features(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Run an open_clip text tower on token ids [B,L] -> projected features [B,D] (not normalised), states [B,L,C]."""
    text: Any = getattr(model, "text", None)
    if hasattr(text, "pooler"):  # a transformers tower
        mask = (ids != text.config.pad_token_id).long()
        out = text.transformer(input_ids=ids, attention_mask=mask)
        return text.proj(text.pooler(out, mask)), out.last_hidden_state
    out = model.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
    return out["text_features"], out["text_intermediates"][-1]


def resize_and_crop(pixels: Tensor, size: int) -> Tensor:
    """Resize the shorter side of [B,3,H,W] to `size` (bicubic, antialiased) and cut out the centre [B,3,size,size]."""
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[..., top : top + size, left : left + size].clamp(-1, 1)


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose files cannot be read, before anything is built."""
    remedy = "copy or save the CLIP folder again"
    for name in ("config.json", WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}: not a complete CLIP folder; {remedy}")
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is damaged ({error}); {remedy}") from error
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt"):
            pass
    except Exception as error:  # safetensors raises its own exception class
        raise UserError(f"{folder / WEIGHTS_FILE} is truncated or damaged ({error}); {remedy}") from error
