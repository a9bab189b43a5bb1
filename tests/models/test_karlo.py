"""The public networks: what diffusers' own classes compute, tensor by tensor, and what is computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.karlo_checkpoint import EMBED, FACTOR, SIDE, networks
from unclip.clip import TextEncoding
from unclip.errors import UserError
from unclip.models import KarloDecoder, KarloPrior, KarloUpsampler
from unclip.models.karlo.take import own_config

pytest.importorskip(
    "diffusers.pipelines.deprecated.unclip", reason="this diffusers has no unCLIP text projection"
)

LENGTHS = (5, 9, 77)
B, L = len(LENGTHS), 77


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return networks()


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"tokens": (B, L, EMBED), "z_t": (B, EMBED), "z_i": (B, EMBED), "x": (B, 3, SIDE, SIDE)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return made | {"mask": torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]}


def encoding(given: dict[str, Tensor], rows: slice = slice(None), length: int = L) -> TextEncoding:
    tokens, mask = given["tokens"][rows, :length], given["mask"][rows, :length]
    return TextEncoding(given["z_t"][rows], tokens, mask, torch.zeros(len(tokens), 4, EMBED))


@torch.no_grad()
def test_prior(theirs: dict[str, Any], given: dict[str, Tensor]) -> None:
    """Without its padding, each caption alone, and all together."""
    own = KarloPrior.from_diffusers(theirs["prior"])
    expected = theirs["prior"](
        given["z_i"], 500, given["z_t"], given["tokens"], given["mask"]
    ).predicted_image_embedding
    t = torch.full((B,), 500.0)
    assert_close(own(given["z_i"], t, **own.read(encoding(given))), expected, rtol=1e-4, atol=5e-6)
    for i, length in enumerate(LENGTHS):
        row = slice(i, i + 1)
        made = own(given["z_i"][row], t[row], **own.read(encoding(given, row, length)))
        assert_close(made, expected[row], rtol=1e-4, atol=5e-6)
    assert_close(own.to_embeds(expected), theirs["prior"].post_process_latents(expected))
    assert_close(own.normalize(own.denormalize(expected)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decoder(theirs: dict[str, Any], given: dict[str, Tensor]) -> None:
    """Both branches of guidance, the unconditional one first in theirs."""
    own = KarloDecoder.from_diffusers(theirs["decoder"], theirs["text_proj"])
    states, added = theirs["text_proj"](
        image_embeddings=given["z_i"],
        prompt_embeds=given["z_t"].repeat(2, 1),
        text_encoder_hidden_states=given["tokens"].repeat(2, 1, 1),
        do_classifier_free_guidance=True,
    )
    mask = F.pad(given["mask"].repeat(2, 1), (4, 0), value=True)
    expected = theirs["decoder"](
        given["x"].repeat(2, 1, 1, 1), 500, states, class_labels=added, attention_mask=mask
    ).sample
    t, text = torch.full((B,), 500.0), encoding(given)
    made = [own(given["x"], t, **own.conditions(z, text)) for z in (None, given["z_i"])]
    assert (made[0] - made[1]).abs().mean() > 0.01
    assert_close(torch.cat(made), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("last", [False, True])
def test_upsampler(theirs: dict[str, Any], given: dict[str, Tensor], last: bool) -> None:
    own = KarloUpsampler.from_diffusers(theirs["super_res_first"], theirs["super_res_last"], FACTOR)
    large = torch.randn(B, 3, FACTOR * SIDE, FACTOR * SIDE, generator=torch.Generator().manual_seed(1))
    enlarged = F.interpolate(given["x"], large.shape[2:], mode="bicubic", antialias=True)
    network = theirs["super_res_last" if last else "super_res_first"]
    expected = network(torch.cat([large, enlarged], dim=1), 500).sample
    made = own(large, torch.full((B,), 500.0), low_res=given["x"], noise_level=torch.zeros(B), last=last)
    assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_tensors_are_taken_over_not_copied(theirs: dict[str, Any]) -> None:
    own = KarloDecoder.from_diffusers(theirs["decoder"], theirs["text_proj"])
    for name, tensor in theirs["decoder"].state_dict().items():
        assert own.unet.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert own.state_dict().keys() == {
        *(f"unet.{name}" for name in theirs["decoder"].state_dict()),
        *(f"text_proj.{name}" for name in theirs["text_proj"].state_dict()),
    }


@torch.no_grad()
def test_wide_networks_convolve_by_winograd(given: dict[str, Tensor]) -> None:
    """The same picture, by the convolutions that the channels of the real networks make worth while."""
    from diffusers import UNet2DModel

    from unclip.models.winograd import WinogradConv2d

    config = own_config(networks()["super_res_first"]) | {"block_out_channels": (192, 192)}
    torch.manual_seed(0)
    network = UNet2DModel(**config).eval()
    own = KarloUpsampler.from_diffusers(network, network, FACTOR)
    assert sum(isinstance(module, WinogradConv2d) for module in own.modules()) > 10
    assert not any(isinstance(module, WinogradConv2d) for module in network.modules())
    large = torch.randn(B, 3, FACTOR * SIDE, FACTOR * SIDE)
    enlarged = F.interpolate(given["x"], large.shape[2:], mode="bicubic", antialias=True)
    expected = network(torch.cat([large, enlarged], dim=1), 500).sample
    made = own(large, torch.full((B,), 500.0), low_res=given["x"], noise_level=torch.zeros(B))
    assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_priors_of_another_kind_are_refused() -> None:
    from diffusers import PriorTransformer

    sizes = {"num_attention_heads": 1, "attention_head_dim": 8, "num_layers": 1, "embedding_dim": 8}
    with pytest.raises(
        UserError, match="of another kind than Karlo's: its additional_embeddings is 3, expected 4"
    ):
        KarloPrior.from_diffusers(PriorTransformer(**sizes, additional_embeddings=3))


def test_projections_of_another_decoder_are_refused(theirs: dict[str, Any]) -> None:
    from unclip.models import UnCLIPTextProjModel

    other = UnCLIPTextProjModel(clip_embeddings_dim=EMBED, time_embed_dim=64, cross_attention_dim=8)
    with pytest.raises(UserError, match="another decoder: its cross_attention_dim is 8, the decoder's is 24"):
        KarloDecoder.from_diffusers(theirs["decoder"], other)
