"""Checkpoints in the layout in which Karlo was published: read as they are, written so that they load again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from benchmarks import karlo_checkpoint as karlo
from unclip.clip import TransformersCLIP
from unclip.diffusion import UnCLIPScheduler
from unclip.errors import UserError
from unclip.models import KarloDecoder, KarloPrior, KarloUpsampler
from unclip.pipelines import UnCLIPTextToImagePipeline, UnCLIPVariationPipeline
from unclip.pipelines.info import model_info
from unclip.pipelines.loading import wanted_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return karlo.write_checkpoint(tmp_path_factory.mktemp("karlo") / "karlo-v1-alpha")


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "karlo"))


def draw(pipe: Any, **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    steps = {"prior_num_inference_steps": 3, "decoder_num_inference_steps": 3}
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "a red apple",
        generator=generator,
        output_type="pt",
        upsampler_num_inference_steps=2,
        **steps,
        **options,
    )


def test_the_index_is_the_published_one(published: Path) -> None:
    text = (published / "model_index.json").read_bytes()
    assert text.startswith(b'{\n  "_class_name": "UnCLIPPipeline",\n  "_diffusers_version": "0.15.0.dev0",\n')
    assert b'  "text_proj": [\n    "unclip",\n    "UnCLIPTextProjModel"\n  ],\n' in text


@pytest.mark.filterwarnings("ignore")
def test_diffusers_itself_cannot_load_it(published: Path) -> None:
    """Its own class looks for the text projection in a module `unclip` of its pipelines, which it no longer has."""
    if not hasattr(diffusers, "UnCLIPPipeline"):
        pytest.skip("this diffusers has no UnCLIPPipeline any more")
    try:
        diffusers.UnCLIPPipeline.from_pretrained(published)
    except (AttributeError, ImportError, ValueError) as error:
        failure = str(error)
    else:
        pytest.skip(f"diffusers {diffusers.__version__} loads it again")
    assert "UnCLIPTextProjModel" in failure or "unclip" in failure


def test_its_components_are_ours(published: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(published)
    kinds = {name: type(part) for name, part in pipe.components.items() if part is not None}
    assert kinds == {
        "clip": TransformersCLIP,
        "prior": KarloPrior,
        "prior_scheduler": UnCLIPScheduler,
        "decoder": KarloDecoder,
        "decoder_scheduler": UnCLIPScheduler,
        "upsampler_256": KarloUpsampler,
        "upsampler_256_scheduler": UnCLIPScheduler,
    }
    settings = pipe.settings()
    assert (settings.prior_num_inference_steps, settings.decoder_num_inference_steps) == (25, 25)
    assert (settings.prior_guidance_scale, settings.decoder_guidance_scale) == (4, 8)
    assert settings.upsampler_num_inference_steps == 7
    assert pipe.prior_scheduler.config.clip_sample_range == 5
    assert pipe.dtype == torch.float32


def test_what_is_saved_loads_again(published: Path, tmp_path: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(published)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again) is UnCLIPTextToImagePipeline
    assert_close(draw(again).images, draw(pipe).images, rtol=0, atol=1e-5)


def test_image_variations_have_no_prior(tmp_path: Path) -> None:
    folder = karlo.write_checkpoint(tmp_path / "variations", karlo.VARIATIONS)
    pipe = UnCLIPVariationPipeline.from_pretrained(folder)
    assert pipe.prior is None
    pipe.save_pretrained(tmp_path / "saved")
    assert UnCLIPVariationPipeline.from_pretrained(tmp_path / "saved").prior is None
    with pytest.raises(UserError, match="no prior: give image_embeds"):
        draw(UnCLIPTextToImagePipeline.from_pipe(pipe))


def test_without_an_image_encoder_no_picture_is_read(published: Path) -> None:
    pipe = UnCLIPVariationPipeline.from_pretrained(published)
    with pytest.raises(UserError, match="reads no pictures: load the checkpoint for image variations"):
        pipe(torch.zeros(3, 32, 32))


def test_variants_and_half_precision(tmp_path: Path) -> None:
    folder = karlo.write_checkpoint(tmp_path / "karlo", variant="fp16")
    pipe = UnCLIPTextToImagePipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    assert {part.dtype for part in (pipe.prior, pipe.decoder, pipe.upsampler_256)} == {torch.float16}
    with pytest.raises(
        UserError, match=r"no weights without a variant, but .*fp16.*: choose another variant"
    ):
        UnCLIPTextToImagePipeline.from_pretrained(folder)


def test_parts_can_be_brought(published: Path) -> None:
    whole = UnCLIPTextToImagePipeline.from_pretrained(published)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(published, decoder=whole.decoder)
    assert pipe.decoder is whole.decoder


def test_shards_are_read(copied: Path) -> None:
    whole = draw(UnCLIPTextToImagePipeline.from_pretrained(copied)).images
    tensors = load_file(copied / "prior" / WEIGHTS)
    names = sorted(tensors)
    parts = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, copied / "prior" / file)
    places = {name: file for file, own in parts.items() for name in own}
    index = {"metadata": {}, "weight_map": places}
    (copied / "prior" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (copied / "prior" / WEIGHTS).unlink()
    assert_close(draw(UnCLIPTextToImagePipeline.from_pretrained(copied)).images, whole, rtol=0, atol=1e-5)
    (copied / "prior" / next(iter(parts))).unlink()
    with pytest.raises(UserError, match=r"00001-of-00002.safetensors is missing"):
        UnCLIPTextToImagePipeline.from_pretrained(copied)


def test_defaults_are_taken_and_unknown_options_refused(published: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(published, prior_guidance_scale=2.0)
    assert pipe.settings().prior_guidance_scale == 2
    with pytest.raises(UserError, match="unknown option 'plain_wrods': a published checkpoint takes variant"):
        UnCLIPTextToImagePipeline.from_pretrained(published, plain_wrods=False)


def test_info(published: Path) -> None:
    info = model_info(published)
    assert info["sizes"] == [karlo.SIDE, karlo.FACTOR * karlo.SIDE]
    assert info["defaults"]["decoder_guidance_scale"] == 8
    assert info["components"]["prior"]["parameters"] > 1000


def test_without_a_prior_the_caption_keeps_its_length(published: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(published)
    made = draw(pipe, prior="none").image_embeds
    assert_close(made, pipe.clip.encode_text(["a red apple"]).embeds)
    assert abs(float(made.norm()) - 1) > 0.05


HUB = [
    "model_index.json",
    "README.md",
    *("prior/config.json", "prior/diffusion_pytorch_model.bin", "prior/diffusion_pytorch_model.safetensors"),
    *("prior/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json"),
    *("decoder/config.json", "decoder/diffusion_pytorch_model.safetensors"),
    *("decoder/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "priors/ar/model.safetensors"),
]


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (None, {"prior/diffusion_pytorch_model.safetensors", "decoder/diffusion_pytorch_model.safetensors"}),
        (
            "fp16",
            {
                "prior/diffusion_pytorch_model.fp16.safetensors",
                "decoder/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            },
        ),
        (
            "bf16",
            {"prior/diffusion_pytorch_model.safetensors", "decoder/diffusion_pytorch_model.safetensors"},
        ),
    ],
)
def test_what_is_fetched_from_a_hub(variant: str | None, weights: set[str]) -> None:
    small = {name for name in HUB if name.endswith((".json", ".txt"))}
    assert set(wanted_files("owner/name", HUB, variant)) == small | weights


def test_nothing_is_fetched_where_weights_are_pickles_alone() -> None:
    names = ["model_index.json", "prior/config.json", "prior/diffusion_pytorch_model.bin"]
    with pytest.raises(
        UserError, match=r"prior/diffusion_pytorch_model.bin as a pickle alone.*`unclip convert FOLDER"
    ):
        wanted_files("owner/name", names, None)


# ---- bad checkpoints: one line that names the file and the remedy ---------------------------------------------


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing component": (
        lambda f: shutil.rmtree(f / "text_proj"),
        r"text_proj is missing, a component of UnCLIPPipeline: copy, download or train",
    ),
    "missing config": (
        lambda f: (f / "prior" / "config.json").unlink(),
        r"prior/config.json is missing: copy",
    ),
    "missing weights": (lambda f: (f / "decoder" / WEIGHTS).unlink(), r"decoder has no weights.*: copy"),
    "missing tokenizer": (
        lambda f: (f / "tokenizer" / "vocab.json").unlink(),
        r"vocab.json is missing: copy",
    ),
    "damaged config": (
        lambda f: (f / "decoder" / "config.json").write_text("{"),
        r"decoder/config.json is damaged.*: copy",
    ),
    "pickle only": (
        lambda f: pickle_only(f / "decoder"),
        r"decoder/diffusion_pytorch_model.bin is a pickle.* not loaded: convert .*unclip convert .*karlo --output",
    ),
    "truncated": (
        lambda f: truncate(f / "super_res_last" / WEIGHTS),
        r"super_res_last/diffusion_pytorch_model.safetensors is truncated: expected \d+ bytes, got \d+; copy",
    ),
    "no safetensors": (
        lambda f: (f / "prior" / WEIGHTS).write_bytes(b"not weights at all"),
        r"prior/diffusion_pytorch_model.safetensors is no safetensors file.*: copy",
    ),
    "missing tensor": (
        lambda f: change_tensors(f / "prior", lambda tensors: tensors.pop("prd_embedding")),
        r"weights in .*prior do not fit its config.json: 1 tensors are missing.* prd_embedding; copy",
    ),
    "left over": (
        lambda f: change_tensors(f / "text_proj", lambda tensors: tensors.update(other=torch.zeros(2))),
        r"weights in .*text_proj do not fit its config.json: 1 tensors are missing, left over.*, e.g. other; copy",
    ),
    "wrong shape": (
        lambda f: change_tensors(f / "prior", lambda t: t.update({"proj_in.weight": torch.zeros(24, 4)})),
        r"prior/diffusion_pytorch_model.safetensors does not fit the config.json beside it: expected proj_in.weight of "
        r"shape \[24, 16\], got \[24, 4\]; take both from one checkpoint",
    ),
    "another CLIP": (
        lambda f: change_json(f / "prior" / "config.json", embedding_dim=32),
        r"prior/config.json belongs to another CLIP: its embedding_dim is 32, the text encoder's projection_dim 16; "
        "take both from one checkpoint",
    ),
    "another decoder": (
        lambda f: change_json(f / "text_proj" / "config.json", cross_attention_dim=8),
        r"text_proj/diffusion_pytorch_model.safetensors does not fit .*; take both from one checkpoint",
    ),
    "no size": (
        lambda f: change_json(f / "decoder" / "config.json", sample_size=None),
        r"decoder/config.json must have a sample_size in pixels, got None: copy",
    ),
    "wrong sizes": (
        lambda f: change_json(f / "super_res_first" / "config.json", sample_size=24),
        r"super_res_first/config.json makes pictures of 24 px, no multiple of the decoder's 16: copy",
    ),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer" / "vocab.json").write_text("{"),
        r"tokenizer/vocab.json is damaged.*: copy",
    ),
    "wrong schedule": (
        lambda f: change_json(f / "prior_scheduler" / "scheduler_config.json", beta_schedule="foo"),
        r"cannot load the schedulers in .*foo",
    ),
    "no weight map": (
        lambda f: (f / "prior" / f"{WEIGHTS}.index.json").write_text("{}"),
        r"safetensors.index.json is damaged \(no weight_map\): copy",
    ),
    "unknown scheduler": (
        lambda f: change_json(f / "prior_scheduler" / "scheduler_config.json", _class_name="MyScheduler"),
        r"prior_scheduler/scheduler_config.json names the unknown scheduler 'MyScheduler': write one of diffusers'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints(copied: Path, kind: str) -> None:
    damage, message = BAD[kind]
    damage(copied)
    with pytest.raises(UserError, match=message) as raised:
        UnCLIPTextToImagePipeline.from_pretrained(copied)
    assert "\n" not in str(raised.value)
