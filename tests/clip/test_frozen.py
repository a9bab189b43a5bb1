"""FrozenCLIP: its embeddings, its frozenness, its folder on disk, and its place in a diffusers pipeline."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.testing import assert_close

from unclip.clip import FrozenCLIP
from unclip.clip.frozen import WEIGHTS_FILE
from unclip.errors import UserError

TEXTS = ["a red apple", "", "a small blue house on the left of a big green pear"]


@pytest.fixture
def saved(tiny_clip, tmp_path):
    tiny_clip.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def byte_pair_clip():
    """An open_clip model of the original layout (positions for the whole window, causal mask), tiny."""
    torch.manual_seed(0)
    return FrozenCLIP.from_open_clip(
        {
            "embed_dim": 8,
            "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
            "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 2, "vocab_size": 49408},
        }
    )


@pytest.fixture(params=["ours", "byte_pair"])
def clip(request, tiny_clip):
    return tiny_clip if request.param == "ours" else request.getfixturevalue("byte_pair_clip")


def test_embeddings_have_unit_norm_and_states_fit_the_mask(clip):
    embeds, tokens, mask, _ = clip.encode_text(TEXTS)
    assert embeds.shape == (3, clip.embed_dim)
    assert tokens.shape == (*mask.shape, clip.token_dim)
    assert mask.dtype is torch.bool
    assert mask.sum(1).max() == mask.shape[1]  # L is the longest text, not the window
    assert mask[1].sum() == 2  # the null caption is its start and end token
    assert (tokens[~mask] == 0).all()
    assert_close(embeds.norm(dim=-1), torch.ones(3))
    images = clip.encode_image(torch.rand(2, 3, 40, 23) * 2 - 1)
    assert_close(images.norm(dim=-1), torch.ones(2))


def test_a_text_does_not_depend_on_its_batch(clip):
    together = clip.encode_text(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = clip.encode_text([text])
        length = alone.mask.shape[1]
        assert_close(alone.embeds[0], together.embeds[i])
        assert_close(alone.tokens[0], together.tokens[i, :length])
        assert_close(alone.mask[0], together.mask[i, :length])


def test_truncation_names_the_words_cut_off(clip):
    with pytest.warns(UserWarning, match=r'16 tokens.*cut off: "(red )*blue pear"'):
        clip.encode_text(["red " * 20 + "blue pear"])


def test_a_fitting_text_does_not_warn(clip, recwarn):
    clip.encode_text(TEXTS)
    assert not [w for w in recwarn if "cut off" in str(w.message)]


def test_images_are_resized_and_cropped_inside(tiny_clip):
    size = tiny_clip.image_size
    wide = torch.full((1, 3, size, 3 * size), -1.0)
    wide[..., size : 2 * size] = 0.25
    assert_close(tiny_clip.encode_image(wide), tiny_clip.encode_image(torch.full((1, 3, size, size), 0.25)))


@pytest.mark.parametrize("texts", ["a red apple", [], [None]])
def test_wrong_texts_are_refused(tiny_clip, texts):
    with pytest.raises(ValueError, match="non-empty list of strings"):
        tiny_clip.encode_text(texts)


def test_wrong_pixels_are_refused(tiny_clip):
    with pytest.raises(ValueError, match=r"\[B,3,H,W\]"):
        tiny_clip.encode_image(torch.zeros(3, 8, 8))


def test_frozen_inside_a_trainer(tiny_clip):
    """Whatever a trainer does to a parent module, the encoders get no gradient and stay in eval mode."""
    parent = nn.ModuleDict({"clip": tiny_clip, "head": nn.Linear(tiny_clip.embed_dim, 1)})
    before = {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    parent.train()
    tiny_clip.requires_grad_(True)
    assert not any(p.requires_grad for p in tiny_clip.parameters())
    parent.requires_grad_(True)  # reaches the parameters themselves
    assert not any(m.training for m in tiny_clip.modules())
    optimizer = torch.optim.AdamW(parent.parameters(), lr=0.1)
    images = tiny_clip.encode_image(torch.rand(2, 3, 32, 32))
    parent["head"](images + tiny_clip.encode_text(["a", "b"]).embeds).sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in tiny_clip.parameters())
    assert_close(tiny_clip.state_dict(), before)


def test_save_and_load_give_the_same_embeddings(clip, tmp_path):
    clip.set_statistics(torch.randn(20, clip.embed_dim))
    clip.save_pretrained(tmp_path)
    loaded = FrozenCLIP.from_pretrained(tmp_path)
    assert_close(loaded.state_dict(), clip.state_dict())
    assert_close(loaded.encode_text(TEXTS), clip.encode_text(TEXTS))
    pixels = torch.rand(1, 3, 20, 20)
    assert_close(loaded.encode_image(pixels), clip.encode_image(pixels))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.fingerprint() == clip.fingerprint()


def test_loading_and_encoding_touch_no_network(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    FrozenCLIP.from_pretrained(saved).encode_text(TEXTS)


def test_half_precision_on_disk_runs_in_single(tiny_clip, saved, tmp_path):
    tiny_clip.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert (tmp_path / "half" / WEIGHTS_FILE).stat().st_size < 0.75 * (saved / WEIGHTS_FILE).stat().st_size
    loaded = FrozenCLIP.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.fingerprint() == tiny_clip.fingerprint()
    assert_close(loaded.embed_mean, tiny_clip.embed_mean)
    assert_close(loaded.encode_text(TEXTS).embeds, tiny_clip.encode_text(TEXTS).embeds, atol=5e-3, rtol=0)


def test_fingerprint_follows_weights_not_statistics(tiny_clip):
    before = tiny_clip.fingerprint()
    tiny_clip.set_statistics(torch.randn(9, tiny_clip.embed_dim))
    assert tiny_clip.fingerprint() == before
    with torch.no_grad():
        tiny_clip.model.logit_scale.add_(1.0)
    assert tiny_clip.fingerprint() != before


def test_statistics(tiny_clip):
    values = torch.randn(200, tiny_clip.embed_dim) * 2 + 1
    values[:, 0] = 3.0  # a dead dimension must not divide by zero
    tiny_clip.set_statistics(values)
    assert_close(tiny_clip.embed_mean, values.mean(0))
    assert_close(tiny_clip.embed_std[1:], values.std(0)[1:])
    assert tiny_clip.embed_std[0] > 0
    with pytest.raises(ValueError, match=rf"\[N,{tiny_clip.embed_dim}\]"):
        tiny_clip.set_statistics(values[:, :3])


class Pictureless(DiffusionPipeline):
    """The smallest pipeline that holds a FrozenCLIP."""

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        self.register_modules(clip=clip)


def test_component_of_a_diffusers_pipeline(tiny_clip, tmp_path):
    Pictureless(clip=tiny_clip).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["clip"] == [
        "unclip.clip.frozen",
        "FrozenCLIP",
    ]
    loaded = Pictureless.from_pretrained(tmp_path).clip
    assert_close(loaded.encode_text(TEXTS), tiny_clip.encode_text(TEXTS))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_pickles_are_never_written(tiny_clip, tmp_path):
    with pytest.raises(UserError, match="safetensors"):
        tiny_clip.save_pretrained(tmp_path, safe_serialization=False)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_folder_is_one_line(saved, name, damage):
    path = saved / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=re.escape(name)) as error:
        FrozenCLIP.from_pretrained(saved)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["architecture"]["text_cfg"]["hf_config"]["num_hidden_layers"] = 2
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not fit"):
        FrozenCLIP.from_pretrained(saved)


def test_unknown_open_clip_name_gives_the_nearest():
    with pytest.raises(UserError, match="'ViT-B-32'"):
        FrozenCLIP.from_open_clip("ViT-B-3")


def test_open_clip_folder(tmp_path, byte_pair_clip):
    """open_clip's own kind of local folder loads by `local-dir:`."""
    from safetensors.torch import save_file

    cfg = dict(byte_pair_clip.config.architecture)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    save_file(byte_pair_clip.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded = FrozenCLIP.from_open_clip(f"local-dir:{tmp_path}")
    assert_close(loaded.encode_text(TEXTS), byte_pair_clip.encode_text(TEXTS))


def test_things_named_in_a_text_are_embedded_by_their_places(tiny_clip):
    texts = ["a red apple", "a red apple left of a blue house", "a cat above a heart"]
    assert not tiny_clip.encode_text(texts).things.any()
    encoded = tiny_clip.encode_text(texts, things=True)
    assert encoded.things.shape == (3, 4, tiny_clip.embed_dim)
    alone = tiny_clip.encode_text(["a red apple", "a blue house", "a cat", "a heart"]).embeds
    assert_close(encoded.things[1, :2], alone[:2])
    assert_close(encoded.things[2, 2:], alone[2:])
    assert not encoded.things[0].any()
    assert not encoded.things[1, 2:].any()
    assert not encoded.things[2, :2].any()
