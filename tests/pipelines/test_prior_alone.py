"""A prior without a decoder: the embeddings of diffusers' Kandinsky prior pipelines, and what is read for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

from benchmarks import karlo_checkpoint as karlo
from unclip.errors import UserError
from unclip.models import EclipsePrior, KarloPrior
from unclip.pipelines import UnCLIPPriorPipeline, UnCLIPTextToImagePipeline, load_prior

from . import tiny_diffusers as tiny

KINDS = ("KandinskyV22PriorPipeline", "KandinskyPriorPipeline")
PARTS = ("prior", "scheduler", "text_encoder", "tokenizer", "image_encoder", "image_processor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_kandinsky(tmp_path_factory.mktemp("prior") / "kandinsky-2-2-prior")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return karlo.write_checkpoint(tmp_path_factory.mktemp("karlo") / "karlo-v1-alpha")


@pytest.fixture(scope="module")
def published(whole: Path) -> Path:
    """Karlo's checkpoint with what a prior needs alone, as it is fetched from the hub."""
    folder = whole.with_name("prior-alone")
    ignored = shutil.ignore_patterns("decoder*", "text_proj", "super_res*")
    return Path(shutil.copytree(whole, folder, ignore=ignored))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loaded(folder: Path | str | None, **options: Any) -> Any:
    return tiny.quiet(UnCLIPPriorPipeline.from_pretrained(folder, **options))


