"""Winograd convolution: the numbers of the ordinary one, and a module that passes for an ordinary one."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn
from torch.testing import assert_close

from unclip.models import winograd
from unclip.models.winograd import (
    WinogradConv2d,
    unfolded_conv2d,
    use_direct,
    use_winograd,
    winograd_conv2d,
)

CHANNELS = winograd.MIN_CHANNELS
LARGE = 44  # 121 tiles, of so many channels more than MIN_WORK


def _tensors(batch, channels, out_channels, height, width):
    """Input like that of a residual block, filters that keep its variance, bias."""
    generator = torch.Generator().manual_seed(0)
    x = F.silu(torch.randn(batch, channels, height, width, generator=generator))
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return x, weight, torch.randn(out_channels, generator=generator)


def _assert_as_in_float64(convolve, x, weight, bias):
    truth = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    assert_close(convolve(x, weight, bias).double(), truth, atol=1e-5, rtol=1e-5)


def _network() -> UNet2DModel:
    """A miniature of Karlo's super-resolution network."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=LARGE,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(CHANNELS, CHANNELS),
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
    ).eval()


@pytest.fixture
def convs():
    """The same convolution, ordinary and by Winograd, without gradients."""
    torch.manual_seed(0)
    ordinary = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).requires_grad_(False)
    fast = copy.deepcopy(ordinary)
    assert use_winograd(fast) == 1
    return ordinary, fast


@pytest.fixture
def never():
    """Fails the test if anything is computed by other means than the ordinary convolution."""
    error = AssertionError("not the ordinary convolution")
    with (
        patch.object(winograd, "winograd_conv2d", side_effect=error),
        patch.object(winograd, "unfolded_conv2d", side_effect=error),
    ):
        yield


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (8, 12), (13, 22), (3, 41)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("convolve", [winograd_conv2d, unfolded_conv2d])
def test_numbers(convolve, batch, size):
    _assert_as_in_float64(convolve, *_tensors(batch, 40, 24, *size))


