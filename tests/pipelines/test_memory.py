"""`low_memory`: the same pictures, with no network in memory but the one at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from benchmarks import karlo_checkpoint
from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextToImagePipeline

NETWORKS = ("clip", "prior", "decoder", "upsampler_256")


@pytest.fixture(params=["published", "saved"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_pipeline: Any) -> Path:
    if request.param == "published":
        return karlo_checkpoint.write_checkpoint(tmp_path / "karlo")
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def draw(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    steps = {f"{stage}_num_inference_steps": 2 for stage in ("prior", "decoder", "upsampler")}
    generator = torch.Generator().manual_seed(0)
    return pipe("a red apple", generator=generator, output_type="pt", **steps, **options).images


def in_memory(pipe: Any) -> set[str]:
    return {
        name for name in NETWORKS if any(p.device.type != "meta" for p in getattr(pipe, name).parameters())
    }


def test_only_the_network_at_work_is_in_memory(folder: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(folder, low_memory=True)
    assert in_memory(pipe) == set()
    assert pipe.device == torch.device("cpu")
    seen: dict[str, set[str]] = {}

    def look(pipe: Any, index: int, timestep: Any, tensors: Any) -> None:
        seen.setdefault(pipe.stage, set()).update(in_memory(pipe))

    made = draw(pipe, callback_on_step_end=look)
    assert seen == {name: {name} for name in NETWORKS[1:]}
    assert in_memory(pipe) == set()
    assert_close(made, draw(UnCLIPTextToImagePipeline.from_pretrained(folder)), rtol=0, atol=1e-6)
    assert_close(draw(pipe), made, rtol=0, atol=1e-6)  # a second time


def test_networks_of_ones_own_stay_in_memory(folder: Path) -> None:
    whole = UnCLIPTextToImagePipeline.from_pretrained(folder)
    with torch.no_grad():
        next(whole.decoder.parameters()).add_(1)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(folder, low_memory=True, decoder=whole.decoder)
    assert in_memory(pipe) == {"decoder"}
    expected = draw(whole)
    assert_close(draw(pipe), expected, rtol=0, atol=1e-6)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(folder, low_memory=True)
    assert_close(
        draw(UnCLIPTextToImagePipeline.from_pipe(pipe, decoder=whole.decoder)), expected, rtol=0, atol=1e-6
    )


def test_outlines_are_not_saved(folder: Path, tmp_path: Path) -> None:
    pipe = UnCLIPTextToImagePipeline.from_pretrained(folder, low_memory=True)
    with pytest.raises(
        UserError, match="low_memory holds no networks to save: load the model without it first"
    ):
        pipe.save_pretrained(tmp_path / "other")


def test_a_hub_repository_has_to_be_there_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from unclip.pipelines import components

    monkeypatch.setattr(components, "published_folder", lambda source, layouts, **hub: None)
    with pytest.raises(
        UserError, match="low_memory reads from a folder, got owner/name: download the repository"
    ):
        UnCLIPTextToImagePipeline.from_pretrained("owner/name", low_memory=True)
