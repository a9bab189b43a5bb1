"""What holds for every network: saving, configuration, gradients, sizes; and the shared features."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from unclip.models import Decoder, DiffusionPrior, Upsampler
from unclip.models.layers import sincos, sincos_positions_2d


@pytest.fixture(params=["prior", "recall_prior", "decoder", "upsampler"])
def case(request, prior, recall_prior, decoder, upsampler, text, noised, decoder_inputs):
    """A network and a function that runs it on fixed inputs."""
    rows = torch.tensor([True, False, False])
    low_res = noised["x"][:, :, :4, :4]
    return {
        "prior": (prior, lambda net: net(noised["z"], noised["t"], **text)),
        "recall_prior": (recall_prior, lambda net: net(noised["z"], noised["t"], **text)),
        "decoder": (decoder, lambda net: net(**decoder_inputs, drop_image=rows, drop_text=rows.flip(0))),
        "upsampler": (
            upsampler,
            lambda net: net(noised["x"], noised["t"], low_res=low_res, noise_level=noised["level"]),
        ),
    }[request.param]


@torch.no_grad()
def test_saved_network_loads_and_gives_the_same(case, tmp_path):
    network, run = case
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = type(network).from_pretrained(tmp_path)
    assert_close(run(loaded), run(network), atol=0, rtol=0)
    for name, buffer in network.named_buffers():
        assert_close(dict(loaded.named_buffers())[name], buffer, atol=0, rtol=0)


def test_configuration_round_trip(case, tmp_path):
    network, _ = case
    network.register_to_config(schedule="linear", prediction_type="v_prediction")
    network.save_config(tmp_path)
    rebuilt = type(network).from_config(json.loads((tmp_path / "config.json").read_text()))
    assert json.loads(rebuilt.to_json_string()) == json.loads(network.to_json_string())
    assert (rebuilt.config.schedule, rebuilt.config.prediction_type) == ("linear", "v_prediction")
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_gradient_reaches_every_parameter(case):
    network, run = case
    run(network).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().amax() > 0]
    assert silent == []


@torch.no_grad()
def test_half_precision_weights_run(case):
    network, run = case
    output = run(network.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_dropout_acts_in_training_only(text, noised):
    prior = DiffusionPrior(embed_dim=12, token_dim=20, width=32, layers=1, heads=2, max_tokens=9, dropout=0.5)
    a, b = (prior(noised["z"], noised["t"], **text) for _ in range(2))
    assert (a - b).abs().amax() > 0
    prior.eval()
    a, b = (prior(noised["z"], noised["t"], **text) for _ in range(2))
    assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (DiffusionPrior, 4_981_504),
        (Decoder, 11_235_163),
        (Upsampler, 1_123_111),
        (lambda: Upsampler(channels=(48, 64)), 680_183),
    ],
)
def test_sizes_of_the_emoji_model(make, parameters):
    with torch.device("meta"):
        network = make()
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_sincos_features_tell_neighbours_apart():
    features = sincos(torch.arange(1000.0), 64)
    assert features.shape == (1000, 64)
    assert_close(features.square().sum(-1), torch.full((1000,), 32.0))
    assert (features[1:] - features[:-1]).norm(dim=-1).amin() > 0.5


def test_positions_on_the_grid_are_distinct_and_row_major():
    positions = sincos_positions_2d(4, 32)
    assert positions.shape == (16, 32)
    assert torch.cdist(positions, positions).fill_diagonal_(9).amin() > 0.1
    assert_close(positions[5, :16], positions[6, :16])  # same row
    assert_close(positions[5, 16:], positions[9, 16:])  # same column
