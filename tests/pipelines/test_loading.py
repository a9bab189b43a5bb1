"""Saving and loading pipelines, and what is said of a damaged one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline, loading
from unclip.pipelines.info import model_info


def picture(pipe: UnCLIPTextToImagePipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red apple", size=64, generator=torch.Generator().manual_seed(0), output_type="pt").images


@pytest.mark.parametrize("kind", [UnCLIPTextToImagePipeline, DiffusionPipeline])
def test_saved_pipelines_draw_the_same(
    tiny_pipeline: UnCLIPTextToImagePipeline, tiny_model: Path, kind: type[DiffusionPipeline]
) -> None:
    loaded = kind.from_pretrained(str(tiny_model))
    assert type(loaded) is UnCLIPTextToImagePipeline
    assert loaded.settings() == tiny_pipeline.settings()
    assert loaded.settings(noise_level=0.5).noise_level == 0.5
    assert_close(picture(loaded), picture(tiny_pipeline))


def test_without_upsamplers(tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path) -> None:
    parts = {
        name: part for name, part in tiny_pipeline.components.items() if not name.startswith("upsampler")
    }
    UnCLIPTextToImagePipeline(**parts).save_pretrained(tmp_path / "small")
    loaded = UnCLIPTextToImagePipeline.from_pretrained(tmp_path / "small")
    assert loaded.sizes == {16: "decoder"}
    with pytest.raises(UserError, match="64 is not offered: this model makes 16"):
        loaded("a", size=64)


def test_components_can_be_handed_over(tiny_pipeline: UnCLIPTextToImagePipeline, tiny_model: Path) -> None:
    loaded = UnCLIPTextToImagePipeline.from_pretrained(
        tiny_model, prior=tiny_pipeline.prior, upsampler_1024=None
    )
    assert loaded.prior is tiny_pipeline.prior
    assert list(loaded.sizes) == [16, 64]


def test_the_embedded_model_is_the_default(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "EMBEDDED", tiny_model)
    assert list(UnCLIPTextToImagePipeline.from_pretrained().sizes) == [16, 64, 256]
    monkeypatch.setattr(loading, "EMBEDDED", tiny_model / "nowhere")
    with pytest.raises(UserError, match=r"no embedded model at .*: name a model folder"):
        UnCLIPTextToImagePipeline.from_pretrained()


def _truncate(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE = {
    "weights cut off": (lambda m: _truncate(m / "decoder" / WEIGHTS, 8000), "decoder.*truncated: expected"),
    "header cut off": (lambda m: _truncate(m / "prior" / WEIGHTS, 100), "prior.*truncated: its header"),
    "empty": (lambda m: _truncate(m / "clip" / WEIGHTS, 0), "clip.*no safetensors file .0 bytes"),
    "not weights": (lambda m: (m / "clip" / WEIGHTS).write_text("version https://git-lfs"), "no safetensors file"),
    "weights missing": (lambda m: (m / "upsampler_256" / WEIGHTS).unlink(), "upsampler_256.*is missing"),
    "component missing": (lambda m: shutil.rmtree(m / "prior"), "prior/config.json is missing"),
    "scheduler missing": (lambda m: shutil.rmtree(m / "decoder_scheduler"), "decoder_scheduler.*missing"),
    "tokenizer missing": (lambda m: (m / "clip" / "tokenizer.json").unlink(), "tokenizer.json"),
    "index missing": (lambda m: (m / "model_index.json").unlink(), "no model_index.json.*not a pipeline"),
    "index damaged": (lambda m: _truncate(m / "model_index.json", 40), "model_index.json is damaged"),
    "config damaged": (lambda m: _truncate(m / "decoder" / "config.json", 20), "config.json is damaged"),
    "another network": (lambda m: _swap(m / "prior", m / "decoder"), "in .*: DiffusionPrior, found: Decoder"),
    "index of another pipeline": (lambda m: _configure_index(m, clip=[None, None]), "without clip: name the folder"),
    "config of nothing": (lambda m: (m / "prior" / "config.json").write_text("{}"), "cannot load the model"),
    "another shape": (lambda m: _configure(m / "decoder", width=32), "cannot load the model"),
}  # fmt: skip


def _swap(one: Path, other: Path) -> None:
    shutil.rmtree(one)
    shutil.copytree(other, one)


def _configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _configure_index(model: Path, **changes: object) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(tiny_model: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(tiny_model)
    with pytest.raises(UserError, match=message) as error:
        UnCLIPTextToImagePipeline.from_pretrained(tiny_model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c", Path("nowhere/there")])
def test_no_model_there(name: str | Path) -> None:
    with pytest.raises(UserError, match="no model folder at"):
        UnCLIPTextToImagePipeline.from_pretrained(name)


def test_a_component_is_no_pipeline(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="holds one network: build a pipeline with `unclip assemble`"):
        UnCLIPTextToImagePipeline.from_pretrained(tiny_model / "decoder")


def test_info_of_a_damaged_prior(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "priors").mkdir()
    (model / "priors" / "notes.txt").touch()
    assert not any("notes" in name for name in model_info(model)["components"])
    (model / "priors" / "ar").mkdir()
    with pytest.raises(UserError, match=r"priors/ar/config.json is missing"):
        model_info(model)
    (model / "priors" / "ar" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"priors/ar/config.json is damaged"):
        model_info(model)


def test_model_info(tiny_pipeline: UnCLIPTextToImagePipeline, tiny_model: Path) -> None:
    facts = model_info(tiny_model)
    assert facts["sizes"] == [16, 64, 256]
    assert facts["defaults"]["decoder_num_inference_steps"] == 2
    assert facts["components"]["prior_scheduler"] == {"class": "DDPMScheduler"}
    decoder = facts["components"]["decoder"]
    stored = sum(each.numel() for each in tiny_pipeline.decoder.state_dict().values())
    assert (decoder["class"], decoder["parameters"], decoder["dtypes"]) == ("Decoder", stored, ["F32"])
    assert facts["bytes"] == sum(path.stat().st_size for path in tiny_model.rglob("*.safetensors"))
    with pytest.raises(UserError, match="download the repository first"):
        model_info("owner/name")
