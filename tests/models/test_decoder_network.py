"""The decoder: conditions, null embeddings, padding, noise on z_i."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.models import Decoder

ROWS = torch.tensor([False, True, True])


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Largest difference in each row, [B]."""
    return (a - b).abs().flatten(1).amax(dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["x", "t", "image_embeds", "noise_level", "text_tokens"])
def test_every_input_matters(decoder, decoder_inputs, name):
    output = decoder(**decoder_inputs)
    assert output.shape == decoder_inputs["x"].shape
    changed = {**decoder_inputs, name: decoder_inputs[name].roll(1, dims=0)}
    assert (difference(decoder(**changed), output) > 1e-4).all()


@torch.no_grad()
def test_the_map_of_z_i_reaches_its_own_patches(decoder, decoder_inputs):
    """Without blocks and without the other ways of z_i, a change of the map at one patch stays near that patch."""
    for part in (decoder.image_to_time, decoder.image_to_context):
        part.weight.zero_()
    decoder.blocks = torch.nn.ModuleList()
    before = decoder(**decoder_inputs)
    channels = decoder.config.map_channels
    decoder.image_to_map.bias[5 * channels : 6 * channels] += 1.0  # patch 5 of 4 x 4: row 1, column 1
    changed = (decoder(**decoder_inputs) - before).abs().amax((0, 1)) > 1e-6
    rows, columns = changed.nonzero().T
    # The patch is pixels 4..7; two 3 x 3 convolutions reach two pixels further.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 9, 2, 9)


@torch.no_grad()
def test_dropped_image_is_the_null_embedding(decoder, decoder_inputs):
    output = decoder(**decoder_inputs, drop_image=ROWS)
    assert ((difference(output, decoder(**decoder_inputs)) > 1e-4) == ROWS).all()
    others = {
        **decoder_inputs,
        "image_embeds": decoder_inputs["image_embeds"].flip(0),
        "noise_level": decoder_inputs["noise_level"].flip(0),
    }
    assert_close(decoder(**others, drop_image=ROWS)[ROWS], output[ROWS], atol=1e-6, rtol=0)
    decoder.null_image.neg_()
    assert ((difference(decoder(**decoder_inputs, drop_image=ROWS), output) > 1e-4) == ROWS).all()


@torch.no_grad()
def test_dropped_text_is_the_null_token(decoder, decoder_inputs):
    output = decoder(**decoder_inputs, drop_text=ROWS)
    assert ((difference(output, decoder(**decoder_inputs)) > 1e-4) == ROWS).all()
    empty = {
        **decoder_inputs,
        "text_tokens": torch.full((3, 1, 20), float("nan")),
        "text_mask": torch.zeros(3, 1, dtype=torch.bool),
    }
    assert_close(decoder(**empty, drop_text=ROWS)[ROWS], output[ROWS], atol=1e-5, rtol=0)
    decoder.null_text.neg_()
    assert ((difference(decoder(**decoder_inputs, drop_text=ROWS), output) > 1e-4) == ROWS).all()


