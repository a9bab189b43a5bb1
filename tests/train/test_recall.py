"""What a training sample recalls: the nearest, with what is hidden left out; shares as asked; weights to start from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models.memory import NOBODY
from unclip.train.cli import configure, make_task
from unclip.train.tasks.base import Task

pytestmark = pytest.mark.usefixtures("fake_data")

NONE_HIDDEN = ("task.hide_own=0", "task.hide_subject=0", "task.hide_all=0")


def task_of(*overrides: str, stage: str = "prior-recall") -> Task:
    return make_task(configure(stage, "tiny", overrides, {"output": "unused", "data": "fake"}, resume=False))


def own_rows(task: Any, indices: np.ndarray) -> torch.Tensor:
    return task.near.row_of[torch.from_numpy(indices)]


def test_a_picture_recalls_itself_first_and_its_value_is_its_embedding() -> None:
    task: Any = task_of(*NONE_HIDDEN)
    indices, captions = task.data.draw(200, np.random.default_rng(0))
    near = task.near.choose(indices, captions, np.random.default_rng(1))
    assert near.shape == (200, 3)
    assert torch.equal(near[:, 0], own_rows(task, indices))
    values = task.model.memory.read(task.text_embeds[torch.from_numpy(captions)], near).values[:, 0]
    z = task.model.normalize(task.data.image_embeds[torch.from_numpy(indices)])
    assert F.cosine_similarity(values, z).min() > 0.97


def test_its_own_picture_is_hidden_and_another_takes_its_place() -> None:
    task: Any = task_of(
        "task.hide_own=1", "task.hide_subject=0", "task.hide_all=0", "model.least_likeness=-1"
    )
    indices, captions = task.data.draw(200, np.random.default_rng(0))
    near = task.near.choose(indices, captions, np.random.default_rng(1))
    assert (near != NOBODY).all()
    assert not (near == own_rows(task, indices)[:, None]).any()


def test_shares_are_hidden_as_asked(fake_data: SimpleNamespace) -> None:
    """Pictures 0 to 9 show one subject; every other picture has one of its own."""
    for i, record in enumerate(fake_data.pictures.records):
        record["concept"] = "ten" if i < 10 else ""
    fake_data.cache.text_embeds[:20] = (
        fake_data.cache.text_embeds[0] + 1e-3 * fake_data.cache.text_embeds[:20]
    )
    options = ("task.hide_own=0.4", "task.hide_subject=0.3", "task.hide_all=0.1", "task.held_out=0")
    task: Any = task_of(*options, "model.least_likeness=-1")
    rng = np.random.default_rng(0)
    captions = rng.integers(0, 20, 6000)  # of the ten
    near = task.near.choose(captions // 2, captions, rng)
    kin = (near >= 0) & (near < 10)
    nothing = (near == NOBODY).all(1)
    assert_close(float(nothing.float().mean()), 0.1, atol=0.02, rtol=0)
    # The ten have one embedding, so they are always nearest: only where they are hidden is none of them there.
    without_kin = ~kin.any(1) & ~nothing
    assert_close(float(without_kin.float().mean()), 0.3, atol=0.02, rtol=0)
    assert (near[without_kin] != NOBODY).all()  # others take their places


def test_pictures_held_out_are_not_remembered(fake_data: SimpleNamespace) -> None:
    task: Any = task_of()
    held_out = task.data.sampling.held_out
    assert len(task.model.memory.keys) == 48 - len(held_out)
    assert (own_rows(task, held_out) == NOBODY).all()


def test_a_dropped_caption_recalls_nobody() -> None:
    task: Any = task_of(*NONE_HIDDEN, "task.drop_text=1.0")
    assert (task.draw(8, np.random.default_rng(0))["rows"] == NOBODY).all()


def test_it_starts_from_the_prior_without_a_memory(tmp_path: Path) -> None:
    plain: Any = task_of(stage="prior")
    plain.save(plain.model, tmp_path / "prior")
    task: Any = task_of(f"initial={tmp_path / 'prior'}")
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], tensor)
    assert task.model.memory.values.any()
    assert len(task.near.near) == 96


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    """Layers may be missing only where all of them are: in weights of the prior without a memory."""
    task: Any = task_of()
    task.save(task.model, tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    save_file({k: v for k, v in load_file(file).items() if k != "trust.weight"}, file)
    with pytest.raises(UserError, match=r"trust\.weight"):
        task_of(f"initial={tmp_path / 'model'}")


def test_a_worker_gets_no_network() -> None:
    task = task_of()
    assert {"model", "clip"} <= set(vars(task))
    assert not {"model", "clip"} & set(task.__getstate__())


def test_it_remembers_the_data_at_hand_not_that_of_the_weights(
    fake_data: SimpleNamespace, tmp_path: Path
) -> None:
    first: Any = task_of("task.held_out=0")
    first.save(first.model, tmp_path / "model")
    fake_data.cache.image_embeds = fake_data.cache.image_embeds[::-1].copy()
    second: Any = task_of("task.held_out=8", f"initial={tmp_path / 'model'}")
    memory = second.model.memory
    assert torch.equal(memory.projection, first.model.memory.projection)  # what the weights know keys by
    count = len(memory.values)
    stored = memory.read(torch.ones(count, 8), torch.arange(count)[:, None]).values[:, 0]
    z = second.model.normalize(second.data.image_embeds[torch.from_numpy(second.data.sampling.trained)])
    assert F.cosine_similarity(stored, z).min() > 0.97


def test_a_memory_that_the_empty_caption_finds_something_in_is_named() -> None:
    with pytest.warns(UserWarning, match="the memory finds pictures like the empty caption"):
        task_of("model.least_likeness=-1")


@pytest.mark.parametrize("options", [["task.hide_own=-0.1"], ["task.hide_own=0.8", "task.hide_all=0.3"]])
def test_options_are_checked(options: list[str]) -> None:
    with pytest.raises(UserError, match=r"add up to at most 1, got task\.hide_own"):
        task_of(*options)