@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(1, 130, 70), (9, 32, 32), (3, 62, 64), (1, 5, 2100)],
    ids=["parts", "pictures", "uneven", "wide"],
)
def test_numbers_in_several_chunks(batch, height, width):
    assert len(list(winograd.chunks(batch, -(-height // 4), -(-width // 4)))) > 1
    _assert_as_in_float64(winograd_conv2d, *_tensors(batch, 8, 8, height, width))


def test_numbers_in_several_blocks_of_channels():
    _assert_as_in_float64(winograd_conv2d, *_tensors(1, 8, winograd.OUT_CHANNELS + 7, 9, 9))
    _assert_as_in_float64(winograd_conv2d, *_tensors(1, 8, winograd.OUT_CHANNELS + 7, 100, 100))


def test_error_is_that_of_the_ordinary_convolution():
    x, weight, bias = _tensors(1, 640, 64, 24, 24)
    truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    ordinary = (F.conv2d(x, weight, bias, padding=1) - truth).square().mean().sqrt()
    fast = (winograd_conv2d(x, weight, bias) - truth).square().mean().sqrt()
    assert fast < 2 * ordinary  # with the usual points: more than 2


def test_any_memory_format_and_no_bias():
    x, weight, _ = _tensors(2, 24, 16, 10, 9)
    expected = winograd_conv2d(x, weight)
    _assert_as_in_float64(winograd_conv2d, x, weight, None)
    last = winograd_conv2d(
        x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last)
    )
    assert_close(last, expected, atol=0, rtol=0)
    assert last.is_contiguous(memory_format=torch.channels_last)
    view = x.repeat(1, 2, 1, 1)[:, :24]
    assert_close(winograd_conv2d(view, weight), expected, atol=0, rtol=0)


def test_chunks_cover_everything_once():
    for batch, rows, columns in [(1, 1, 1), (5, 16, 16), (2, 64, 64), (7, 3, 50), (1, 2, 2000)]:
        seen = torch.zeros(batch, rows)
        for pictures, tile_rows in winograd.chunks(batch, rows, columns):
            seen[pictures, tile_rows.start : tile_rows.stop] += 1
        assert seen.eq(1).all()


def test_module_by_size(convs):
    ordinary, fast = convs
    for side in (4, 19, LARGE):
        x = torch.randn(1, CHANNELS, side, side)
        assert_close(fast(x), ordinary(x), atol=1e-5, rtol=1e-5)
    with patch.object(winograd, "winograd_conv2d", wraps=winograd_conv2d) as called:
        fast(torch.randn(1, CHANNELS, 40, 40))  # 100 tiles
        called.assert_not_called()
        fast(torch.randn(2, CHANNELS, 40, 40))
        called.assert_called_once()


def test_many_weights_at_tiny_pictures(convs):
    ordinary, fast = convs
    x = torch.randn(2, CHANNELS, 5, 4)
    with (
        patch.object(winograd, "MANY_WEIGHTS", 1),
        patch.object(winograd, "unfolded_conv2d", wraps=unfolded_conv2d) as called,
    ):
        y = fast(x)
        called.assert_called_once()
    assert_close(y, ordinary(x), atol=1e-5, rtol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("needs", ["input", "weight", "bias"])
def test_gradients_are_those_of_the_ordinary_convolution(convs, needs):
    x = torch.randn(1, CHANNELS, LARGE, LARGE)
    grads = []
    for conv in convs:
        target = {"input": x.clone(), "weight": conv.weight, "bias": conv.bias}[needs].requires_grad_()
        y = conv(target if needs == "input" else x)
        y.square().sum().backward()
        grads.append((y.detach(), target.grad))
    assert_close(grads[1], grads[0], atol=0, rtol=0)


@pytest.mark.usefixtures("never")
def test_other_types_and_autocast_take_the_ordinary_convolution(convs):
    x = torch.randn(1, CHANNELS, LARGE, LARGE)
    with torch.autocast("cpu", torch.bfloat16):
        assert convs[1](x).dtype == torch.bfloat16
    ordinary, fast = (conv.double() for conv in convs)
    assert_close(fast(x.double()), ordinary(x.double()), atol=0, rtol=0)
    assert fast.to("meta")(x.double().to("meta")).shape == x.shape


def test_wrong_inputs_raise_the_ordinary_errors(convs):
    with pytest.raises(RuntimeError, match="channels"):
        convs[1](torch.randn(1, CHANNELS + 1, LARGE, LARGE))
    assert convs[1](torch.randn(CHANNELS, LARGE, LARGE)).shape == (CHANNELS, LARGE, LARGE)


def test_memory_made_in_inference_mode_serves_outside(convs):
    ordinary, fast = convs
    x = torch.randn(1, CHANNELS, LARGE, LARGE)
    winograd.scratch.buffers.clear()
    winograd.filter_transform.cache_clear()
    with torch.inference_mode():
        inside = fast(x)
    assert_close(fast(x), inside, atol=0, rtol=0)
    assert_close(inside, ordinary(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_other_geometries_are_left_alone(options):
    conv = nn.Conv2d(CHANNELS, CHANNELS, **options).requires_grad_(False)
    assert use_winograd(nn.Sequential(conv)) == 0
    assert type(conv) is nn.Conv2d
    fast = WinogradConv2d(CHANNELS, CHANNELS, **options).requires_grad_(False)
    fast.load_state_dict(conv.state_dict())
    x = torch.randn(1, CHANNELS, LARGE, LARGE)
    assert_close(fast(x), conv(x), atol=0, rtol=0)


@torch.no_grad()
def test_network_of_diffusers(tmp_path):
    network = _network()
    x, t = torch.randn(1, 6, LARGE, LARGE), torch.tensor([500.0])
    expected, names = network(x, t).sample, {k: v.data_ptr() for k, v in network.state_dict().items()}

    count = use_winograd(network)
    assert count == sum(isinstance(m, WinogradConv2d) for m in network.modules()) > 10
    assert type(network.conv_in) is type(network.conv_out) is nn.Conv2d  # too few channels
    assert use_winograd(network) == 0
    assert {k: v.data_ptr() for k, v in network.state_dict().items()} == names
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_close(network(given, t).sample, expected, atol=1e-5, rtol=1e-4)

    copied = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert_close(copied(x, t).sample, expected, atol=1e-5, rtol=1e-4)
    network.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path).state_dict()
    assert_close(loaded, dict(network.state_dict()), atol=0, rtol=0)

    assert use_direct(network) == count
    assert not winograd.scratch.buffers
    assert_close(network(x, t).sample, expected, atol=0, rtol=0)
