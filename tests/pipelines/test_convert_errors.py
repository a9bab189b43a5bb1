"""What is wrong with a checkpoint that `convert` refuses, in one line, and nothing is written or run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unclip.errors import UserError
from unclip.pipelines.convert import convert

from .original_karlo import (
    DECODER,
    EMBED,
    PRIOR,
    STATISTICS,
    TOKENS,
    UPSAMPLER,
    Folders,
    State,
    prior_state,
    random_numbers,
    under,
)


@pytest.fixture
def sources(karlo_files: Folders, tmp_path: Path) -> Folders:
    """A copy to damage."""
    return shutil.copytree(karlo_files[0], tmp_path / "originals"), shutil.copytree(
        karlo_files[1], tmp_path / "clip"
    )


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _change(path: Path, change: Callable[[State], Any]) -> None:
    whole = torch.load(path, weights_only=True)
    change(whole["state_dict"])
    torch.save(whole, path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _of_another_clip(clip: Path) -> None:
    config = json.loads((clip / "vocab.json").read_text())
    (clip / "vocab.json").write_text(json.dumps({word: n + 1 for word, n in config.items()}))


BLOCK = "model.input_blocks.1.0.in_layers.2.weight"
MISTAKES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "truncated": (lambda s, c: _cut(s / PRIOR), "is no file of torch.save, or cut off"),
    "garbage": (lambda s, c: (s / PRIOR).write_bytes(b"\x80\x02garbage"), "is no file of torch.save"),
    "empty": (lambda s, c: (s / DECODER).write_bytes(b""), "is no file of torch.save"),
    "code": (
        lambda s, c: torch.save({"state_dict": {"a": Evil(s / "made")}}, s / DECODER),
        r"is a pickle that holds code \(posix.mkdir\), not tensors alone, and is not loaded",
    ),
    "code of old": (
        lambda s, c: torch.save(Evil(s / "made"), s / DECODER, _use_new_zipfile_serialization=False),
        "is a pickle that holds code",
    ),
    "no tensors": (lambda s, c: torch.save([1, 2], s / DECODER), "tensors by name, found: list"),
    "a number": (lambda s, c: torch.save({"a": 1}, s / DECODER), "tensors by name, found: 'a': int"),
    "left over": (
        lambda s, c: _change(s / PRIOR, lambda state: state.update({"model.padding_embedding": torch.ones(2)})),
        "nothing is known of the tensor padding_embedding in the checkpoint of the prior",
    ),
    "beside": (
        lambda s, c: _change(s / UPSAMPLER, lambda state: state.update({"discriminator.w": torch.ones(2)})),
        "nothing is known of the tensor discriminator.w in the checkpoint of the super_res",
    ),
    "missing": (
        lambda s, c: _change(s / DECODER, lambda state: state.pop("model.middle_block.2.in_layers.0.bias")),
        "the decoder has no tensor for mid_block.resnets.1.norm1.bias",
    ),
    "missing size": (
        lambda s, c: _change(s / DECODER, lambda state: state.pop(BLOCK)),
        "the decoder has no tensor input_blocks.1.0.in_layers.2.weight",
    ),
    "shape": (
        lambda s, c: _change(s / DECODER, lambda state: state.update({"model.cf_param": torch.ones(3)})),
        r"expected for learned_classifier_free_guidance_embeddings of the text_proj the shape \[32\]",
    ),
    "heads": (
        lambda s, c: _change(
            s / DECODER, lambda state: state.update({"model.middle_block.1.qkv.bias": torch.ones(3)})
        ),
        "heads of 64 channels",
    ),
    "a file": (lambda s, c: (s / STATISTICS).unlink(), r"lacks \*stats.th of Karlo's own files"),
    "two files": (
        lambda s, c: shutil.copyfile(s / PRIOR, s / "prior-ckpt-2.ckpt"),
        r"several files prior-ckpt\*.ckpt",
    ),
    "statistics": (
        lambda s, c: torch.save({"mean": torch.ones(2)}, s / STATISTICS),
        "two tensors, mean and deviation",
    ),
    "no clip": (lambda s, c: shutil.rmtree(c), "no folder at .*clip: expected a folder of transformers"),
    "clip's config": (lambda s, c: (c / "config.json").write_text("{}"), "config.json is of no CLIP"),
    "clip's weights": (lambda s, c: (c / "model.safetensors").unlink(), "no model.safetensors or pytorch"),
    "clip cut off": (lambda s, c: _cut(c / "model.safetensors"), "is truncated"),
    "clip's words": (lambda s, c: _of_another_clip(c), "the number 0 for '!'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(sources: Folders, tmp_path: Path, mistake: str) -> None:
    source, clip = sources
    damage, message = MISTAKES[mistake]
    damage(source, clip)
    with pytest.raises(UserError, match=message) as error:
        convert(source, tmp_path / "out", clip=clip)
    assert "\n" not in str(error.value)
    assert not (source / "made").exists()  # no code was run
    assert not (tmp_path / "out").exists()


def test_another_clip(karlo_files: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(karlo_files[0], tmp_path / "originals")
    state = prior_state(random_numbers(0), width=128, layers=1, clip=EMBED, tokens=TOKENS + 1)
    torch.save({"state_dict": under("model", state)}, source / PRIOR)
    with pytest.raises(UserError, match="expected of CLIP 9 tokens, found 8"):
        convert(source, tmp_path / "out", clip=karlo_files[1])
