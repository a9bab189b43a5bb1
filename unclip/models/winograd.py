"""Winograd F(4x4, 3x3): the 3x3 convolutions of large networks up to 2.7 times as fast on a CPU, in float32.

Four neighbouring outputs of a 3-tap filter are the coefficients of a product of two polynomials, so six products
give them instead of twelve (Toom–Cook): evaluate both at six points, multiply, interpolate. In two dimensions 36
products replace 144 (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", eq. 8):

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A          g [3, 3] filter, d [6, 6] input tile, Y [4, 4] output tile

and the sum over input channels makes them 36 matrix products. The points are 0, ±5/8, ±3/2 and ∞: the usual ones
(0, ±1, ±2, ∞) err three times as much in float32, these as little as the ordinary convolution does (points near
these: Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution").

Everything is channels-last, so that each addition of a transform runs over long contiguous rows, and goes chunk by
chunk, so that a chunk stays in the cache. Filters are transformed anew in each call: keeping them would take four
times the memory of the weights.

    network.eval()
    use_winograd(network)       # in place; the weights and their names stay what they were
    network(x.contiguous(memory_format=torch.channels_last), t)

Legend of shapes: B batch, C and O input and output channels, H, W picture sides; a chunk has N pictures (or one of
them in part) of R x S tiles, T = N R S.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P, Q = 5 / 8, 3 / 2  # the finite points besides 0 come in pairs, ±P and ±Q

# Measured on two threads (benchmarks/convolutions.py); below these, transforms cost what the products save.
MIN_CHANNELS = 192
MIN_TILES = 32
MIN_WORK = 20_480  # tiles times channels
WHOLE_TILES = 512  # up to here one chunk: the filters are used at once and need not be kept
CHUNK_TILES = 256  # of larger inputs: products large enough for BLAS, chunks small enough for a 32 MB cache
OUT_CHANNELS = 320  # transformed at a time
MANY_WEIGHTS = 9 * 2**19  # with fewer, oneDNN is fast at tiny pictures too
FILTERS = 5120  # transformed by one matrix product


class Scratch(threading.local):
    """Named memory that every call uses again: pages fresh from the system cost a tenth of the time."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Uninitialised float32 memory of this shape, the same as the last time by that name."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self.buffers.pop(name, None)  # freed before its successor is made
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                buffer = torch.empty(size, dtype=torch.float32, device="cpu")
            self.buffers[name] = buffer
        return buffer[:size].view(shape)


scratch = Scratch()


@lru_cache(maxsize=1)
def filter_transform() -> Tensor:
    """G ⊗ G, [36, 9]: a flattened filter -> its values at the (horizontal, vertical) points."""
    points = (0.0, P, -P, Q, -Q)
    rows = [[p**k / math.prod(p - q for q in points if q != p) for k in range(3)] for p in points]
    g = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")
    return torch.einsum("va,hb->hvab", g, g).reshape(36, 9).float()


def transform_filters(weight: Tensor, buffer: Tensor) -> Tensor:
    """weight [O, C, 3, 3] -> [36, C, O], in `buffer` [36, O * C]."""
    out_channels, channels = weight.shape[:2]
    filters = weight.detach().reshape(-1, 9)
    for i in range(0, len(filters), FILTERS):  # in pieces that fit the cache: a quarter faster
        torch.mm(filter_transform(), filters[i : i + FILTERS].t(), out=buffer[:, i : i + FILTERS])
    return buffer.view(36, out_channels, channels).transpose(1, 2)


def analyse(d: Tensor, out: Tensor) -> None:
    """Bᵀ over the first axis: d [6, ...] -> out [6, ...].

    With z the shift by one, row ±p of Bᵀ is z (z ± p) (z² - q²) and the outer rows are (z² - p²)(z² - q²), the
    last one shifted: two additions for each result.
    """
    f = scratch.take("terms", 4, *d.shape[1:])
    torch.sub(d[2:6], d[0:4], alpha=Q * Q, out=f)
    torch.sub(f[2:4], f[0:2], alpha=P * P, out=out[0::5])
    torch.add(f[2], f[1], alpha=P, out=out[1])
    torch.sub(f[2], f[1], alpha=P, out=out[2])
    f = f[:2]
    torch.sub(d[3:5], d[1:3], alpha=P * P, out=f)
    torch.add(f[1], f[0], alpha=Q, out=out[3])
    torch.sub(f[1], f[0], alpha=Q, out=out[4])


