"""What kakaobrain's own Karlo checkpoints call the tensors of diffusers' networks, as tables, and the networks' sizes.

The U-Nets are laid out as guided-diffusion's, the prior as CLIP's transformer. Tensors are the same but for joint
projections, which diffusers has apart (rows go head by head, and in each of them query, key, value), and for 1x1
convolutions of attention, which are linear layers there. Every tensor is used once, but for buffers that the original
makes anew (BUFFERS); each network is compared with what its class wants, so that nothing is left over or missing.

Sizes come from shapes; what no shape tells (HEAD_SIZE, GROUPS, sides of pictures) is what Karlo was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from unclip.errors import UserError
from unclip.models.karlo.text_proj import UnCLIPTextProjModel
from unclip.models.saved import loading

Tensors = dict[str, Tensor]

HEAD_SIZE = 64  # channels of a head of attention
GROUPS = 32  # of the group norms
DECODER_SIDE, UPSAMPLER_SIDE = 64, 256  # pixels
STEP_TOKENS = 4  # of the prior besides the text's: text embedding, time, noised embedding, query
BUFFERS = (
    "cf_token",
    "cf_mask",
    "causal_mask",
)  # the empty caption's tokens, and a mask; beside the networks

# Original module or parameter -> diffusers'. Braces: one projection there is several here.
TIME = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
PRIOR = {
    **TIME,
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "positional_embedding": "positional_embedding",
    "prd_emb": "prd_embedding",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
PRIOR_BLOCK = {
    "ln_1": "norm1",
    "attn.c_qkv": "attn1.to_{q,k,v}",
    "attn.c_proj": "attn1.to_out.0",
    "ln_2": "norm3",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}
TEXT_PROJ = {
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "text_feat_proj": "embedding_proj",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "cf_param": "learned_classifier_free_guidance_embeddings",
}
ENDS = {**TIME, "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {
    "norm": "group_norm",
    "qkv": "to_{q,k,v}",
    "encoder_kv": "add_{k,v}_proj",
    "proj_out": "to_out.0",
}


@dataclass(frozen=True)
class Network:
    """A network of diffusers as it is saved."""

    kind: Any
    config: dict[str, Any]
    tensors: Tensors


def prior_of(original: Mapping[str, Tensor], clip_mean: Tensor, clip_std: Tensor) -> Network:
    """The prior of its checkpoint's state and the statistics of CLIP's image embeddings, each [D].

    Raises:
        UserError: a tensor is missing, left over or of another shape; so in what follows.
    """
    (own,) = _networks_in("prior", original, "model")
    width, embed = _shape("prior", own, "clip_img_proj.weight", 2)
    length = _shape("prior", own, "positional_embedding", 3)[1]
    layers = 1 + max(_numbers(r"transformer\.resblocks\.(\d{1,3})\.", own), default=-1)
    config = {
        "num_attention_heads": width // HEAD_SIZE,
        "attention_head_dim": HEAD_SIZE,
        "num_layers": layers,
        "embedding_dim": embed,
        "num_embeddings": length - STEP_TOKENS,
        "additional_embeddings": STEP_TOKENS,
    }
    table = dict(PRIOR)
    for n in range(layers):
        table |= _within(f"transformer.resblocks.{n}", f"transformer_blocks.{n}", PRIOR_BLOCK)
    tensors = _renamed("prior", own, table)
    tensors |= {"clip_mean": clip_mean[None], "clip_std": clip_std[None]}
    return _complete("prior", Network(PriorTransformer, config, tensors))


def decoder_of(original: Mapping[str, Tensor]) -> tuple[Network, Network]:
    """The decoder and its text projection, which lie in one checkpoint."""
    (own,) = _networks_in("decoder", original, "model")
    apart = {name: tensor for name, tensor in own.items() if _module(name)[0] in TEXT_PROJ}
    unet = {name: tensor for name, tensor in own.items() if name not in apart}
    config = {
        **_unet_config("decoder", unet, cross_attention=True),
        "sample_size": DECODER_SIDE,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": _shape("decoder", unet, "middle_block.1.encoder_kv.weight", 3)[1],
        "attention_head_dim": HEAD_SIZE,
        "class_embed_type": "identity",
    }
    decoder = Network(UNet2DConditionModel, config, _renamed("decoder", unet, _unet_table(unet)))

    context, embed = _shape("text_proj", apart, "text_seq_proj.0.weight", 2)
    config = {
        "clip_extra_context_tokens": _shape("text_proj", apart, "clip_tok_proj.weight", 2)[0] // context,
        "clip_embeddings_dim": embed,
        "time_embed_dim": _shape("text_proj", apart, "clip_emb.weight", 2)[0],
        "cross_attention_dim": context,
    }
    text_proj = Network(UnCLIPTextProjModel, config, _renamed("text_proj", apart, TEXT_PROJ))
    return _complete("decoder", decoder), _complete("text_proj", text_proj)


def upsamplers_of(original: Mapping[str, Tensor]) -> tuple[Network, Network]:
    """The super-resolution network of all steps but the last, and that of the last, which lie in one checkpoint."""
    first, last = _networks_in("super_res", original, "model_first_steps", "model_last_step")
    return _upsampler("super_res_first", first), _upsampler("super_res_last", last)


def _upsampler(part: str, own: Tensors) -> Network:
    config = {
        **_unet_config(part, own, cross_attention=False),
        "sample_size": UPSAMPLER_SIDE,
        "add_attention": False,
    }
    return _complete(part, Network(UNet2DModel, config, _renamed(part, own, _unet_table(own))))


def _unet_levels(own: Iterable[str]) -> tuple[int, int]:
    """Levels of a U-Net, and blocks of each: `input_blocks` go on through them all, and `output_blocks` back.

    The last block of a level changes the resolution: going down it is one of its own, which the last level has not;
    going up it follows another, and the last level has none.
    """
    levels = 1 + len(_numbers(r"output_blocks\.(\d{1,3})\.[12]\.(?:in|emb|out)_layers\.", own))
    return levels, (1 + max(_numbers(r"output_blocks\.(\d{1,3})\.", own), default=-1)) // levels


def _unet_table(own: Iterable[str]) -> dict[str, str]:
    levels, blocks = _unet_levels(own)
    table = dict(ENDS)
    for n in range(levels * blocks):
        level, k = divmod(n, blocks)
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        place = f"{down}.resnets.{k}" if k < blocks - 1 else f"{down}.downsamplers.0"
        table |= _within(f"input_blocks.{n + 1}.0", place, RESNET)
        table |= _within(f"input_blocks.{n + 1}.1", f"{down}.attentions.{k}", ATTENTION)
        table |= _within(f"output_blocks.{n}.0", f"{up}.resnets.{k}", RESNET)
        table |= _within(f"output_blocks.{n}.1", f"{up}.attentions.{k}", ATTENTION)
        for place in ("1", "2"):  # after the attention, if there is one
            table |= _within(f"output_blocks.{n}.{place}", f"{up}.upsamplers.0", RESNET)
    table |= _within("middle_block.0", "mid_block.resnets.0", RESNET)
    table |= _within("middle_block.1", "mid_block.attentions.0", ATTENTION)
    for place in ("1", "2"):
        table |= _within(f"middle_block.{place}", "mid_block.resnets.1", RESNET)
    return table


def _unet_config(part: str, own: Tensors, *, cross_attention: bool) -> dict[str, Any]:
    """What both classes of U-Nets are told, from the first block of each level."""
    levels, blocks = _unet_levels(own)
    firsts = [f"input_blocks.{1 + level * blocks}" for level in range(levels)]
    channels = [_shape(part, own, f"{first}.0.in_layers.2.weight", 4)[0] for first in firsts]
    attends = [cross_attention and f"{first}.1.qkv.weight" in own for first in firsts]
    doubled = _shape(part, own, f"{firsts[0]}.0.emb_layers.1.weight", 2)[0] == 2 * channels[0]
    return {
        "in_channels": _shape(part, own, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(part, own, "out.2.weight", 4)[0],
        "layers_per_block": blocks - 1,
        "block_out_channels": channels,
        "down_block_types": [
            "SimpleCrossAttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends
        ],
        "up_block_types": [
            "SimpleCrossAttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in attends[::-1]
        ],
        "resnet_time_scale_shift": "scale_shift" if doubled else "default",
        "norm_num_groups": GROUPS,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def _networks_in(part: str, original: Mapping[str, Tensor], *prefixes: str) -> list[Tensors]:
    """The tensors of the networks of a checkpoint, which has nothing besides but buffers."""
    found: dict[str, Tensors] = {prefix: {} for prefix in prefixes}
    for name, tensor in original.items():
        prefix, _, rest = name.partition(".")
        if prefix in found:
            found[prefix][rest] = tensor
        elif name not in BUFFERS:
            raise _left_over(part, name)
    return list(found.values())


def _renamed(part: str, own: Tensors, table: Mapping[str, str]) -> Tensors:
    tensors: Tensors = {}
    for name, tensor in own.items():
        module, kind = _module(name)
        if module not in table:
            raise _left_over(part, name)
        targets = [f"{target}{kind}" for target in _alternatives(table[module])]
        if kind == ".weight" and tensor.ndim == 3 and tensor.shape[2] == 1:  # a 1x1 convolution
            tensor = tensor[..., 0]
        for target, piece in zip(targets, _split(part, name, tensor, len(targets)), strict=True):
            if target in tensors:
                raise _left_over(part, name)
            tensors[target] = piece
    return tensors


def _split(part: str, name: str, tensor: Tensor, pieces: int) -> list[Tensor]:
    """Rows [heads * pieces * HEAD_SIZE, …] apart, each [heads * HEAD_SIZE, …]."""
    if pieces == 1:
        return [tensor]
    if not tensor.ndim or len(tensor) % (pieces * HEAD_SIZE):
        raise UserError(
            f"expected in {name} of the {part} heads of {HEAD_SIZE} channels, as Karlo has them, found: "
            f"{list(tensor.shape)}"
        )
    return [each.flatten(0, 1) for each in tensor.unflatten(0, (-1, pieces, HEAD_SIZE)).unbind(1)]


def _complete(part: str, network: Network) -> Network:
    """Compare with what the class wants, without its numbers."""
    with loading(part), torch.device("meta"):
        wanted = network.kind(**network.config).state_dict()
    for name, tensor in wanted.items():
        if name not in network.tensors:
            raise UserError(
                f"the {part} has no tensor for {name}: its checkpoint is not whole, or not Karlo's"
            )
        if (found := network.tensors[name].shape) != tensor.shape:
            raise UserError(
                f"expected for {name} of the {part} the shape {list(tensor.shape)}, found: {list(found)}; its "
                "checkpoint is not Karlo's"
            )
    for name in sorted(network.tensors.keys() - wanted.keys()):
        raise _left_over(part, name)
    return network


def _left_over(part: str, name: str) -> UserError:
    return UserError(
        f"nothing is known of the tensor {name} in the checkpoint of the {part}: it is not Karlo's"
    )


def _shape(part: str, own: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in own:
        raise UserError(f"the {part} has no tensor {name}: its checkpoint is not whole, or not Karlo's")
    if own[name].ndim != dimensions or 0 in own[name].shape:
        raise UserError(
            f"expected in {name} of the {part} {dimensions} dimensions, found: {list(own[name].shape)}"
        )
    return tuple(own[name].shape)


def _within(original: str, own: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{original}.{former}": f"{own}.{name}" for former, name in table.items()}


def _module(name: str) -> tuple[str, str]:
    """`a.b.weight` -> (`a.b`, `.weight`); a parameter of no module is one itself."""
    for kind in (".weight", ".bias"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _alternatives(target: str) -> Iterator[str]:
    """`to_{q,k}` -> `to_q`, `to_k`."""
    before, brace, rest = target.partition("{")
    choice, _, after = rest.partition("}")
    yield from (f"{before}{each}{after}" for each in choice.split(",")) if brace else (target,)


def _numbers(pattern: str, names: Iterable[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(pattern, name))}
