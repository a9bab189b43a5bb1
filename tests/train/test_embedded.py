"""Composed scenes among the samples of prior and decoder, and the cache of their embeddings."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.clip.things import PLACES, things_in
from unclip.data import CaptionedImages, ComposedScenes
from unclip.errors import UserError
from unclip.train.cli import configure, make_task
from unclip.train.tasks import embedded, prior, task_class
from unclip.train.tasks.base import Task

LOAD_CACHE = embedded.load_cache  # before `fake_data` puts a stand-in there

pytestmark = pytest.mark.usefixtures("fake_data")


def task_of(stage: str, *overrides: str) -> Task:
    return make_task(configure(stage, "tiny", overrides, {"output": "unused", "data": "fake"}, resume=False))


@pytest.mark.parametrize("stage", ["prior", "prior-recall", "decoder"])
def test_a_share_of_the_samples_are_scenes(
    stage: str, real: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenes come with their own embedding, caption and, for the decoder, picture."""
    clip = CountingCLIP()
    monkeypatch.setattr(embedded, "load_pictures", lambda _: real)
    for module in (embedded, prior):
        monkeypatch.setattr(module, "load_clip", lambda _: clip)
    monkeypatch.setattr(embedded, "load_cache", LOAD_CACHE)
    options = ["task.scenes=6", "task.scene_share=0.5", "task.held_out=4", "clip=counting"]
    task: Any = task_of(stage, *options)
    rng = np.random.default_rng(0)
    draws = [task.data.draw(8, rng) for _ in range(400)]
    indices, captions = (np.concatenate(each) for each in zip(*draws, strict=True))
    scenes = indices >= len(real)
    assert_close(float(scenes.mean()), 0.5, rtol=0, atol=0.05)
    composed = ComposedScenes(real, 0, 6)
    for i in set(indices[scenes].tolist()):
        (caption,) = {task.data.cache.texts[c] for c in captions[indices == i]}
        assert [caption] == composed.captions(i - len(real))
        shown = torch.from_numpy(np.array(composed.rgb(i - len(real), clip.image_size)))
        assert_close(
            task.data.image_embeds[i], clip.encode_image(shown.permute(2, 0, 1)[None] / 127.5 - 1)[0]
        )
    if stage == "decoder":
        chosen = np.array([0, len(real) + 2, 3, len(real) + 5])
        pictures = task._samples(chosen, np.zeros(4, dtype=np.int64))["pictures"]
        assert_close(pictures[1], torch.from_numpy(np.array(composed.rgb(2, 16))).permute(2, 0, 1))
        assert_close(pictures[2], task.thumbnails[3])
    if stage == "prior-recall":
        # Nearly every caption is "like" one of so few pictures that differ in so few numbers.
        monkeypatch.setattr("unclip.models.memory.FAMILIAR", 2.0)
        task._compose(task.model.memory)
        (pairs,) = np.nonzero([bool(things_in(composed.captions(i)[0])) for i in range(6)])
        assert len(pairs) >= 2
        made = task.composed[task.composed_of].any(dim=1).nonzero()[:, 0].tolist()
        assert {task.data.cache.texts[m] for m in made} == {composed.captions(i)[0] for i in pairs}
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301 - as spawned workers get it
    a, b = (each.draw(8, np.random.default_rng(1)) for each in (task, copy))
    assert all(torch.equal(a[key], b[key]) for key in a)
    mean, _ = task.data.statistics()
    assert_close(mean, task.data.image_embeds[: len(real)].mean(0))


class CountingCLIP:
    """Embeds a picture by its mean colour and a text by its length."""

    image_size = 32

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.pad(pixels.mean((2, 3)), (0, 1), value=1.0), dim=-1)

    def encode_text(self, texts: list[str]) -> SimpleNamespace:
        lengths = torch.tensor([len(text) % 7 + 2 for text in texts])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        embeds = F.normalize(
            torch.stack([lengths.sin(), lengths.cos(), lengths.float(), lengths**0.5], 1), dim=-1
        )
        return SimpleNamespace(embeds=embeds, tokens=torch.ones(*mask.shape, 3) * mask[..., None], mask=mask)

    def encode_things(self, texts: list[str]) -> torch.Tensor:
        things = torch.zeros(len(texts), 4, 4)
        for i, text in enumerate(texts):
            for place, thing in things_in(text).items():
                things[i, PLACES.index(place)] = self.encode_text([thing]).embeds[0]
        return things

    def fingerprint(self) -> str:
        return "counting"


def test_a_cache_of_other_scenes_is_refused_without_a_clip_too(real: CaptionedImages, tmp_path: Path) -> None:
    config = configure("decoder", "tiny", [f"cache={tmp_path}"], {"data": "fake"}, resume=False)
    made = LOAD_CACHE(config, ComposedScenes(real, 0, 5), CountingCLIP(), "-scenes")
    assert LOAD_CACHE(config, ComposedScenes(real, 0, 5), None, "-scenes").texts == made.texts
    for other in (ComposedScenes(real, 1, 5), ComposedScenes(real, 0, 6)):
        with pytest.raises(UserError, match="with the captions of this data"):
            LOAD_CACHE(config, other, None, "-scenes")


@pytest.mark.parametrize("stage", ["prior", "prior-recall", "decoder", "clip"])
def test_a_dry_run_needs_no_scenes_and_writes_no_cache(stage: str, tmp_path: Path) -> None:
    options = ["task.scenes=0.5"] if stage == "clip" else [f"cache={tmp_path}", "task.scenes=50"]
    config = configure(stage, "tiny", options, {"data": "fake"}, resume=False)
    small = task_class(stage).to_measure(config)
    assert small.limit == 256
    assert small.cache is None
    # CLIP's are a share of a batch, and cost what they cost.
    assert small.task["scenes"] == (0.5 if stage == "clip" else 0)
    (tmp_path / "embeddings.safetensors").touch()
    assert task_class(stage).to_measure(config).cache == config.cache


@pytest.mark.parametrize(
    ("key", "message"), [("scenes=-1", "0 .none. or"), ("scene_share=1.0", "less than 1")]
)
def test_options_of_scenes_are_checked(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of("prior", f"task.{key}")