def synthesise(m: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """Aᵀ over the first axis: m [6, ...] -> out [4, ...], plus the bias.

    Result k is Σ pᵏ m_p over the finite points; the last one also has m_∞.
    """
    y0, y1, y2, y3 = out
    f = scratch.take("terms", 2, *m.shape[1:])
    torch.add(m[1:5:2], m[2:5:2], out=f)  # m_p + m_-p: the even powers
    if bias is None:
        torch.add(m[0], f[0], out=y0)
        torch.mul(f[0], P**2, out=y2)
    else:
        torch.add(m[0], bias, out=y0).add_(f[0])
        torch.add(bias, f[0], alpha=P**2, out=y2)
    y0.add_(f[1])
    y2.add_(f[1], alpha=Q**2)

    torch.sub(m[1:5:2], m[2:5:2], out=f)  # m_p - m_-p: the odd powers
    if bias is None:
        torch.mul(f[0], P, out=y1)
        torch.add(m[5], f[0], alpha=P**3, out=y3)
    else:
        torch.add(bias, f[0], alpha=P, out=y1)
        torch.add(m[5], bias, out=y3).add_(f[0], alpha=P**3)
    y1.add_(f[1], alpha=Q)
    y3.add_(f[1], alpha=Q**3)


def padded_chunk(x: Tensor, rows: range, columns: int) -> Tensor:
    """The pixels under a chunk of tiles and one more on each side, zeros where the picture ends.

    x [N, H, W, C], tile rows, tiles per row -> [N, 4R + 2, 4S + 2, C].
    """
    n, height, width, channels = x.shape
    top, bottom = 4 * rows.start - 1, 4 * rows.stop + 1
    chunk = scratch.take("input", n, bottom - top, 4 * columns + 2, channels)
    first, last = max(top, 0), min(bottom, height)
    chunk[:, : first - top].zero_()
    chunk[:, last - top :].zero_()
    chunk[:, :, 0].zero_()
    chunk[:, :, width + 1 :].zero_()
    chunk[:, first - top : last - top, 1 : width + 1].copy_(x[:, first:last])
    return chunk


def transform_input(x: Tensor, rows: range, columns: int) -> Tensor:
    """Bᵀ d B of a chunk of tiles: x [N, H, W, C] -> [36, T, C]."""
    n, channels, r = len(x), x.shape[-1], len(rows)
    chunk = padded_chunk(x, rows, columns)
    sn, sy, sx, _ = chunk.stride()
    # Tiles overlap by two pixels. First row i of each tile, whole picture rows at once; then column j.
    tiles = chunk.as_strided((6, n, r, 4 * columns + 2, channels), (sy, sn, 4 * sy, sx, 1))
    half = scratch.take("half", *tiles.shape)
    analyse(tiles, half)
    sv, sn, sy, sx, _ = half.stride()
    tiles = half.as_strided((6, 6, n, r, columns, channels), (sx, sv, sn, sy, 4 * sx, 1))
    values = scratch.take("input", *tiles.shape)  # over the pixels, which have been used
    for v in range(6):  # one by one, so that the terms stay in the inner cache
        analyse(tiles[:, v], values[:, v])
    return values.view(36, -1, channels)


def chunks(batch: int, rows: int, columns: int) -> Iterator[tuple[slice, range]]:
    """Pictures and tile rows of each chunk: whole pictures as many as fit, else parts of one."""
    tiles = batch * rows * columns
    limit = tiles if tiles <= WHOLE_TILES else CHUNK_TILES
    r = min(rows, max(1, limit // columns))
    n = max(1, limit // (r * columns)) if r == rows else 1
    for i in range(0, batch, n):
        for j in range(0, rows, r):
            yield slice(i, min(i + n, batch)), range(j, min(j + r, rows))


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` for 3x3 filters, in float32, on a CPU, without gradients.

    x [B, C, H, W] in any memory format, weight [O, C, 3, 3], bias [O] -> [B, O, H, W], channels-last.
    """
    batch, channels, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    y = x.new_empty(batch, 4 * rows, 4 * columns, len(weight))
    x = x.detach().permute(0, 2, 3, 1)
    parts = list(chunks(batch, rows, columns))
    many = len(parts) > 1
    kept: dict[int, Tensor] = {}
    for pictures, tile_rows in parts:
        values = transform_input(x[pictures], tile_rows, columns)  # [36, T, C]
        n, r = pictures.stop - pictures.start, len(tile_rows)
        # [N, R, 4, S, 4, O] -> [4 (y), 4 (x), N, R, S, O]
        target = y[pictures, 4 * tile_rows.start : 4 * tile_rows.stop]
        target = target.view(n, r, 4, columns, 4, -1).permute(2, 4, 0, 1, 3, 5)
        for o in range(0, len(weight), OUT_CHANNELS):
            block = slice(o, min(o + OUT_CHANNELS, len(weight)))
            size = block.stop - block.start
            filters = kept.get(o)
            if filters is None:
                buffer = scratch.take(f"filters {o if many else 0}", 36, size * channels)
                filters = transform_filters(weight[block], buffer)
                if many:
                    kept[o] = filters
            products = scratch.take("products", 36, values.shape[1], size)
            torch.bmm(values, filters, out=products)
            half = scratch.take("half", 4, 6, n, r, columns, size)
            synthesise(products.view(6, *half.shape[1:]), half)
            synthesise(
                half.transpose(0, 1), target[..., block], None if bias is None else bias.detach()[block]
            )
    y = y[:, :height, :width].permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch.channels_last)


def unfolded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` for tiny pictures, as one matrix product; shapes as `winograd_conv2d`.

    There the filters are most of the data, and oneDNN spends most of the time on reordering them: this reads them
    as they lie.
    """
    batch, _, height, width = x.shape
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)  # [B * H * W, C * 9]
    y = F.linear(patches, weight.flatten(1), bias)
    return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


def eligible(conv: nn.Conv2d) -> bool:
    """Whether a convolution has the geometry and enough channels for `winograd_conv2d` to be faster."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding in ((1, 1), "same")
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


class WinogradConv2d(nn.Conv2d):
    """An `nn.Conv2d` of the same parameters that computes by `winograd_conv2d` where that is right and faster.

    With many channels and few pixels `unfolded_conv2d` is faster. Elsewhere (training, other types and devices,
    autocast, torch.compile, other geometry) it is the ordinary convolution. Results that are not the ordinary
    convolution's lie channels-last in memory, whatever the input did.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, H, W] -> [B, O, H', W']."""
        if not self.may_transform(input):
            return super().forward(input)
        batch, _, height, width = input.shape
        tiles = batch * -(-height // 4) * -(-width // 4)
        if tiles >= MIN_TILES and tiles * min(self.in_channels, self.out_channels) >= MIN_WORK:
            return winograd_conv2d(input, self.weight, self.bias)
        if self.weight.numel() >= MANY_WEIGHTS and self.weight.is_contiguous():
            return unfolded_conv2d(input, self.weight, self.bias)
        return super().forward(input)

    def may_transform(self, x: Tensor) -> bool:
        """Whether `winograd_conv2d` gives what the ordinary convolution would for this input, in this context."""
        tensors = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        return (
            eligible(self)
            and x.dim() == 4
            and x.shape[1] == self.in_channels  # else the ordinary one raises its error
            and x.numel() > 0
            and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        )


def use_winograd(network: nn.Module) -> int:
    """Turn all convolutions of a network that gain by it into `WinogradConv2d`, in place; returns how many.

    Parameters, their names, hooks and everything saved stay as they were: only the class of the modules changes.
    Subclasses of `nn.Conv2d` are left alone. Give the network its input channels-last, or its first block pays
    for mixed memory formats; the rest follows by itself.
    """
    found = [m for m in network.modules() if type(m) is nn.Conv2d and eligible(m)]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)


def use_direct(network: nn.Module) -> int:
    """Undo `use_winograd` and free this thread's working memory; returns how many convolutions changed."""
    found: list[nn.Module] = [m for m in network.modules() if type(m) is WinogradConv2d]
    for module in found:
        module.__class__ = nn.Conv2d
    scratch.buffers.clear()
    return len(found)