CALLS: dict[str, dict[str, Any]] = {
    "one": {},
    "several prompts": {"prompt": ["red apple", "a", " ".join(["a big blue house"] * 12)]},
    "two each": {"prompt": ["red apple", "big blue house"], "num_images_per_prompt": 2},
    "negative": {"prompt": "red apple", "negative_prompt": "a house"},
    "two negatives, two each": {
        "prompt": ["red apple", "big blue house"],
        "negative_prompt": ["a house", "red"],
        "num_images_per_prompt": 2,
    },
    "unguided": {"prompt": ["red apple", "a"], "negative_prompt": ["a", "b"], "guidance_scale": 1.0},
    "strongly guided": {"guidance_scale": 20.0, "negative_prompt": "blue"},
    "fewest steps": {"num_inference_steps": 2},
    "latents": {"prompt": ["red apple", "a"], "latents": torch.ones(2, karlo.EMBED)},
}
OWN_NAMES = {
    "guidance_scale": "prior_guidance_scale",
    "num_inference_steps": "prior_num_inference_steps",
    "latents": "prior_latents",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_parity_with_kandinsky(folder: Path, kind: str, call: str) -> None:
    """diffusers' own pipeline, maintained, on the same weights and seeds."""
    theirs = tiny.quiet(getattr(diffusers, kind).from_pretrained(folder))
    options = {"prompt": "red apple", "num_inference_steps": 4, **CALLS[call]}
    expected = theirs(**options, generator=seeded())
    own = {OWN_NAMES.get(name, name): value for name, value in options.items()}
    made = loaded(folder)(**own, generator=seeded())
    assert expected.image_embeds.std() > 0.05
    assert_close(made.image_embeds, expected.image_embeds, rtol=1e-5, atol=1e-5)
    assert_close(made.negative_image_embeds, expected.negative_image_embeds, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_in_memory(folder: Path) -> None:
    theirs = tiny.quiet(diffusers.KandinskyV22PriorPipeline.from_pretrained(folder))
    ours = tiny.quiet(UnCLIPPriorPipeline.from_diffusers(theirs))
    expected = theirs("a", num_inference_steps=2, generator=seeded()).image_embeds
    assert_close(ours("a", prior_num_inference_steps=2, generator=seeded()).image_embeds, expected)
    with pytest.raises(
        UserError, match="KandinskyV22Pipeline has no prior that is known here: expected one of"
    ):
        UnCLIPPriorPipeline.from_diffusers(tiny.kandinsky_decoder())


@pytest.mark.parametrize("low_memory", [False, True])
def test_karlo_without_its_decoder(whole: Path, published: Path, low_memory: bool) -> None:
    """The embeddings that its pictures are decoded from."""
    pipe, steps = loaded(published, low_memory=low_memory), {"prior_num_inference_steps": 2}
    made = pipe(["red apple", "a"], generator=seeded(), **steps)
    assert isinstance(pipe.prior, KarloPrior)
    assert pipe.decoder is None
    assert made.negative_image_embeds is None  # Karlo's text to image brings no image encoder
    pictures = tiny.quiet(UnCLIPTextToImagePipeline.from_pretrained(whole))
    steps |= {"decoder_num_inference_steps": 2, "upsampler_num_inference_steps": 2}
    expected = pictures(["red apple", "a"], generator=seeded(), output_type="latent", **steps).image_embeds
    assert_close(made.image_embeds, expected)


def test_the_embedded_models_prior(tiny_model: Path, tiny_pipeline: Any) -> None:
    """Without its decoder, and what is drawn does not depend on the other pictures of a call."""
    for options in ({}, {"low_memory": True}):
        pipe = loaded(tiny_model, **options)
        assert pipe.decoder is None
        assert pipe.upsampler_256 is None
        both = pipe(["a red apple", "a green pear"], "a cat", generator=seeded(3))
        expected = tiny_pipeline("a green pear", generator=seeded(3), size=16).image_embeds
        alone = pipe("a green pear", generator=seeded(3))
        assert_close(alone.image_embeds, expected)
        assert_close(pipe(["a red apple", "a green pear"], generator=seeded(3)).image_embeds[1:], expected)
        assert both.negative_image_embeds.shape == both.image_embeds.shape
        assert_close(alone.negative_image_embeds.norm(dim=-1), torch.ones(1))


def test_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    pipe = loaded(folder)
    pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "decoder").exists()
    options = {"prior_num_inference_steps": 2}
    expected = pipe("a red apple", generator=seeded(), **options)
    for again in (
        loaded(tmp_path / "saved"),
        loaded(tmp_path / "saved", low_memory=True),
        tiny.quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")),
    ):
        made = again("a red apple", generator=seeded(), **options)
        assert_close(made.image_embeds, expected.image_embeds)
        assert_close(made.negative_image_embeds, expected.negative_image_embeds)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The folder as a hub repository: `files` that it has, and what `snapshot_download` was asked for."""
    import huggingface_hub

    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    known: dict[str, Any] = {
        "files": [*files, "decoder/config.json", "README.md", "prior/x.fp16.safetensors"]
    }

    def snapshot(source: str, **options: Any) -> str:
        known.update(source=source, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(folder / "model_index.json"))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *a, **k: known["files"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return known


def test_fetched_from_the_hub(hub: dict[str, Any]) -> None:
    """Nothing but the prior's parts."""
    loaded("owner/kandinsky", revision="main")
    assert (hub["source"], hub["revision"]) == ("owner/kandinsky", "main")
    assert {pattern.split("/")[0] for pattern in hub["allow_patterns"]} == {"model_index.json", *PARTS}
    assert "prior/diffusion_pytorch_model.safetensors" in hub["allow_patterns"]
    assert "prior/x.fp16.safetensors" not in hub["allow_patterns"]
    assert isinstance(load_prior("owner/kandinsky", subfolder="prior"), KarloPrior)
    assert {pattern.split("/")[0] for pattern in hub["allow_patterns"]} == {"model_index.json", "prior"}


def test_pickles_on_the_hub(hub: dict[str, Any]) -> None:
    """Are not fetched only to be refused."""
    hub["files"] = [name.replace("model.safetensors", "model.bin") for name in hub["files"]]
    hub["files"] = [name for name in hub["files"] if "fp16" not in name]
    for load in (lambda: loaded("owner/kandinsky"), lambda: load_prior("owner/kandinsky", subfolder="prior")):
        with pytest.raises(UserError, match=r"^owner/kandinsky has [a-z_]+/\w+.bin as a pickle alone"):
            load()
    assert "source" not in hub


def test_a_prior_of_ones_own(copied: Path) -> None:
    """What is brought along need not be in the folder."""
    shutil.rmtree(copied / "prior")
    own = EclipsePrior(karlo.EMBED, karlo.EMBED, width=16, layers=1, heads=2)
    karlo.fill(own, 0)
    pipe = loaded(copied, prior=own)
    made = pipe("a red apple", generator=seeded())
    assert pipe.prior is own
    assert not torch.equal(made.image_embeds, pipe("a red apple", generator=seeded(1)).image_embeds)
    noise = torch.randn(1, karlo.EMBED, generator=seeded())
    assert_close(pipe("a red apple", prior_latents=noise).image_embeds, made.image_embeds)
    with pytest.raises(
        UserError, match="the prior EclipsePrior was trained on another CLIP: its embed_dim is 8"
    ):
        loaded(copied, prior=EclipsePrior(8, karlo.EMBED, width=16, layers=1, heads=2))


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts(copied: Path, part: str) -> None:
    shutil.rmtree(copied / part)
    with pytest.raises(UserError, match=f"{part} is missing, a component of KandinskyV22PriorPipeline"):
        loaded(copied)


def test_pickles_are_refused(copied: Path) -> None:
    weights = copied / "prior" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    for load in (lambda: loaded(copied), lambda: load_prior(copied / "prior")):
        with pytest.raises(
            UserError, match=r"is a pickle.*take a revision with safetensors, or write diffusion_py"
        ):
            load()


def test_callbacks_and_tuples(folder: Path) -> None:
    """A callback sees the prior's steps and may replace the embeddings."""
    pipe, seen = loaded(folder), []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe.stage, step))
        return {"latents": torch.zeros_like(tensors["latents"])}

    options = {"prior_num_inference_steps": 3, "return_dict": False}
    embeds, negative = pipe("a red apple", generator=seeded(), callback_on_step_end=watch, **options)
    assert seen == [("prior", step) for step in range(3)]
    assert_close(embeds, pipe.prior.to_embeds(torch.zeros(1, karlo.EMBED)))
    assert negative.shape == embeds.shape
    several = pipe("a red apple", num_prior_candidates=3, generator=seeded(), **options)[0]
    assert several.shape == embeds.shape


def test_wrong_calls(folder: Path, tmp_path: Path) -> None:
    pipe = loaded(folder)
    for options, message in (
        ({"size": 64}, "unknown argument 'size': a prior takes prior, prior_num"),
        ({"prior_latents": torch.ones(2, 3)}, r"prior_latents must be noise of shape \(1, 16\)"),
        ({"prior": "linear"}, "no prior 'linear' in this model"),
    ):
        with pytest.raises(UserError, match=message):
            pipe("a red apple", **options)
    with pytest.raises(UserError, match="no folder at"):
        load_prior(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no model folder at"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is of a None, which is no prior: name the folder of a prior"):
        load_prior(folder / "text_encoder")
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="holds a UnCLIPPriorPipeline without decoder"):
        UnCLIPTextToImagePipeline.from_pretrained(tmp_path / "saved")
