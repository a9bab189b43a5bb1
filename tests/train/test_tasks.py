"""The tasks of prior, decoder and upsamplers on stand-in data."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import Decoder, DiffusionPrior, RecallPrior, Upsampler
from unclip.train.cli import configure, make_task
from unclip.train.pictures import grid, random_background
from unclip.train.tasks.base import REMEMBERED, Task
from unclip.train.tasks.embedded import Sampling
from unclip.train.trainer import Trainer

CLASSES = {
    "prior": DiffusionPrior,
    "prior-recall": RecallPrior,
    "decoder": Decoder,
    "upsampler-256": Upsampler,
    "upsampler-1024": Upsampler,
}
STAGES = list(CLASSES)


def task_of(stage: str, output: Path | str = "unused", *overrides: str) -> Task:
    return make_task(
        configure(stage, "tiny", overrides, {"output": str(output), "data": "fake"}, resume=False)
    )


pytestmark = pytest.mark.usefixtures("fake_data")


@pytest.mark.parametrize("stage", STAGES)
def test_draw_loss_validate_save(stage: str, tmp_path: Path) -> None:
    task = task_of(stage)
    batch = task.draw(6, np.random.default_rng(0))
    assert {len(tensor) for tensor in batch.values()} == {6}
    again = task.draw(6, np.random.default_rng(0))
    assert all(torch.equal(batch[key], again[key]) for key in batch)

    losses = task.loss(task.model, batch, torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert all(value.ndim == 0 for value in losses.values())
    assert not [key for key, value in losses.items() if key != "loss" and value.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.parameters())

    with torch.no_grad():
        shown = task.validate(task.model.eval())
    figures = [value for value in shown.values() if not isinstance(value, Image.Image)]
    assert figures
    assert np.isfinite(figures).all()
    task.save(task.model, tmp_path / "model")
    loaded = CLASSES[stage].from_pretrained(tmp_path / "model")
    assert (loaded.config.prediction_type, loaded.config.schedule) == (
        "sample",
        "cosine" if stage.startswith("prior") else "flow",
    )
    fresh = task_of(stage, "unused", "seed=1", f"initial={tmp_path / 'model'}")
    states = [
        {k: v for k, v in each.model.state_dict().items() if k not in REMEMBERED} for each in (fresh, task)
    ]
    assert_close(*states, rtol=0, atol=0)
    (file,) = (tmp_path / "model").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"initial=.* does not fit the model"):
        task_of(stage, "unused", f"initial={tmp_path / 'model'}")


def test_golden_decoder_loss(tmp_path: Path) -> None:
    """Five steps, step by step: a refactor must not change the numbers."""
    task = task_of("decoder", tmp_path / "run")
    trainer = Trainer(task.config, task)
    losses = []
    for step in range(5):
        batch = task.draw(16, np.random.default_rng(step))
        losses.append(trainer.train_step(step, batch)["loss"])
    assert_close(losses, GOLDEN, rtol=2e-3, atol=1e-4)


GOLDEN = [2.357691, 1.551114, 3.843961, 1.206565, 1.935018]


@pytest.mark.parametrize("stage", ["prior", "prior-recall", "decoder", "upsampler-256"])
def test_loss_falls(stage: str, tmp_path: Path) -> None:
    task = task_of(stage, tmp_path / "run", "steps=40")
    trainer = Trainer(task.config, task)
    # The same batch and noise at every step: what is left of the loss is what was learned.
    batch = task.draw(task.config.batch_size, np.random.default_rng(0))
    losses = []
    for _ in range(40):
        trainer.generator.manual_seed(0)
        losses.append(trainer.train_step(20, batch)["loss"])
    assert losses[-1] < 0.7 * losses[0]


def test_decoder_batch(fake_data: SimpleNamespace) -> None:
    task: Any = task_of("decoder", "unused", "task.held_out=0")
    batch = task.draw(4000, np.random.default_rng(0))
    assert batch["pictures"].dtype == torch.uint8
    assert batch["pictures"].shape == (4000, 3, 16, 16)
    clean = (batch["noise_level"] == 0).float().mean()
    assert_close(
        [float(batch[k].float().mean()) for k in ("drop_image", "drop_text")], [0.1, 0.5], rtol=0, atol=0.03
    )
    assert_close(float(clean), 0.5, rtol=0, atol=0.03)
    # Picture and embedding are of the same sample.
    z = torch.from_numpy(fake_data.cache.image_embeds)
    indices = (batch["image_embeds"] @ z.T).argmax(1)
    assert torch.equal(batch["pictures"], task.thumbnails[indices])
    # The caption is one of the sample's.
    lengths = fake_data.cache.lengths.reshape(48, 2)[indices]
    assert all(
        n in pair for n, pair in zip(batch["text_mask"].sum(1).tolist(), lengths.tolist(), strict=True)
    )


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_weights_for_shorter_embeddings_are_those_of_the_last_entries(
    stage: str, fake_data: SimpleNamespace, tmp_path: Path
) -> None:
    """A network that starts from them is blind to the entries put in front; the data's statistics stay."""
    short: Any = task_of(stage)
    with torch.no_grad():  # zero-initialised layers would hide a mistake
        for parameter in short.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    short.save(short.model.eval(), tmp_path / "short")
    front = np.random.default_rng(3).standard_normal((48, 5)).astype(np.float32)
    fake_data.cache.image_embeds = np.concatenate([front, fake_data.cache.image_embeds], axis=1)
    fake_data.cache.text_embeds = np.pad(fake_data.cache.text_embeds, ((0, 0), (5, 0)))
    fake_data.empty.embeds = torch.nn.functional.pad(fake_data.empty.embeds, (5, 0))
    long: Any = task_of(stage, "unused", f"initial={tmp_path / 'short'}")
    assert_close(long.model.embed_mean[:5], torch.from_numpy(front).mean(0))
    assert_close(long.model.embed_mean[5:], short.model.embed_mean)
    batch = long.draw(4, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(1)
    if stage == "prior":
        text = {key: batch[key] for key in ("text_tokens", "text_mask")}
        x, t, z_t = torch.randn(4, 13, generator=generator), torch.rand(4), batch["text_embeds"]
        got = long.model.eval()(x, t, **text, text_embeds=z_t)
        # A unit-norm z_t is scaled by the root of its size.
        z_t_short = z_t[:, 5:] * (13 / 8) ** 0.5
        expected = short.model(x[:, 5:], t, **text, text_embeds=z_t_short)
        assert_close(got[:, 5:], expected, atol=1e-5, rtol=1e-4)
        assert not got[:, :5].any()
    else:
        condition = {key: batch[key] for key in ("text_tokens", "text_mask", "noise_level", "image_embeds")}
        x, t = torch.randn(4, 3, 16, 16, generator=generator), torch.rand(4)
        assert long.model.draft_weight.any()  # fitted to the longer embeddings: no longer that of the weights
        for task in (short, long):
            task.model.draft_weight.zero_(), task.model.draft_bias.zero_()
        got = long.model.eval()(x, t, **condition)
        shorter = {**condition, "image_embeds": batch["image_embeds"][:, 5:]}
        assert_close(got, short.model(x, t, **shorter), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_fine_tuning_keeps_the_scale_that_the_weights_learned_in(
    stage: str, fake_data: SimpleNamespace, tmp_path: Path
) -> None:
    """A few pictures of one's own have other statistics, and poor ones."""
    task: Any = task_of(stage)
    task.save(task.model, tmp_path / "model")
    fake_data.cache.image_embeds = np.repeat(fake_data.cache.image_embeds[:1], 48, axis=0)
    tuned: Any = task_of(stage, "unused", f"initial={tmp_path / 'model'}")
    assert torch.equal(tuned.model.embed_mean, task.model.embed_mean)
    assert torch.equal(tuned.model.embed_std, task.model.embed_std)
    fake_data.cache.image_embeds = -fake_data.cache.image_embeds
    with pytest.warns(UserWarning, match="was it trained on embeddings of this CLIP"):
        task_of(stage, "unused", f"initial={tmp_path / 'model'}")
    if stage == "decoder":
        assert torch.equal(tuned.model.draft_weight, task.model.draft_weight)
        assert torch.equal(tuned.model.draft_bias, task.model.draft_bias)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("prior", "model.width=64"),
        ("prior", "model.heads=4"),
        ("prior", "model.max_tokens=40"),
        ("decoder", "model.width=64"),
        ("decoder", "model.map_channels=64"),
        ("decoder", "model.draft_size=8"),
        ("upsampler-256", "model.channels=[16,32]"),
        ("upsampler-256", "model.channels=[8,24]"),
    ],
)
def test_weights_of_another_architecture_are_refused(stage: str, change: str, tmp_path: Path) -> None:
    """Only what depends on the embeddings' size may grow."""
    task = task_of(stage)
    task.save(task.model, tmp_path / "model")
    with pytest.raises(UserError, match=r"initial=.* does not fit the model"):
        task_of(stage, "unused", change, f"initial={tmp_path / 'model'}")


