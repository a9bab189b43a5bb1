"""The task of the autoregressive prior on stand-in data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import AutoregressivePrior
from unclip.train.cli import configure, make_task
from unclip.train.tasks.captions import encoding_of, text_of
from unclip.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fake_data")


def task_of(*overrides: str, output: Path | str = "unused") -> Any:
    options: dict[str, str | int] = {"output": str(output), "data": "fake"}
    return make_task(configure("prior-ar", "tiny", overrides, options, resume=False))


def test_codes_are_fitted_to_the_pictures_trained_on(fake_data: SimpleNamespace) -> None:
    task = task_of()
    z = torch.from_numpy(fake_data.cache.image_embeds)[torch.from_numpy(task.data.sampling.trained)]
    fresh = AutoregressivePrior(embed_dim=8, token_dim=6, **task.config.model)
    fresh.fit_pca(z)
    assert_close(task.model.axes, fresh.axes)
    assert_close(task.model.scale, fresh.scale)
    # Here z_t is z_i, so the linear map of z_t gives the coordinates themselves.
    model = task.model
    assert_close(
        F.linear(z, model.expected_weight, model.expected_bias), model.coordinates(z), atol=0.02, rtol=0
    )


def test_the_loss_is_the_mean_cross_entropy_of_the_codes() -> None:
    task = task_of()
    batch = task.draw(5, np.random.default_rng(0))
    model, z = task.model.eval(), batch["image_embeds"]
    codes = model.encode(z)
    chances = model(codes, model.similarity_code(z, batch["text_embeds"]), **text_of(batch)).softmax(-1)
    expected = -chances.gather(2, codes[..., None]).log().mean()
    assert_close(task.loss(model, batch, torch.Generator())["loss"], expected)


def test_loss_falls_below_that_of_codes_drawn_blindly(tmp_path: Path) -> None:
    task = task_of("steps=60", "task.held_out=0", output=tmp_path / "run")
    trainer = Trainer(task.config, task)
    batch = task.draw(16, np.random.default_rng(0))
    losses = [trainer.train_step(20, batch)["loss"] for _ in range(60)]
    codes = task.model.encode(batch["image_embeds"])
    shares = F.one_hot(codes, 8).float().mean(0)
    blind = -torch.special.xlogy(shares, shares).sum(-1).mean()
    assert losses[0] > blind
    assert losses[-1] < 0.7 * blind


def test_validation_says_nats_and_how_close_samples_come() -> None:
    task = task_of()
    model = task.model.eval()
    with torch.no_grad():
        figures = task.validate(model)
    batch = task.held_out(torch.device("cpu"))
    assert len(batch["image_embeds"]) == 8
    assert_close(figures["nats"], float(task.loss(model, batch, torch.Generator())["loss"].detach()))
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    cosine = F.cosine_similarity(model.sample(encoding_of(batch), generators), batch["image_embeds"]).mean()
    assert_close(figures["cosine"], float(cosine))
    assert figures["cosine_of_text"] == pytest.approx(1)
    assert task_of("task.held_out=0").validate(model) == {}


def test_it_runs_through_the_trainer_and_loads_again(tmp_path: Path) -> None:
    options = ["checkpoint_every_steps=3", "decay=none"]
    states = []
    for name, lengths in (("whole", [5]), ("parts", [3, 5])):
        for steps in lengths:
            task = task_of(*options, f"steps={steps}", output=tmp_path / name)
            Trainer(task.config, task).run(resume=steps != lengths[0])
        states.append(dict(task.model.state_dict()))
    assert_close(*states, rtol=0, atol=0)
    loaded = AutoregressivePrior.from_pretrained(tmp_path / "whole" / "model")
    started = task_of(f"initial={tmp_path / 'whole'}", "seed=1")
    assert_close(dict(started.model.state_dict()), dict(loaded.state_dict()), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"initial=.* does not fit the model"):
        task_of(f"initial={tmp_path / 'whole'}", "model.components=5")


def test_it_needs_no_clip_where_there_is_a_cache() -> None:
    task = task_of()
    assert not hasattr(task, "clip")
    with pytest.raises(UserError, match=r"unknown key task\.drop_text"):
        task_of("task.drop_text=0.1")