@torch.no_grad()
@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 1)])
@pytest.mark.parametrize("drop", [None, ROWS])
def test_padding_changes_nothing(decoder, decoder_inputs, repad, left, right, drop):
    expected = decoder(**decoder_inputs, drop_text=drop)
    padded = repad(decoder_inputs, left, right)
    assert_close(decoder(**padded, drop_text=drop), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(decoder, decoder_inputs):
    whole = decoder(**decoder_inputs)
    for row in range(3):
        alone = decoder(**{name: tensor[row : row + 1] for name, tensor in decoder_inputs.items()})
        assert_close(alone[0], whole[row])


def test_noise_keeps_the_scaled_variance(decoder):
    generator = torch.Generator().manual_seed(0)
    z = decoder.denormalize(torch.randn(20_000, 12, generator=generator))
    noise = torch.randn(20_000, 12, generator=generator)
    level = torch.full((20_000,), 0.4)
    noised = decoder.normalize(decoder.noise_image_embeds(z, level, noise))
    assert_close(noised.std(0), torch.ones(12), atol=0.03, rtol=0)
    correlation = (noised * decoder.normalize(z)).mean()
    assert_close(correlation, torch.tensor(math.cos(0.4 * math.pi / 2)), atol=0.01, rtol=0)
    assert_close(decoder.noise_image_embeds(z, level * 0, noise), z)
    assert_close(
        decoder.noise_image_embeds(z, level * 0 + 1, noise), decoder.denormalize(noise), atol=1e-5, rtol=0
    )


def test_starts_at_zero_output(decoder_inputs):
    fresh = Decoder(
        sample_size=16, patch_size=4, draft_size=4, width=32, layers=1, heads=2, embed_dim=12, token_dim=20
    )
    assert (fresh(**decoder_inputs) == 0).all()


def test_wrong_inputs_are_explained(decoder, decoder_inputs):
    with pytest.raises(UserError, match="pictures of side 16"):
        decoder(**{**decoder_inputs, "x": torch.zeros(3, 3, 32, 32)})
    with pytest.raises(UserError, match="text_tokens"):
        decoder(**{**decoder_inputs, "text_tokens": torch.zeros(3, 5, 4)})
    with pytest.raises(UserError, match="multiple of patch_size"):
        Decoder(sample_size=60, patch_size=8)
    with pytest.raises(UserError, match="multiple of draft_size"):
        Decoder(sample_size=64, draft_size=48)


@torch.no_grad()
def test_the_draft_is_the_best_linear_guess(decoder):
    """Ridge regression: exact where pictures are linear in z_i, the mean picture where z_i says nothing."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 12, generator=generator) * 0.3 + 0.1
    decoder.set_embed_statistics(z.mean(0), z.std(0))
    R = decoder.config.draft_size
    linear = torch.randn(12, 3 * R * R, generator=generator)
    pictures = (z @ linear + 0.2).unflatten(1, (3, R, R))
    decoder.fit_draft(z, pictures, ridge=1e-9)
    expected = torch.nn.functional.interpolate(pictures, 16, mode="bicubic", align_corners=False)
    assert_close(decoder.draft(decoder.normalize(z)), expected, atol=1e-4, rtol=1e-3)

    unrelated = torch.randn(500, 3, R, R, generator=generator)
    decoder.fit_draft(z, unrelated, ridge=1e6)
    assert_close(decoder.draft_bias, unrelated.mean(0).flatten(), atol=1e-4, rtol=0)
    assert decoder.draft_weight.abs().max() < 1e-5


@torch.no_grad()
def test_the_draft_is_seen_where_it_is():
    """Without blocks to mix the patches, a coarse pixel of the draft changes the picture around it and nowhere else."""
    torch.manual_seed(0)
    model = Decoder(width=32, layers=0, heads=2, embed_dim=12, token_dim=20)
    for parameter in model.parameters():
        parameter.copy_(0.15 * torch.randn(parameter.shape))
    inputs = {
        "x": torch.randn(1, 3, 64, 64), "t": torch.tensor([0.5]), "noise_level": torch.zeros(1),
        "image_embeds": torch.randn(1, 12), "text_tokens": torch.randn(1, 3, 20),
        "text_mask": torch.ones(1, 3, dtype=torch.bool),
    }  # fmt: skip
    before = model(**inputs)
    model.draft_bias.view(3, 16, 16)[:, 2, 10] += 1.0  # pixels 8..11 and 40..43
    changed = (model(**inputs) - before).abs().amax((0, 1)) > 1e-6
    rows, columns = changed.nonzero().T
    # Bicubic enlargement reaches 6 pixels further, the stem 1, a patch to its border, the skin 2.
    assert (rows.min(), columns.min()) == (0, 30)
    assert (rows.max(), columns.max()) == (25, 57)
