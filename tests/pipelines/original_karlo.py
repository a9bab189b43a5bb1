"""Karlo's networks as kakaobrain's repository has them: their tensors by name, and what they compute.

Written from the layout (guided-diffusion's U-Nets, CLIP's transformer) without regard to diffusers, so that a
converted network can be compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Make = Callable[..., Tensor]  # (shape) -> a tensor
HEAD = 64

EMBED, TOKENS, EXTRA, CONTEXT = 32, 8, 2, 48  # of the tiny networks
PRIOR, DECODER = "prior-ckpt-step=01000000-of-01000000.ckpt", "decoder-ckpt-step=01000000-of-01000000.ckpt"
UPSAMPLER, STATISTICS = "improved-sr-ckpt-step=1.2M.ckpt", "ViT-L-14_stats.th"


def random_numbers(seed: int) -> Make:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: (
        torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
    )


def no_numbers(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


class Namer:
    """Makes tensors by the names of the modules that they belong to."""

    def __init__(self, make: Make, time: int = 0, context: int | None = None, factor: int = 1) -> None:
        self.state: State = {}
        self.make, self.time, self.context, self.factor = make, time, context, factor

    def layer(self, name: str, *shape: int) -> None:
        self.state[f"{name}.weight"] = self.make(*shape)
        self.state[f"{name}.bias"] = self.make(shape[0])

    def resblock(self, name: str, c: int, d: int) -> None:
        self.layer(f"{name}.in_layers.0", c)
        self.layer(f"{name}.in_layers.2", d, c, 3, 3)
        self.layer(f"{name}.emb_layers.1", self.factor * d, self.time)
        self.layer(f"{name}.out_layers.0", d)
        self.layer(f"{name}.out_layers.3", d, d, 3, 3)
        if c != d:
            self.layer(f"{name}.skip_connection", d, c, 1, 1)

    def attention(self, name: str, c: int) -> None:
        assert self.context is not None
        self.layer(f"{name}.norm", c)
        self.layer(f"{name}.qkv", 3 * c, c, 1)
        self.layer(f"{name}.encoder_kv", 2 * c, self.context, 1)
        self.layer(f"{name}.proj_out", c, c, 1)

    def time_embed(self, c: int, d: int) -> None:
        self.layer("time_embed.0", d, c)
        self.layer("time_embed.2", d, d)


def unet_state(
    make: Make, *, channels: Sequence[int], depth: int, attends: Sequence[bool], sides: tuple[int, int],
    context: int | None = None, scale_shift: bool = False,
) -> State:  # fmt: skip
    """A U-Net of `sides` channels in and out, `depth` blocks on each level."""
    namer = Namer(make, 4 * channels[0], context, 2 if scale_shift else 1)
    namer.time_embed(channels[0], namer.time)
    namer.layer("input_blocks.0.0", channels[0], sides[0], 3, 3)
    c, n, levels = channels[0], 0, len(channels)
    skips = [c]
    for level, d in enumerate(channels):
        for k in range(depth + (level < levels - 1)):
            n += 1
            namer.resblock(f"input_blocks.{n}.0", c, d)
            if attends[level] and k < depth:
                namer.attention(f"input_blocks.{n}.1", d)
            c = d
            skips.append(c)
    middle = ["resblock", "attention", "resblock"] if context else ["resblock", "resblock"]
    for k, kind in enumerate(middle):
        getattr(namer, kind)(f"middle_block.{k}", *([c] if kind == "attention" else [c, c]))
    n = 0
    for level, d in reversed(list(enumerate(channels))):
        for k in range(depth + 1):
            namer.resblock(f"output_blocks.{n}.0", c + skips.pop(), d)
            if attends[level]:
                namer.attention(f"output_blocks.{n}.1", d)
            if level and k == depth:
                namer.resblock(f"output_blocks.{n}.{1 + attends[level]}", d, d)
            c, n = d, n + 1
    namer.layer("out.0", c)
    namer.layer("out.2", sides[1], c, 3, 3)
    return namer.state


def decoder_state(make: Make, *, clip: int, extra: int, context: int, **unet: Any) -> State:
    state = unet_state(make, context=context, sides=(3, 6), scale_shift=True, **unet)
    namer = Namer(make)
    time = 4 * unet["channels"][0]
    namer.layer("clip_emb", time, clip)
    namer.layer("text_seq_proj.0", context, clip)
    namer.layer("text_seq_proj.1", context)
    namer.layer("text_feat_proj", time, clip)
    namer.layer("clip_tok_proj", context * extra, clip)
    return {**state, **namer.state, "cf_param": make(clip)}


def prior_state(make: Make, *, width: int, layers: int, clip: int, tokens: int) -> State:
    namer = Namer(make)
    namer.time_embed(width, width)
    for name in ("text_enc_proj", "text_emb_proj", "clip_img_proj"):
        namer.layer(name, width, clip)
    namer.layer("out_proj", clip, width)
    for n in range(layers):
        block = f"transformer.resblocks.{n}"
        namer.layer(f"{block}.attn.c_qkv", 3 * width, width)
        namer.layer(f"{block}.attn.c_proj", width, width)
        namer.layer(f"{block}.ln_1", width)
        namer.layer(f"{block}.mlp.c_fc", 4 * width, width)
        namer.layer(f"{block}.mlp.c_proj", width, 4 * width)
        namer.layer(f"{block}.ln_2", width)
    namer.layer("final_ln", width)
    parameters = {"positional_embedding": make(1, tokens + 4, width), "prd_emb": make(1, 1, width)}
    return {**namer.state, **parameters}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


class Runner:
    """Computes with such tensors."""

    def __init__(self, state: State) -> None:
        self.state = state

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def layer(self, name: str, x: Tensor, **options: Any) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        function = {2: F.linear, 3: F.conv1d, 4: F.conv2d}[weight.ndim]
        return function(x, weight, bias, **options)  # type: ignore[operator]

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def time(self, t: Tensor) -> Tensor:
        half = self.state["time_embed.0.weight"].shape[1] // 2
        angles = t[:, None].float() * 10000.0 ** (-torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        return self.layer("time_embed.2", F.silu(self.layer("time_embed.0", waves)))

    def resblock(self, name: str, x: Tensor, emb: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        h = resize(F.silu(self.group_norm(f"{name}.in_layers.0", x)))
        h, x = self.layer(f"{name}.in_layers.2", h, padding=1), resize(x)
        e = self.layer(f"{name}.emb_layers.1", F.silu(emb))[..., None, None]
        if e.shape[1] == 2 * h.shape[1]:
            scale, shift = e.chunk(2, 1)
            h = self.group_norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.group_norm(f"{name}.out_layers.0", h + e)
        h = self.layer(f"{name}.out_layers.3", F.silu(h), padding=1)
        return h + (self.layer(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x)

    def attention(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        B, C, H, W = x.shape
        joint = self.layer(f"{name}.qkv", self.group_norm(f"{name}.norm", x).flatten(2))
        q, k, v = joint.reshape(B * C // HEAD, 3 * HEAD, H * W).split(HEAD, 1)
        ek, ev = self.layer(f"{name}.encoder_kv", context).reshape(B * C // HEAD, 2 * HEAD, -1).split(HEAD, 1)
        k, v = torch.cat([ek, k], 2), torch.cat([ev, v], 2)
        seen = v @ (q.transpose(1, 2) @ k / HEAD**0.5).softmax(-1).transpose(1, 2)
        return x + self.layer(f"{name}.proj_out", seen.reshape(B, C, -1)).reshape(x.shape)

    def block(self, name: str, x: Tensor, emb: Tensor, context: Any, down: bool = False) -> Tensor:
        for k in range(3):
            part = f"{name}.{k}"
            if self.has(f"{part}.qkv"):
                x = self.attention(part, x, context)
            elif self.has(f"{part}.in_layers.0"):
                change = "up" if k and not name.startswith("middle") else "down" if down else "stay"
                resize = {
                    "stay": lambda h: h,
                    "down": lambda h: F.avg_pool2d(h, 2),
                    "up": lambda h: F.interpolate(h, scale_factor=2.0),
                }[change]
                x = self.resblock(part, x, emb, resize)
        return x

    def unet(self, x: Tensor, t: Tensor, depth: int, context: Tensor | None = None, added: Any = 0) -> Tensor:
        emb = self.time(t) + added
        x = self.layer("input_blocks.0.0", x, padding=1)
        n, skips = 1, [x]
        while self.has(f"input_blocks.{n}.0.in_layers.0"):
            x = self.block(f"input_blocks.{n}", x, emb, context, down=n % (depth + 1) == 0)
            skips.append(x)
            n += 1
        x = self.block("middle_block", x, emb, context)
        for k in range(n):
            x = self.block(f"output_blocks.{k}", torch.cat([x, skips.pop()], 1), emb, context)
        return self.layer("out.2", F.silu(self.group_norm("out.0", x)), padding=1)

    def decoder(
        self, x: Tensor, t: Tensor, depth: int, z_i: Tensor, z_t: Tensor, tokens: Tensor, extra: int
    ) -> Tensor:
        text = self.layer_norm("text_seq_proj.1", self.layer("text_seq_proj.0", tokens)).transpose(1, 2)
        own = self.layer("clip_tok_proj", z_i).reshape(len(x), -1, extra)
        added = self.layer("clip_emb", z_i) + self.layer("text_feat_proj", z_t)
        return self.unet(x, t, depth, torch.cat([own, text], 2), added)

    def prior(self, x: Tensor, t: Tensor, z_t: Tensor, tokens: Tensor) -> Tensor:
        parts = [
            self.layer("text_enc_proj", tokens),
            *(each[:, None] for each in (self.layer("text_emb_proj", z_t), self.time(t))),
            self.layer("clip_img_proj", x)[:, None],
            self.state["prd_emb"].expand(len(x), -1, -1),
        ]
        h = torch.cat(parts, 1) + self.state["positional_embedding"]
        n = 0
        while self.has(block := f"transformer.resblocks.{n}.ln_1"):
            block = block.removesuffix(".ln_1")
            joint = self.layer(f"{block}.attn.c_qkv", self.layer_norm(f"{block}.ln_1", h))
            heads = joint.unflatten(2, (-1, 3 * HEAD)).transpose(1, 2)  # [B, H, T, 3 * HEAD]
            seen = F.scaled_dot_product_attention(*heads.split(HEAD, 3), is_causal=True)
            h = h + self.layer(f"{block}.attn.c_proj", seen.transpose(1, 2).flatten(2))
            inner = F.gelu(self.layer(f"{block}.mlp.c_fc", self.layer_norm(f"{block}.ln_2", h)))
            h = h + self.layer(f"{block}.mlp.c_proj", inner)
            n += 1
        return self.layer("out_proj", self.layer_norm("final_ln", h)[:, -1])


@cache
def originals() -> dict[str, State]:
    """Tiny networks with two heads of attention, so that their order matters, and two levels and blocks."""
    unet: dict[str, Any] = {"channels": (32, 128), "depth": 2, "attends": (False, True)}
    small: dict[str, Any] = {"channels": (32, 64), "depth": 1, "attends": (False, False), "sides": (6, 3)}
    first, last = (unet_state(random_numbers(seed), **small) for seed in (2, 3))
    decoder = decoder_state(random_numbers(1), clip=EMBED, extra=EXTRA, context=CONTEXT, **unet)
    prior = prior_state(random_numbers(0), width=128, layers=2, clip=EMBED, tokens=TOKENS)
    return {
        PRIOR: under("model", prior),
        DECODER: under("model", decoder),
        UPSAMPLER: under("model_first_steps", first) | under("model_last_step", last),
    }


def write_clip(folder: Path) -> Path:
    """A tiny CLIP as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = [*"!abc", *(f"{each}</w>" for each in "!abc"), "ab", "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": EMBED, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": TOKENS},
        vision_config={**sizes, "hidden_size": 16, "image_size": 16, "patch_size": 8},
        projection_dim=EMBED,
    )
    torch.manual_seed(5)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size=16, crop_size=16).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return folder


def write_originals(folder: Path) -> Path:
    """kakaobrain's files, nested as they are."""
    for name, state in originals().items():
        torch.save({"state_dict": state, "global_step": 7}, folder / name)
    make = random_numbers(4)
    torch.save((make(EMBED), make(EMBED).abs()), folder / STATISTICS)
    return folder


Folders = tuple[Path, Path]  # kakaobrain's files, and CLIP