@pytest.mark.parametrize("change", ["task.noises=0", "task.time_skew=0", "task.time_skew=.nan"])
def test_impossible_options_of_the_prior_are_named(change: str) -> None:
    with pytest.raises(UserError, match=change.split("=")[0].replace(".", r"\.") + ": expected"):
        task_of("prior", "unused", change)


def test_prior_replaces_dropped_captions_by_the_empty_one(fake_data: SimpleNamespace) -> None:
    task: Any = task_of("prior", "unused", "task.drop_text=1.0")
    batch = task.draw(3, np.random.default_rng(0))
    assert batch["text_mask"].sum(1).tolist() == [2, 2, 2]
    assert_close(batch["text_embeds"], fake_data.empty.embeds.expand(3, -1))
    assert_close(batch["text_tokens"][:, :2], torch.ones(3, 2, 6))
    kept = task_of("prior", "unused", "task.drop_text=0.0").draw(3, np.random.default_rng(0))
    assert_close((kept["text_embeds"] * kept["image_embeds"]).sum(1), torch.ones(3))


def test_several_noised_embeddings_share_a_caption(fake_data: SimpleNamespace) -> None:
    """The loss of n noised z_i for each caption is that of n rows, each with the caption."""
    together: Any = task_of("prior", "unused", "task.noises=3", "task.time_skew=2")
    batch = together.draw(4, np.random.default_rng(0))
    loss = together.loss(together.model, batch, torch.Generator().manual_seed(0))["loss"]
    alone: Any = task_of("prior")
    alone.schedule = SimpleNamespace(
        sample_t=lambda n, generator, each: together.schedule.sample_t(4, generator, each=3),
        alpha_sigma=together.schedule.alpha_sigma,
        to_level=together.schedule.to_level,
    )
    rows = {key: value.repeat_interleave(3, dim=0) for key, value in batch.items()}
    assert_close(alone.loss(together.model, rows, torch.Generator().manual_seed(0))["loss"], loss)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_prior_of_several_noises_goes_on_where_it_stopped(workers: int, tmp_path: Path) -> None:
    """Through the trainer, in two parts a batch, stopped after three steps of five."""
    options = ["task.noises=2", "accumulation=2", f"num_workers={workers}", "checkpoint_every_steps=3"]

    def steps_of(output: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        task = task_of("prior", output, *options, f"steps={steps}", "decay=none")
        Trainer(task.config, task).run(resume=resume)
        return dict(task.model.state_dict())

    whole = steps_of(tmp_path / "whole", 5)
    steps_of(tmp_path / "parts", 3)
    assert_close(steps_of(tmp_path / "parts", 5, resume=True), whole, rtol=0, atol=0)


def test_a_batch_holds_captions_of_like_lengths(fake_data: SimpleNamespace) -> None:
    task: Any = task_of("prior", "unused", "task.held_out=0")
    rng = np.random.default_rng(0)
    drawn = [task.data.draw(8, rng) for _ in range(600)]
    lengths = fake_data.cache.lengths
    padding = np.mean([lengths[c].max() * 8 - lengths[c].sum() for _, c in drawn])
    apart = np.split(np.concatenate([c for _, c in drawn])[rng.permutation(4800)], 600)
    assert padding < 0.6 * np.mean([lengths[c].max() * 8 - lengths[c].sum() for c in apart])
    shares = np.bincount(np.concatenate([i for i, _ in drawn]), minlength=48) / 4800
    assert_close(shares, fake_data.pictures.weights, rtol=0, atol=0.012)
    assert all(c // 2 == i for indices, captions in drawn for i, c in zip(indices, captions, strict=True))


def test_upsampler_batch() -> None:
    task: Any = task_of("upsampler-256", "unused", "task.clean_share=1.0", "task.background_share=1.0")
    batch = task.draw(5, np.random.default_rng(0))
    assert batch["pictures"].shape == (5, 3, 32, 32)
    assert batch["low_res"].shape == (5, 3, 8, 8)
    assert float(batch["noise_level"].max()) == 0
    high = batch["pictures"].float() / 127.5 - 1
    assert_close(batch["low_res"], high.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)))
    noisy = task_of("upsampler-256", "unused", "task.clean_share=0.0").draw(5, np.random.default_rng(0))
    assert float(noisy["noise_level"].min()) > 0
    assert float(noisy["low_res"].abs().max()) <= 1


