"""A pipeline as evaluation sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import Decoder
from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.measured import Variants, as_model


def test_decoding_leaves_the_prior_out(tiny_pipeline: UnCLIPTextToImagePipeline, monkeypatch) -> None:
    """From the prior's own embeddings it draws what the model draws; from others, others."""
    model = as_model(tiny_pipeline, 16, {})
    prompts, seeds = ["a red apple", "a blue house"], [3, 4]
    z = model.make_embeds(prompts, seeds)
    drawn = [np.array(picture) for picture in model.generate(prompts, seeds)]
    monkeypatch.setattr("unclip.pipelines.base.sample_prior", None)
    decoded = [np.array(picture) for picture in model.decode(z, prompts, seeds)]
    assert_close(decoded, drawn, rtol=0, atol=0)
    others = model.decode(torch.roll(z, 1, 0), prompts, seeds)
    assert not np.array_equal(np.asarray(others[0]), drawn[0])


def test_a_decoder_that_does_not_fit_is_told_before_any_picture(
    tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path
) -> None:
    for size, message in ({"embed_dim": 8}, "embed_dim 8"), ({"sample_size": 32}, "sample_size 32"):
        given = {"sample_size": 16, "embed_dim": 12, "token_dim": 20, **size}
        Decoder(patch_size=4, width=16, layers=1, heads=2, **given).save_pretrained(tmp_path / message)
        with pytest.raises(UserError, match=f"has {message}, the model's own"):
            Variants(tiny_pipeline, 16, {"text": tmp_path / message})
