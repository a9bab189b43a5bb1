"""The tiny_* components: whole models of a few thousand random numbers, for tests of every room.

Every parameter is random, since layers that start at zero would hide a condition that never arrives.
A fixture gives a fresh copy, so a test may train it or change it.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from unclip.clip import FrozenCLIP
    from unclip.data import CaptionedImages
    from unclip.models import Decoder, DiffusionPrior, Upsampler
    from unclip.pipelines import UnCLIPTextToImagePipeline

FIXTURE = Path(__file__).parent / "fixtures" / "emoji-fixture.tar"
EMBED, TOKEN, CONTEXT = 12, 20, 16  # sizes of an embedding and a token state, tokens of the longest caption
WORDS = [
    *"a red green blue apple pear house cat on the left of right , flat 3D noto style heart small".split()
]


def randomise(model: nn.Module, scale: float = 0.15) -> nn.Module:
    """Fill every parameter with numbers of one fixed seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@cache
def _clip() -> FrozenCLIP:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from unclip.clip import FrozenCLIP
    from unclip.clip.tokenize import FileTokenizer
    from unclip.clip.towers import build_clip

    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(each, vocabulary[each]) for each in ("[CLS]", "[SEP]")]
    )
    tokenizer = FileTokenizer(words, CONTEXT)
    architecture = {
        "embed_dim": EMBED,
        "custom_text": True,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
        "text_cfg": {
            "hf_config": {
                "model_type": "bert",
                "vocab_size": 4 + len(WORDS),
                "hidden_size": TOKEN,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "max_position_embeddings": CONTEXT,
                "pad_token_id": 0,
            },
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT,
        },
    }
    clip = FrozenCLIP.from_module(randomise(build_clip(architecture), 0.5), tokenizer, architecture)
    clip.set_statistics(torch.randn(50, EMBED, generator=torch.Generator().manual_seed(3)) * 0.3)
    return clip


@pytest.fixture
def tiny_clip() -> FrozenCLIP:
    return copy.deepcopy(_clip())


@pytest.fixture
def tiny_prior() -> DiffusionPrior:
    from unclip.models import DiffusionPrior

    prior = DiffusionPrior(
        embed_dim=EMBED,
        token_dim=TOKEN,
        width=16,
        layers=2,
        heads=2,
        max_tokens=CONTEXT,
        schedule="cosine",
        time_scale=1.0,
    )
    prior.set_embed_statistics(_clip().embed_mean, _clip().embed_std)
    return randomise(prior, 0.5)  # type: ignore[return-value]


@pytest.fixture
def tiny_decoder() -> Decoder:
    from unclip.models import Decoder

    decoder = Decoder(
        sample_size=16,
        draft_size=4,
        patch_size=4,
        width=16,
        layers=2,
        heads=2,
        embed_dim=EMBED,
        token_dim=TOKEN,
        max_text_tokens=CONTEXT,
        stem_channels=4,
        skin_channels=4,
    )
    decoder.set_embed_statistics(_clip().embed_mean, _clip().embed_std)
    return randomise(decoder)  # type: ignore[return-value]


@pytest.fixture
def tiny_upsampler() -> Upsampler:
    """Four times the size, of whatever size it is given."""
    from unclip.models import Upsampler

    model = Upsampler(factor=4, channels=(4, 8), blocks=1, embed_channels=8, skin_channels=2)
    return randomise(model)  # type: ignore[return-value]


@pytest.fixture
def tiny_pipeline(
    tiny_clip: FrozenCLIP, tiny_prior: DiffusionPrior, tiny_decoder: Decoder, tiny_upsampler: Upsampler
) -> UnCLIPTextToImagePipeline:
    """All stages: 16 -> 64 -> 256 px, two steps each, without progress bars."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    from unclip.pipelines import UnCLIPTextToImagePipeline

    pipe = UnCLIPTextToImagePipeline(
        clip=tiny_clip,
        prior=tiny_prior,
        prior_scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
        ),
        decoder=tiny_decoder,
        decoder_scheduler=FlowMatchEulerDiscreteScheduler(),
        upsampler_256=tiny_upsampler,
        upsampler_256_scheduler=FlowMatchEulerDiscreteScheduler(),
        upsampler_1024=copy.deepcopy(tiny_upsampler),
        upsampler_1024_scheduler=FlowMatchEulerDiscreteScheduler(),
        prior_num_inference_steps=2,
        decoder_num_inference_steps=2,
        upsampler_num_inference_steps=2,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_model(tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path) -> Path:
    """The folder of a saved tiny pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def real() -> CaptionedImages:
    """The training samples of the fixture."""
    from unclip.data import CaptionedImages

    return CaptionedImages(FIXTURE)