def test_upsampler_learns_from_what_the_stage_before_makes(tmp_path: Path) -> None:
    """Its pictures stand in for the area mean; an untrained one enlarges bicubically."""
    before = Upsampler(channels=(8, 16), blocks=1, embed_channels=16, skin_channels=4)
    before.save_pretrained(tmp_path)
    options = ("task.clean_share=1.0", f"task.before={tmp_path}", "task.before_steps=1")
    task: Any = task_of("upsampler-256", "unused", *options, "task.before_share=1.0")
    batch = task.draw(5, np.random.default_rng(0))
    high = batch["pictures"].float() / 127.5 - 1
    small = F.interpolate(F.avg_pool2d(high, 16), scale_factor=4, mode="bicubic")
    assert_close(batch["low_res"], small.clamp(-1, 1), rtol=0, atol=1e-5)
    never = task_of("upsampler-256", "unused", *options, "task.before_share=0.0").draw(
        5, np.random.default_rng(0)
    )
    assert_close(never["low_res"], F.avg_pool2d(high, 4))
    for wrong, message in ((tmp_path / "nowhere", "config.json is missing"), (tmp_path, "multiple of 16")):
        with pytest.raises(UserError, match=message):
            task_of("upsampler-256", "unused", f"task.before={wrong}", "task.crop=24")
    for option in ("before_share=1.5", "before_steps=0"):
        with pytest.raises(UserError, match=rf"task\.{option.split('=')[0]}: expected"):
            task_of("upsampler-256", "unused", f"task.{option}")
    Upsampler(channels=(8,), schedule="cosine").save_pretrained(tmp_path / "cosine")
    with pytest.raises(UserError, match="expected an upsampler of schedule flow"):
        task_of("upsampler-256", "unused", f"task.before={tmp_path / 'cosine'}")


