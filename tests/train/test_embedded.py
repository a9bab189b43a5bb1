"""Composed scenes among the samples of prior and decoder, and the cache of their embeddings."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip.data import CaptionedImages, ComposedScenes
from unclip.errors import UserError
from unclip.train.cli import configure, make_task
from unclip.train.tasks import embedded
from unclip.train.tasks.base import Task

LOAD_CACHE = embedded.load_cache  # before `fake_data` puts a stand-in there

pytestmark = pytest.mark.usefixtures("fake_data")


def task_of(stage: str, *overrides: str) -> Task:
    return make_task(configure(stage, "tiny", overrides, {"output": "unused", "data": "fake"}, resume=False))


@pytest.mark.parametrize("stage", ["prior", "prior-mlp", "decoder"])
def test_a_share_of_the_samples_are_scenes(
    stage: str, real: CaptionedImages, fake_data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenes come with their own embedding, caption and, for the decoder, picture."""
    clip = CountingCLIP()
    for name, found in (("load_pictures", real), ("load_clip", clip)):
        monkeypatch.setattr(embedded, name, lambda _, found=found: found)
    monkeypatch.setattr(embedded, "load_cache", LOAD_CACHE)
    options = ["task.scenes=6", "task.scene_share=0.5", "task.held_out=4", "clip=counting"]
    fake_data.empty.embeds, fake_data.empty.tokens = torch.ones(1, 4) / 2, torch.ones(1, 2, 3)
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

    def fingerprint(self) -> str:
        return "counting"


@pytest.mark.parametrize(
    ("key", "message"), [("scenes=-1", "0 .none. or"), ("scene_share=1.0", "less than 1")]
)
def test_options_of_scenes_are_checked(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of("prior", f"task.{key}")
