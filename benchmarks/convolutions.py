"""The 3x3 convolutions of the public U-Nets: by Winograd's way, beside PyTorch's own in both memory formats.

    python -m benchmarks.convolutions [--repeats N]

All three take the same input in turn, in one process; errors are against float64, by the largest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.speed import machine, milliseconds, seconds, table
from unclip.models.winograd import use_winograd

# (batch, channels in, channels out, side): upsampler, then decoder with both branches of guidance.
SHAPES = (
    *((1, 320, 320, 256), (1, 640, 640, 128), (1, 960, 960, 64), (1, 1280, 1280, 32)),
    *((2, 320, 320, 64), (2, 640, 640, 32), (2, 960, 960, 16), (2, 1280, 1280, 8)),
    *((1, 192, 192, 64), (1, 128, 128, 64)),
)
EXACT_UP_TO = 64  # pixels of a side; float64 takes long


@torch.no_grad()
def row(batch: int, channels: int, out: int, side: int, repeats: int) -> tuple[str, ...]:
    """Times and errors of one shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator)
    weight = torch.randn(out, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    last, last_weight = (each.to(memory_format=torch.channels_last) for each in (x, weight))
    conv = torch.nn.Conv2d(channels, out, 3, padding=1, bias=False)
    conv.weight.copy_(weight)
    use_winograd(conv)  # where it gains; else it stays what it is
    plain, channels_last, ours = seconds(
        [
            lambda: F.conv2d(x, weight, padding=1),
            lambda: F.conv2d(last, last_weight, padding=1),
            lambda: conv(last),
        ],
        repeats,
    )
    errors = ""
    if side <= EXACT_UP_TO:
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        made = (F.conv2d(x, weight, padding=1), conv(last))
        errors = " / ".join(f"{float((each - exact).abs().max() / exact.abs().max()):.1e}" for each in made)
    return (
        f"{batch} × {channels}→{out} at {side} px",
        milliseconds(plain),
        f"{milliseconds(channels_last)} ({plain / channels_last:.2f} ×)",
        f"{milliseconds(ours)} ({plain / ours:.2f} ×)",
        errors,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = max(1, parser.parse_args(arguments).repeats)
    header = ("convolution", "PyTorch", "channels last", "ours", "error, PyTorch / ours")
    print(f"{machine()}; medians of {repeats}.\n")
    print(table(header, [row(*shape, repeats) for shape in SHAPES]))


if __name__ == "__main__":
    main()
