"""Priors of one pipeline with decoders of another: that they hand over what they should, and refuse another CLIP."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks import karlo_checkpoint as karlo
from unclip.clip import TransformersCLIP
from unclip.errors import UserError
from unclip.models import EclipsePrior
from unclip.pipelines import (
    UnCLIPMix,
    UnCLIPPriorPipeline,
    UnCLIPTextToImagePipeline,
    check_same_clip,
    decoder_arguments,
)

from . import tiny_diffusers as tiny

FEW = {"prior_num_inference_steps": 2}
KANDINSKY = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
STABLE = {"num_inference_steps": 2, "output_type": "np"}
unknown = pytest.mark.filterwarnings(
    "ignore:whether the prior and the decoder belong to one CLIP cannot be known"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("mixing")
    return {
        "kandinsky": tiny.write_kandinsky(base / "kandinsky-2-2-prior"),
        "karlo": karlo.write_checkpoint(base / "karlo-v1-alpha"),
        "tokenizer": base / "tokenizer",
    }


@pytest.fixture(scope="module")
def priors(folders: dict[str, Path]) -> dict[str, Any]:
    """Of Kandinsky, Karlo, and of ECLIPSE in Kandinsky's place."""
    eclipse = karlo.fill(EclipsePrior(karlo.EMBED, karlo.EMBED, width=16, layers=2, heads=2), 5)
    made = {
        "kandinsky": UnCLIPPriorPipeline.from_pretrained(folders["kandinsky"]),
        "karlo": UnCLIPPriorPipeline.from_pretrained(folders["karlo"]),
        "eclipse": UnCLIPPriorPipeline.from_pretrained(folders["kandinsky"], prior=eclipse),
    }
    return {name: tiny.quiet(pipe) for name, pipe in made.items()}


@pytest.fixture(scope="module")
def decoders(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        "kandinsky": tiny.kandinsky_decoder(),
        "stable": tiny.stable_unclip_img2img(folders["tokenizer"]),
        "stable with prior": tiny.stable_unclip(folders["tokenizer"]),
        "karlo": tiny.quiet(UnCLIPTextToImagePipeline.from_pretrained(folders["karlo"])),
    }


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@unknown
@pytest.mark.parametrize("prior", ["kandinsky", "karlo", "eclipse"])
@pytest.mark.parametrize("negative", [None, "a house"])
def test_kandinskys_decoder(
    priors: dict[str, Any], decoders: dict[str, Any], prior: str, negative: str | None
) -> None:
    """Exactly what its pipeline draws of the embeddings by hand."""
    mix = UnCLIPMix(priors[prior], decoders["kandinsky"])
    prompts = ["red apple", "big blue house"]
    if prior == "karlo" and negative is None:
        with pytest.raises(
            UserError, match="no image encoder to make one of an empty picture: give the prior a neg"
        ):
            mix(prompts, **FEW, **KANDINSKY)
        return
    images = mix(prompts, negative, 2, seeded(), **FEW, **KANDINSKY).images
    generator = seeded()
    made = priors[prior](prompts, negative, 2, generator=generator, **FEW)
    expected = decoders["kandinsky"](
        made.image_embeds, made.negative_image_embeds, generator=generator, **KANDINSKY
    ).images
    assert images.shape == (4, 16, 16, 3)
    assert images.std() > 0.01
    np.testing.assert_array_equal(images, expected)


@unknown
@pytest.mark.parametrize("prior", ["kandinsky", "karlo", "eclipse"])
def test_stable_unclip(priors: dict[str, Any], decoders: dict[str, Any], prior: str) -> None:
    mix = UnCLIPMix(priors[prior], decoders["stable"])
    images = mix("red apple", "a house", 2, seeded(), noise_level=5, **FEW, **STABLE).images
    generator = seeded()
    made = priors[prior]("red apple", "a house", 2, generator=generator, **FEW)
    expected = decoders["stable"](
        prompt=["red apple"] * 2,
        negative_prompt=["a house"] * 2,
        image_embeds=made.image_embeds,
        generator=generator,
        noise_level=5,
        **STABLE,
    ).images
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(images, expected)


def test_embeddings_matter(decoders: dict[str, Any]) -> None:
    """Both decoders draw something else of other embeddings."""
    for name, options in (("kandinsky", KANDINSKY), ("stable", STABLE)):
        drawn = []
        for scale in (0.0, 1.0):
            z = scale * torch.ones(1, karlo.EMBED)
            given = {"negative_image_embeds": -z} if name == "kandinsky" else {"prompt": "a"}
            drawn.append(decoders[name](image_embeds=z, generator=seeded(), **given, **options).images)
        assert abs(drawn[0] - drawn[1]).max() > 1e-3


