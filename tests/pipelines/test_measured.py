"""A pipeline as evaluation sees it."""

from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.measured import as_model


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
