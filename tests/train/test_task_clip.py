"""The contrastive task on a toy set: 12 concepts (colour x shape) in 2 styles; no shards, no pretrained towers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from torch.testing import assert_close

from unclip.clip import FrozenCLIP
from unclip.clip.loss import MaskedClipLoss
from unclip.data.images import on_background
from unclip.errors import UserError
from unclip.train.config import TrainConfig
from unclip.train.tasks import clip as task_module
from unclip.train.tasks.clip import ClipTask
from unclip.train.tasks.clip_batches import PictureIndex, place
from unclip.train.trainer import Trainer

COLOURS = {"red": (230, 30, 30), "green": (20, 160, 40), "blue": (40, 60, 220), "yellow": (240, 210, 30)}
SHAPES, STYLES = ("square", "bar", "frame"), ("flat", "dotted")


class ToyImages:
    """24 pictures; all of them whatever the split, so that each test knows its rows."""

    def __init__(self, path: Any, split: str | None = "train") -> None:
        self.path = path
        self.records = [
            {
                "subject": f"{colour} {shape}",
                "concept": f"{colour} {shape}",
                "style": style,
                "subgroup": shape,
                "split": "unseen" if shape == "bar" else "train",
                "captions": {"bare": f"{colour} {shape}", "style_comma": f"{colour} {shape}, {style}"},
            }
            for colour, shape, style in product(COLOURS, SHAPES, STYLES)
        ]
        self.weights = np.full(len(self.records), 1 / len(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def thumbnails(self, size: int, progress: bool = False) -> np.ndarray:
        out = np.zeros((len(self), size, size, 4), np.uint8)
        q = size // 4
        for picture, record in zip(out, self.records, strict=True):
            colour, shape = record["concept"].split()
            picture[q : 3 * q, (0 if shape == "bar" else q) : (size if shape == "bar" else 3 * q), 3] = 255
            if shape == "frame":
                picture[q + 3 : 3 * q - 3, q + 3 : 3 * q - 3] = 0
            picture[..., :3] = COLOURS[colour]
            if record["style"] == "dotted":
                picture[::2, ::2] = 0
        return out

    def rgb(self, i: int, size: int) -> np.ndarray:
        return on_background(self.thumbnails(size)[i])

    def rgba(self, i: int, size: int) -> np.ndarray:
        return self.thumbnails(size)[i]

    def caption(self, i: int, rng: np.random.Generator) -> str:
        return list(self.records[i]["captions"].values())[rng.integers(2)]


class ToyScenes:
    """A grey scene with a caption of its own."""

    def __init__(self, ds: Any, seed: int, length: int, split: str = "train", size: int = 64) -> None:
        self.size = size

    def __getitem__(self, i: int) -> Any:
        class Scene:
            image = np.full((self.size, self.size, 3), i, np.uint8)
            caption = f"scene number {i}"

        return Scene()


@pytest.fixture(autouse=True)
def toy_data(monkeypatch):
    monkeypatch.setattr(task_module, "CaptionedImages", ToyImages)
    monkeypatch.setattr(task_module, "load_pictures", lambda config: ToyImages(config.data))
    monkeypatch.setattr(task_module, "ComposedScenes", ToyScenes)


CONFIG = TrainConfig(
    stage="clip",
    preset="test",
    data="toy",
    steps=30,
    batch_size=16,
    learning_rate=2e-3,
    model={
        "embed_dim": 16,
        "image_size": 32,
        "image_model": "test_efficientnet",
        "layout_dims": 4,
        "text": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
    task={"text_tower": "scratch", "image_tower": "scratch", "scene_pool": 20},
)


@pytest.fixture
def task():
    return ClipTask(ClipTask.resolve(CONFIG))


def test_a_batch_repeats_from_its_seed_and_holds_pictures_and_scenes(task):
    batch = task.draw(16, np.random.default_rng(5))
    assert batch["images"].shape == (16, 3, 32, 32)
    assert batch["images"].dtype is torch.uint8
    assert {len(tensor) for tensor in batch.values()} == {16}
    assert (batch["style"] == -1).sum() == 2  # 12 % of 16 are scenes
    assert_close(task.draw(16, np.random.default_rng(5)), batch)
    assert not torch.equal(task.draw(16, np.random.default_rng(6))["images"], batch["images"])


def test_batches_hold_the_same_subject_in_several_styles():
    index = PictureIndex(ToyImages("toy"))
    rows = index.draw(12, np.random.default_rng(0), same_subject=0.5, same_kind=0.25)
    assert len(set(rows.tolist())) == 12
    concepts = np.bincount(index.concept[rows[:6]])
    assert (concepts[concepts > 0] == 2).all()
    assert len(index.draw(100, np.random.default_rng(0), 0.5, 0.25)) == 100  # larger than the set


def test_labels_know_which_captions_name_a_style():
    index = PictureIndex(ToyImages("toy"))
    labels = index.labels(np.array([0, 1]), ["red square", "Red square, dotted", "a scene"])
    assert labels["names_style"].tolist() == [False, True, True]
    assert labels["concept"].tolist() == [0, 0, 12]


def test_loss_is_open_clips_without_its_false_negatives():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(5, 8, generator=generator)) for _ in range(2))
    scale, eye = torch.tensor(10.0), torch.eye(5, dtype=torch.bool)
    assert_close(MaskedClipLoss()(image, text, scale, eye), ClipLoss()(image, text, scale))
    # Two pairs that are true of one another: leaving them out equals a batch without the other.
    true = eye.clone()
    true[0, 1] = true[1, 0] = True
    logits = (scale * text @ image.T).masked_fill(true & ~eye, -torch.inf)
    rows = torch.arange(5)
    expected = -(logits.log_softmax(1)[rows, rows] + logits.log_softmax(0)[rows, rows]).mean() / 2
    assert_close(MaskedClipLoss()(image, text, scale, true), expected)


def test_sprites_lie_on_their_background():
    rgba = np.zeros((2, 16, 16, 4), np.uint8)
    rgba[:, 6:10, 6:10] = (255, 0, 0, 255)
    images = place(rgba, np.random.default_rng(0), coloured=0.0)
    assert (images[:, :, 0, 0] == 255).all()
    assert images[:, 1].min() < 40  # red sits there: no green
    assert images[:, 0].min() >= 254
    tinted = place(rgba, np.random.default_rng(0), coloured=1.0)
    assert (tinted[:, :, 0, 0] != 255).any()


def test_training_learns_and_the_saved_clip_finds_pictures(task, tmp_path):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=CONFIG.learning_rate)
    losses = []
    task.model.train()
    for step in range(CONFIG.steps):
        out = task.loss(task.model, task.draw(CONFIG.batch_size, np.random.default_rng(step)), None)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    again = ClipTask(ClipTask.resolve(CONFIG))  # fits the code to the same pictures: training left it alone
    assert torch.equal(task.model.visual.layout.weight, again.model.visual.layout.weight)
    assert not again.model.visual.layout.weight[-1].any()
    task.model.eval()
    figures = task.validate(task.model)
    assert set(figures) == {"unseen_top1", "unseen_top5"}
    assert figures["unseen_top5"] > 5 / 8  # 8 pictures: better than chance
    task.save(task.model, tmp_path / "clip")
    clip = FrozenCLIP.from_pretrained(tmp_path / "clip")
    assert not torch.equal(clip.embed_std, torch.ones(16))
    again.load(tmp_path / "clip")
    assert_close(dict(again.model.state_dict()), dict(task.model.state_dict()), atol=2e-3, rtol=1e-3)


def test_a_longer_layout_code_takes_over_the_towers(task, tmp_path):
    """Same deep part of z_i, a longer code before it, and a text that says nothing yet of the new entries."""
    task.save(task.model.eval(), tmp_path / "clip")
    wider = {**CONFIG.model, "layout_dims": 7, "embed_dim": 19}
    longer = ClipTask(ClipTask.resolve(replace(CONFIG, model=wider)))
    longer.load(tmp_path / "clip")
    longer.save(longer.model.eval(), tmp_path / "longer")
    short, long = (FrozenCLIP.from_pretrained(tmp_path / name) for name in ("clip", "longer"))
    pixels = (
        torch.from_numpy(ToyImages("toy").thumbnails(32)[..., :3]).permute(0, 3, 1, 2).float() / 127.5 - 1
    )
    z, z_long = short.encode_image(pixels), long.encode_image(pixels)
    assert_close(z_long[:, 7:] * (19 / 16) ** 0.5, z[:, 4:], atol=1e-4, rtol=1e-3)
    # The old components stand behind the new ones, all on another scale; the constant is last.
    assert_close(z_long[:, 3:5] / z_long[:, 5:6], z[:, :2] / z[:, 2:3], atol=1e-2, rtol=1e-2)
    text = long.encode_text(["red square", "blue bar"])
    assert not text.embeds[:, :3].any()
    assert_close(
        text.embeds[:, 3:], short.encode_text(["red square", "blue bar"]).embeds, atol=1e-4, rtol=1e-3
    )
    with pytest.raises(
        UserError, match=r"another architecture: its layout code has 7 entries, more than .*=4"
    ):
        ClipTask(ClipTask.resolve(replace(CONFIG, model=CONFIG.model))).load(tmp_path / "longer")
    with torch.no_grad():  # as if fitted to other pictures, or by another library
        task.model.visual.layout.weight[1].neg_()
    task.save(task.model, tmp_path / "flipped")
    with pytest.raises(
        UserError, match=r"fitted to other pictures than these \(a component's cosine is -1.00\)"
    ):
        longer.load(tmp_path / "flipped")


def test_a_locked_image_tower_stays_as_it_is(tmp_path):
    """Through the trainer, with batch norms that count their batches."""
    with pytest.raises(UserError, match="locked_image needs initial=DIR"):
        ClipTask.resolve(replace(CONFIG, task={**CONFIG.task, "locked_image": True}))
    config = replace(
        CONFIG, task={**CONFIG.task, "locked_image": True}, initial="given", output=str(tmp_path), steps=2
    )
    locked = ClipTask(ClipTask.resolve(config))
    before = {name: tensor.clone() for name, tensor in locked.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    Trainer(locked.config, locked).run()
    changed = {
        name for name, tensor in locked.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert {name.split(".")[0] for name in changed} == {"text", "logit_scale"}


def test_a_tower_without_layout_code(tmp_path):
    plain = ClipTask(ClipTask.resolve(replace(CONFIG, model={**CONFIG.model, "layout_dims": 0})))
    plain.save(plain.model.eval(), tmp_path / "clip")
    clip = FrozenCLIP.from_pretrained(tmp_path / "clip")
    assert not hasattr(clip.model.visual, "layout")
    assert clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_wrong_options_are_one_line(tmp_path, task):
    with pytest.raises(UserError, match=r"model\.image_sice: did you mean model\.image_size"):
        ClipTask.resolve(replace(CONFIG, model={"image_sice": 3}))
    with pytest.raises(
        UserError, match=r"model\.layout_dims: expected 2 to 15 \(at embed_dim 16\), or 0; got 64"
    ):
        ClipTask(replace(CONFIG, model={**CONFIG.model, "layout_dims": 64}))
    for wrong, message in (
        ({"image_model": "tf_efficientnet_lite7"}, "did you mean tf_efficientnet_lite"),
        ({"text": {"hidden_sice": 3}}, r"model\.text\.hidden_sice: did you mean model\.text\.hidden_size"),
    ):
        with pytest.raises(UserError, match=message):
            ClipTask.resolve(replace(CONFIG, model={**CONFIG.model, **wrong}))
    pretrained = replace(CONFIG, model={"image_model": "resnet18"}, task={})
    with pytest.raises(UserError, match=r"got model\.image_model=resnet18: start it from scratch"):
        ClipTask.resolve(pretrained)
    with pytest.raises(UserError, match="positions for 1 to 512 tokens, got 600"):
        ClipTask.resolve(replace(CONFIG, model={"context_length": 600}, task={}))
    with pytest.raises(UserError, match=r"task\.text_tower: expected minilm or scratch"):
        ClipTask(replace(CONFIG, task={"text_tower": "bert"}))
    task.save(task.model.eval(), tmp_path / "clip")
    other = ClipTask(replace(CONFIG, model={**CONFIG.model, "embed_dim": 8}))
    with pytest.raises(UserError, match="another architecture: embed_dim would have to be 16, got 8"):
        other.load(tmp_path / "clip")