def test_upsampler_1024_draws_vector_pictures_only() -> None:
    task: Any = task_of("upsampler-1024")
    assert all(index % 2 for index in [*task.sampling.trained, *task.sampling.held_out])
    whole = task.crops(1, [(384, 384)])[0]
    assert whole.shape == (64, 64, 4)
    assert whole[32, 32].tolist() == [255, 0, 0, 255]
    with pytest.raises(ValueError, match="no SVG"):
        task.crops(0, [(0, 0)])


def test_the_task_goes_to_workers_without_its_model() -> None:
    task = task_of("decoder")
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert not hasattr(copy, "model")
    a, b = (each.draw(2, np.random.default_rng(0)) for each in (task, copy))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_held_out_samples_are_never_drawn() -> None:
    config = configure("decoder", "tiny", [], {"data": "fake"}, resume=False)
    sampling = Sampling(np.full(30, 1 / 30), config, held_out=10)
    drawn = set(sampling.draw(2000, np.random.default_rng(0)).tolist())
    assert drawn == set(range(30)) - set(sampling.held_out.tolist())
    with pytest.raises(UserError, match=r"task\.held_out"):
        Sampling(np.full(10, 0.1), config, held_out=10)


def test_pictures() -> None:
    background = random_background(16, np.random.default_rng(0))
    assert background.shape == (16, 16, 3)
    sheet = np.asarray(
        grid(torch.arange(3)[:, None, None, None].expand(3, 3, 2, 2).to(torch.uint8), columns=2)
    )
    assert sheet[:, :, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 255, 255]]
