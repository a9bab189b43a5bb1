"""The task of the regression prior on stand-in data, and runs of no steps."""

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
from unclip.models import RegressionPrior
from unclip.train.cli import configure, make_task, train
from unclip.train.tasks.captions import encoding_of
from unclip.train.tasks.prior_regression import TEMPERATURE, contrastive_loss
from unclip.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fake_data")


def task_of(*overrides: str, preset: str = "tiny", output: Path | str = "unused") -> Any:
    options: dict[str, str | int] = {"output": str(output), "data": "fake"}
    return make_task(configure("prior-regression", preset, overrides, options, resume=False))


def unrelated(fake_data: SimpleNamespace) -> None:
    """Captions whose embeddings say little of their pictures', as they do in the stand-in cache."""
    z_t = np.random.default_rng(5).standard_normal((96, 8)).astype(np.float32)
    fake_data.cache.text_embeds = z_t / np.linalg.norm(z_t, axis=1, keepdims=True)


def test_training_begins_at_the_linear_fit(fake_data: SimpleNamespace) -> None:
    unrelated(fake_data)
    task = task_of("task.held_out=0")
    fresh = RegressionPrior(embed_dim=8, token_dim=6, layers=0)
    pictures, captions = (torch.from_numpy(each) for each in task.pairs())
    assert torch.equal(captions // 2, pictures)
    fresh.fit_linear(task.text_embeds[captions], task.data.image_embeds[pictures])
    assert_close(task.model.weight, fresh.weight)
    batch = task.draw(6, np.random.default_rng(0))
    losses = task.loss(task.model, batch, torch.Generator())
    z = F.linear(batch["text_embeds"], fresh.weight, fresh.bias)
    assert_close(
        losses["error"], F.mse_loss(task.model.normalize(z), task.model.normalize(batch["image_embeds"]))
    )
    assert_close(losses["contrastive"], contrastive_loss(F.normalize(z, dim=-1), batch["text_embeds"]))
    assert_close(losses["loss"].detach(), losses["error"] + 0.2 * losses["contrastive"])


def test_the_contrast_is_between_a_picture_and_the_captions_of_the_batch() -> None:
    z, z_t = F.normalize(torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = 0.0
    for i in range(4):
        terms = [torch.exp(z[i] @ z_t[j] / TEMPERATURE) for j in range(4)]
        expected += float(-torch.log(terms[i] / sum(terms))) / 4
    assert float(contrastive_loss(z, z_t)) == pytest.approx(expected, rel=1e-4)


def test_loss_falls_below_that_of_the_linear_fit(fake_data: SimpleNamespace, tmp_path: Path) -> None:
    unrelated(fake_data)
    task = task_of("steps=60", output=tmp_path / "run")
    trainer = Trainer(task.config, task)
    batch = task.draw(16, np.random.default_rng(0))
    losses = [trainer.train_step(20, batch)["error"] for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_preset_of_no_steps_saves_the_linear_prior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"preset_name": "linear", "data": "fake", "output": str(tmp_path / "run")}
    assert train("prior-regression", ["task.held_out=8"], **options)
    assert not (tmp_path / "run" / "checkpoints").exists()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(log) == 1
    assert '"validation/cosine": ' in log[0]
    loaded = RegressionPrior.from_pretrained(tmp_path / "run" / "model")
    task = task_of("task.held_out=8", preset="linear")
    assert_close(dict(loaded.state_dict()), dict(task.model.state_dict()), rtol=0, atol=0)
    # Here z_t is z_i, so the map is nearly the identity.
    batch = task.held_out(torch.device("cpu"))
    assert_close(loaded.sample(encoding_of(batch)), batch["image_embeds"], atol=0.02, rtol=0)
    with pytest.raises(UserError, match="is not empty"):
        train("prior-regression", **options)
    capsys.readouterr()
    assert train("prior-regression", preset_name="linear", data="fake", dry_run=True)
    shown = capsys.readouterr().out
    assert "parameters: 0 (0 trained)" in shown
    assert "estimated: no step" in shown


def test_steps_for_a_network_without_parameters_are_refused(tmp_path: Path) -> None:
    task = task_of("steps=5", "task.held_out=8", preset="linear", output=tmp_path / "run")
    with pytest.raises(UserError, match="no trainable parameters: give steps=0"):
        Trainer(task.config, task)


def test_no_step_leaves_a_network_as_it_begins(tmp_path: Path) -> None:
    task = task_of("steps=0", output=tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    outcome = Trainer(task.config, task).run()
    assert (outcome.step, outcome.interrupted) == (0, False)
    loaded = RegressionPrior.from_pretrained(tmp_path / "run" / "model")
    assert_close(dict(loaded.state_dict()), before, rtol=0, atol=0)


def test_it_starts_from_saved_weights_and_keeps_their_linear_map(
    fake_data: SimpleNamespace, tmp_path: Path
) -> None:
    first = task_of()
    first.save(first.model, tmp_path / "model")
    unrelated(fake_data)
    second = task_of(f"initial={tmp_path / 'model'}", "seed=1")
    assert_close(dict(second.model.state_dict()), dict(first.model.state_dict()), rtol=0, atol=0)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"task\.contrastive_weight: expected at least 0, got -1"):
        task_of("task.contrastive_weight=-1")
