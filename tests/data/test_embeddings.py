"""The embedding cache, with a CLIP of a few lines."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from unclip.data import CaptionedImages, ComposedScenes, EmbeddingCache
from unclip.errors import UserError


class Encoded(NamedTuple):
    embeds: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor


class FakeCLIP:
    """Embeds a picture by its mean colour and a text by its letters; a word is a token."""

    image_size = 16

    def __init__(self, name="fake"):
        self.name = name
        self.pictures = 0

    def encode_image(self, pixels):
        assert pixels.shape[1:] == (3, 16, 16)
        assert pixels.abs().max() <= 1.0
        self.pictures += len(pixels)
        return normalize(torch.cat([pixels.mean((2, 3)), torch.ones(len(pixels), 1)], 1), dim=1)

    def encode_text(self, texts):
        rows = [[[len(word), ord(word[0]) / 32, 1.0] for word in text.split()] for text in texts]
        longest = max(len(row) for row in rows)
        tokens = torch.full((len(rows), longest, 3), 7.0)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        embeds = torch.stack([normalize(torch.tensor([len(text), 1.0, 0.0, 2.0]), dim=0) for text in texts])
        return Encoded(embeds, tokens, mask)

    def fingerprint(self):
        return self.name


@pytest.fixture
def ds(fixture_path):
    return CaptionedImages(fixture_path, split="style")


def test_embeddings_and_token_states_are_those_of_the_towers(ds, tmp_path):
    clip = FakeCLIP()
    cache = EmbeddingCache.build(clip, ds, tmp_path, batch_size=3, progress=False)
    assert cache.image_embeds.shape == (len(ds), 4)
    pixels = torch.from_numpy(ds.rgb(2, 16)).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(cache.image_embeds[2:3], clip.encode_image(pixels))
    assert len(cache.texts) == len(set(cache.texts)) == len(cache.text_embeds)
    for i in range(len(ds)):
        assert [cache.texts[m] for m in cache.caption_of[i]] == ds.captions(i)
    chosen = [cache.caption_of[0][0], cache.caption_of[1][-1], cache.caption_of[3][2]]
    states, mask = cache.tokens(chosen)
    expected = clip.encode_text([cache.texts[m] for m in chosen])
    assert states.dtype == torch.float32
    torch.testing.assert_close(mask, expected.mask)
    torch.testing.assert_close(states[mask], expected.tokens[expected.mask], rtol=1e-3, atol=1e-3)
    assert (states[~mask] == 0).all()
    torch.testing.assert_close(cache.text_embeds[chosen].float(), expected.embeds, rtol=1e-3, atol=1e-3)


def test_a_saved_cache_is_read_again_and_checked(ds, tmp_path, fixture_path):
    clip = FakeCLIP()
    built = EmbeddingCache.build(clip, ds, tmp_path / "c.safetensors", progress=False)
    loaded = EmbeddingCache.load(tmp_path / "c.safetensors", clip, ds)
    torch.testing.assert_close(loaded.image_embeds, built.image_embeds)
    torch.testing.assert_close(loaded.tokens([0, 1])[0], built.tokens([0, 1])[0])
    assert (loaded.caption_of, loaded.texts) == (built.caption_of, built.texts)
    seen = clip.pictures
    EmbeddingCache.build(clip, ds, tmp_path / "c.safetensors", progress=False)
    assert clip.pictures == seen
    with pytest.raises(UserError, match="other CLIP weights or other data"):
        EmbeddingCache.load(tmp_path / "c.safetensors", FakeCLIP("retrained"), ds)
    with pytest.raises(UserError, match="other data"):
        EmbeddingCache.load(tmp_path / "c.safetensors", clip, CaptionedImages(fixture_path, split="tone"))


def test_scenes_are_embedded_like_pictures_and_join_behind_them(ds, real, tmp_path):
    scenes, clip = ComposedScenes(real, seed=0, length=5, size=16), FakeCLIP()
    pictures = EmbeddingCache.build(clip, ds, tmp_path, progress=False)
    composed = EmbeddingCache.build(clip, scenes, tmp_path / "s.safetensors", batch_size=4, progress=False)
    with pytest.raises(UserError, match="other data"):
        EmbeddingCache.load(tmp_path / "s.safetensors", clip, ComposedScenes(real, seed=1, length=5))
    both = pictures.joined(composed)
    assert len(both.image_embeds) == len(ds) + 5
    assert [both.texts[m] for m in both.caption_of[len(ds) + 3]] == scenes.captions(3)
    assert_close(both.image_embeds[len(ds) :], composed.image_embeds)
    for parts, first in ((pictures, 0), (composed, len(pictures.texts))):
        for m in range(len(parts.texts)):
            assert both.texts[first + m] == parts.texts[m]
            assert_close(both.tokens([first + m])[0], parts.tokens([m])[0])
            assert_close(both.text_embeds[first + m], parts.text_embeds[m])


def test_a_missing_or_cut_off_file_is_named(ds, tmp_path):
    with pytest.raises(UserError, match="found none"):
        EmbeddingCache.load(tmp_path)
    EmbeddingCache.build(FakeCLIP(), ds, tmp_path, progress=False)
    path = tmp_path / "embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        EmbeddingCache.load(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        EmbeddingCache.build(FakeCLIP(), ds, tmp_path, progress=False)
