"""What an upsampler learns to undo, on float tensors [B, C, H, W] in [-1, 1].

unCLIP, section 2.1: the first upsampler's condition is blurred with a Gaussian, the second's goes through a more
varied chain, BSR (Rombach et al. 2022, after Zhang et al. 2021, "Designing a Practical Degradation Model").
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_MODES = ("area", "bilinear", "bicubic", "nearest")


def down(x: Tensor, factor: int) -> Tensor:
    """Mean over `factor` x `factor` blocks: [B, C, H, W] -> [B, C, H / factor, W / factor].

    Raises:
        ValueError: a side is not a multiple of the factor.
    """
    height, width = x.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"expected sides that are multiples of {factor}, got {height} x {width}; crop or pad first"
        )
    return F.avg_pool2d(x, factor) if factor > 1 else x


def gaussian_blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Gaussian blur with mirrored borders; `sigma` in pixels, one number or one per picture [B]; 0 leaves as is."""
    sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
    largest = float(sigmas.max())
    if largest < 0 or float(sigmas.min()) < 0:
        raise ValueError(f"expected sigma >= 0, got {float(sigmas.min())}; give a width in pixels")
    if largest == 0:
        return x
    B, C, H, W = x.shape
    radius = min(max(1, math.ceil(3 * largest)), H - 1, W - 1)  # mirroring needs radius < side
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
    kernels = torch.exp(-0.5 * (taps / sigmas.clamp_min(1e-3)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(x.dtype)  # [B, K]
    kernels = kernels.repeat_interleave(C, 0)[:, None, :, None]  # [B*C, 1, K, 1]
    flat = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, B * C, H + 2 * radius, W + 2 * radius)
    flat = F.conv2d(flat, kernels, groups=B * C)
    flat = F.conv2d(flat, kernels.transpose(2, 3), groups=B * C)
    return flat.reshape(B, C, H, W)


def bsr(x: Tensor, rng: np.random.Generator, strength: float = 1.0) -> Tensor:
    """Blur, resize down and up, noise and JPEG in a random order with random amounts; same shape and range.

    Args:
        x: [B, 3, H, W]; each picture gets its own chain.
        strength: 0..1, the upper ends of the random amounts.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"expected strength in 0..1, got {strength}; 1 is the usual amount")
    steps = (_random_blur, _random_resize, _random_noise, _random_jpeg)
    pictures = []
    for picture in x.split(1):
        for index in rng.permutation(len(steps)):
            picture = steps[int(index)](picture, rng, strength)
        pictures.append(picture)
    return torch.cat(pictures).clamp(-1.0, 1.0)


def _random_blur(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    return gaussian_blur(x, float(rng.uniform(0.0, 1.5 * strength)))


def _random_resize(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    height, width = x.shape[-2:]
    factor = float(rng.uniform(1.0, 1.0 + strength))
    small = (max(2, round(height / factor)), max(2, round(width / factor)))
    there, back = (_MODES[int(i)] for i in rng.integers(len(_MODES), size=2))
    return _resize(_resize(x, small, there), (height, width), back)


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    smooth = mode in ("bilinear", "bicubic")
    return F.interpolate(x, size, mode=mode, antialias=smooth, align_corners=False if smooth else None)


def _random_noise(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    scale = float(rng.uniform(0.0, 0.05 * strength))
    noise = rng.standard_normal(tuple(x.shape), dtype=np.float32)
    return x + scale * torch.from_numpy(noise).to(x)


def _random_jpeg(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    quality = int(rng.integers(round(95 - 55 * strength), 96))
    pixels = ((x[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer).convert("RGB"), np.float32) / 127.5 - 1.0
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].to(x)