def test_stable_unclip_that_has_a_prior(priors: dict[str, Any], decoders: dict[str, Any]) -> None:
    """It takes no embeddings; its parts, in the pipeline that does, draw with our prior what it draws with its own."""
    theirs = decoders["stable with prior"]
    with pytest.raises(
        UserError, match="StableUnCLIPPipeline takes no image embeddings: give a pipeline that does"
    ):
        decoder_arguments(theirs, priors["karlo"]("a", **FEW), ["a"])
    prior = UnCLIPPriorPipeline.from_pipe(priors["karlo"], prior_scheduler=theirs.prior_scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the text encoder of its prior tells that it is the same CLIP
        mix = UnCLIPMix(prior, theirs)
    assert mix.decoder.unet is theirs.unet
    options = {"prior_num_inference_steps": 4, "noise_level": 3, **STABLE}
    images = mix(["red apple", "a"], generator=seeded(), **options).images
    expected = theirs(["red apple", "a"], generator=seeded(), **options).images
    assert expected.std() > 0.01
    np.testing.assert_allclose(images, expected, atol=1e-4)


def test_image_variations(priors: dict[str, Any]) -> None:
    """What diffusers #1808 asks for. Of a picture's own embedding it draws what it draws of the picture."""
    theirs = tiny.image_variations()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix = UnCLIPMix(priors["kandinsky"], theirs)
    images = mix(["red apple", "a"], None, 2, seeded(), **FEW, **STABLE).images
    assert images.shape == (4, 8, 8, 3)
    pixels = torch.randn(2, 3, 32, 32, generator=seeded())
    embeds = theirs.image_encoder(pixels).image_embeds
    for scale in (1.0, 5.0):
        options = {"guidance_scale": scale, "num_images_per_prompt": 2, **STABLE}
        expected = theirs(pixels, generator=seeded(), **options).images
        made = mix.decoder(image_embeds=embeds, generator=seeded(), **options).images
        assert expected.std() > 0.01
        np.testing.assert_array_equal(made, expected)


@unknown
@pytest.mark.parametrize("prior", ["kandinsky", "eclipse"])
def test_karlos_decoder(priors: dict[str, Any], decoders: dict[str, Any], prior: str) -> None:
    mix = UnCLIPMix(priors[prior], decoders["karlo"])
    options = {"decoder_num_inference_steps": 2, "upsampler_num_inference_steps": 2, "output_type": "np"}
    out = mix(["red apple", "a"], generator=seeded(), **FEW, **options)
    expected = priors[prior](["red apple", "a"], generator=seeded(), **FEW).image_embeds
    assert_close(out.image_embeds, expected)
    assert out.images.shape[0] == 2


def test_the_prior_of_a_whole_pipeline(decoders: dict[str, Any]) -> None:
    """One CLIP, since it is the same object; pictures of either seed differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix = UnCLIPMix(decoders["karlo"], decoders["karlo"])
    assert mix.prior.prior is decoders["karlo"].prior


def test_another_size(priors: dict[str, Any], folders: dict[str, Path]) -> None:
    """The error names both CLIPs and says what to do."""
    decoder = tiny.kandinsky_decoder(embed=32)
    message = (
        r"belong to different CLIPs: the prior's is .*CLIPTextModelWithProjection of 2 layers, width 16 "
        r"\(embeddings of 16 numbers\), the decoder's that of KandinskyV22Pipeline, which it does not bring along "
        r"\(embeddings of 32 numbers\); take a prior that was trained on the decoder's CLIP"
    )
    for prior in ("kandinsky", "karlo"):
        with pytest.raises(UserError, match=message):
            UnCLIPMix(priors[prior], decoder)
    encoder = karlo.networks()["image_encoder"]
    with pytest.raises(
        UserError, match=r"of 16 numbers.*, the decoder's CLIPVisionModelWith.* \(embeddings of 32 n"
    ):
        check_same_clip(priors["karlo"], tiny.stable_unclip_img2img(folders["tokenizer"], encoder, embed=32))


def test_another_clip_of_the_same_size(priors: dict[str, Any], folders: dict[str, Path]) -> None:
    """Told by the weights of whichever encoder both have; half precision on one side is no difference."""
    same = karlo.networks()["image_encoder"].half()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_clip(priors["kandinsky"], tiny.stable_unclip_img2img(folders["tokenizer"], same))
    other = karlo.fill(karlo.networks()["image_encoder"], 77)
    with pytest.raises(
        UserError,
        match=r"the prior's is .*, the decoder's .*; image encoders [0-9a-f]{16} and [0-9a-f]{16}; take",
    ):
        check_same_clip(priors["kandinsky"], tiny.stable_unclip_img2img(folders["tokenizer"], other))
    decoder = tiny.stable_unclip(folders["tokenizer"])
    karlo.fill(decoder.prior_text_encoder, 78)
    with pytest.raises(UserError, match="; text encoders "):
        check_same_clip(priors["karlo"], decoder)


def test_a_clip_that_cannot_be_known(
    priors: dict[str, Any], decoders: dict[str, Any], folders: dict[str, Path]
) -> None:
    cases = [
        (priors["kandinsky"], decoders["kandinsky"]),  # brings none
        (priors["karlo"], decoders["stable"]),  # one has text alone, the other pictures alone
        (UnCLIPPriorPipeline.from_pretrained(folders["kandinsky"], low_memory=True), decoders["stable"]),
    ]
    for prior, decoder in cases:
        with pytest.warns(
            UserWarning, match=r"cannot be known, since .* none to compare: the prior's is .* the dec"
        ):
            check_same_clip(prior, decoder)


@unknown
def test_emoji_type_priors(tiny_pipeline: Any) -> None:
    """Embeddings of length 1 reach decoders of that kind of CLIP, and a warning those of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix = UnCLIPMix(tiny_pipeline, tiny_pipeline)
    out = mix("a red apple", generator=seeded(), size=16, prior="none", output_type="pt")
    expected = tiny_pipeline("a red apple", generator=seeded(), size=16, prior="none", output_type="pt")
    assert_close(out.image_embeds, expected.image_embeds)
    decoder = tiny.kandinsky_decoder(embed=12)
    with pytest.warns(
        UserWarning, match="gives embeddings of length 1, but KandinskyV22Pipeline is ma"
    ) as told:
        mix = UnCLIPMix(tiny_pipeline, decoder)
    assert "a FrozenCLIP, layers 1, width 16, patch_size 8 (embeddings of 12 numbers)" in str(told[0].message)
    assert mix("a red apple", generator=seeded(), **KANDINSKY).images.shape == (1, 16, 16, 3)
    with pytest.raises(UserError, match=r"a FrozenCLIP, .* of 12 numbers.*, the decoder's .* of 16 numbers"):
        check_same_clip(tiny_pipeline, tiny.kandinsky_decoder())


@unknown
def test_half_precision(priors: dict[str, Any]) -> None:
    """The embeddings come in the decoder's precision."""
    decoder = tiny.kandinsky_decoder()
    decoder.unet.to(torch.float16)
    given = decoder_arguments(decoder, priors["kandinsky"]("a", **FEW), ["a"])
    assert {embeds.dtype for embeds in given.values()} == {torch.float16}
    assert isinstance(priors["kandinsky"].clip, TransformersCLIP)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "mix-and-match.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hub(
    folders: dict[str, Path], decoders: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the documentation names -> a tiny one."""
    base = tmp_path_factory.mktemp("hub")
    config = tiny.write_eclipse(base / "eclipse")
    saved = {
        "kandinsky-community/kandinsky-2-2-decoder": decoders["kandinsky"],
        "stabilityai/stable-diffusion-2-1-unclip-small": decoders["stable"],
        "lambdalabs/sd-image-variations-diffusers": tiny.image_variations(),
    }
    for name, pipe in saved.items():
        pipe.save_pretrained(base / name.partition("/")[2])
    return {
        **{name: str(base / name.partition("/")[2]) for name in saved},
        "kandinsky-community/kandinsky-2-2-prior": str(folders["kandinsky"]),
        "kakaobrain/karlo-v1-alpha": str(folders["karlo"]),
        **dict.fromkeys(
            (f"ECLIPSE-Community/ECLIPSE_{each}_Prior" for each in ("Karlo", "KandinskyV22")), str(config)
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_documentation(hub: dict[str, str], number: int) -> None:
    """Its examples run, of tiny models, few steps and small pictures."""
    code = EXAMPLES[number]
    for name, folder in hub.items():
        code = code.replace(f'"{name}"', repr(folder))
    code = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", code)
    code = re.sub(r"(height|width)=\d+", r"\1=16", code)
    exec(compile(code, f"{PAGE.name}, example {number}", "exec"), {})
