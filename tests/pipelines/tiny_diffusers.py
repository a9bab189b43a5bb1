"""Tiny pipelines of diffusers that make or take CLIP image embeddings: random numbers, with the tiny Karlo's CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks import karlo_checkpoint as karlo

KANDINSKY_PRIOR = {
    "_class_name": "KandinskyV22PriorPipeline",
    "_diffusers_version": "0.18.0.dev0",
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
    "prior": ["diffusers", "PriorTransformer"],
    "scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "prediction_type": "sample",
    "clip_sample": True,
    "clip_sample_range": 10.0,
}


def write_kandinsky(folder: Path, name: str = "KandinskyV22PriorPipeline") -> Path:
    """A folder in the layout of kandinsky-community/kandinsky-2-2-prior."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(
        json.dumps({**KANDINSKY_PRIOR, "_class_name": name}), encoding="utf-8"
    )
    parts = karlo.networks()
    for part in ("prior", "text_encoder", "image_encoder"):
        parts[part].save_pretrained(folder / part)
    karlo.write_tokenizer(folder / "tokenizer")
    karlo.image_processor().save_pretrained(folder / "image_processor")
    config = {"_class_name": "UnCLIPScheduler", "_diffusers_version": "0.18.0.dev0", **SCHEDULER}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kandinsky_decoder(embed: int = karlo.EMBED) -> Any:
    """KandinskyV22Pipeline, which brings no CLIP along; pictures of 64 px."""
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        encoder_hid_dim=embed,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=embed,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
        norm_num_groups=8,
    )
    movq = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    parts = [karlo.fill(network, seed) for seed, network in enumerate((unet, movq))]
    return quiet(diffusers.KandinskyV22Pipeline(unet=parts[0], movq=parts[1], scheduler=scheduler))


def stable_unclip_parts(folder: Path, embed: int = karlo.EMBED) -> dict[str, Any]:
    """What both pipelines of Stable unCLIP share; the tokenizer's files are written to a folder."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=len(karlo.vocabulary()),
    )
    networks = {
        "text_encoder": CLIPTextModel(text),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=embed * 2,
            cross_attention_dim=16,
            layers_per_block=1,
            norm_num_groups=8,
        ),
        "vae": diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=embed),
    }
    for seed, name in enumerate(("text_encoder", "unet", "vae")):
        karlo.fill(networks[name], seed)
    return {
        **networks,
        "tokenizer": CLIPTokenizer.from_pretrained(karlo.write_tokenizer(folder)),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def stable_unclip_img2img(folder: Path, image_encoder: Any = None, embed: int = karlo.EMBED) -> Any:
    """StableUnCLIPImg2ImgPipeline, by default with Karlo's tiny image encoder."""
    encoder = karlo.networks()["image_encoder"] if image_encoder is None else image_encoder
    return quiet(
        diffusers.StableUnCLIPImg2ImgPipeline(
            **stable_unclip_parts(folder, embed),
            feature_extractor=karlo.image_processor(),
            image_encoder=encoder,
        )
    )


def stable_unclip(folder: Path) -> Any:
    """StableUnCLIPPipeline, with Karlo's tiny prior and text encoder."""
    networks, parts = karlo.networks(), stable_unclip_parts(folder)
    return quiet(
        diffusers.StableUnCLIPPipeline(
            **parts,
            prior=networks["prior"],
            prior_text_encoder=networks["text_encoder"],
            prior_tokenizer=parts["tokenizer"],
            prior_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", **SCHEDULER),
        )
    )


def image_variations() -> Any:
    """StableDiffusionImageVariationPipeline, with Karlo's tiny image encoder."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        attention_head_dim=2,
        cross_attention_dim=karlo.EMBED,
        layers_per_block=1,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    parts = [karlo.fill(network, seed) for seed, network in enumerate((unet, vae))]
    return quiet(
        diffusers.StableDiffusionImageVariationPipeline(
            unet=parts[0],
            vae=parts[1],
            image_encoder=karlo.networks()["image_encoder"],
            feature_extractor=karlo.image_processor(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False),
            safety_checker=None,
            requires_safety_checker=False,
        )
    )


def write_eclipse(folder: Path) -> Path:
    """A folder in the layout of ECLIPSE-Community's repositories."""
    prior = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=karlo.EMBED,
        additional_embeddings=3,
    )
    tensors = {
        name: tensor for name, tensor in prior.state_dict().items() if not name.startswith("time_embedding")
    }
    folder.mkdir(parents=True)
    config = {name: value for name, value in prior.config.items() if not name.startswith("time_embed")}
    (folder / "config.json").write_text(
        json.dumps({**config, "_class_name": "PriorTransformer"}), encoding="utf-8"
    )
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder
