"""A smaller vocabulary: captions keep their embeddings, and what is saved loads."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from unclip.clip import FrozenCLIP
from unclip.clip.prune import keep_frequent_pieces
from unclip.clip.tokenize import FileTokenizer
from unclip.errors import UserError

CAPTIONS = ["a red apple", "a blue house"]


def test_captions_are_embedded_as_before(tiny_clip, tmp_path):
    smaller = keep_frequent_pieces(tiny_clip, 5, CAPTIONS)
    size = smaller.config["architecture"]["text_cfg"]["hf_config"]["vocab_size"]
    assert size < tiny_clip.config["architecture"]["text_cfg"]["hf_config"]["vocab_size"]
    assert size == smaller.text_tokenizer.tokenizer.get_vocab_size()
    assert_close(smaller.encode_text(CAPTIONS), tiny_clip.encode_text(CAPTIONS))
    smaller.save_pretrained(tmp_path)
    assert_close(FrozenCLIP.from_pretrained(tmp_path).encode_text(CAPTIONS), tiny_clip.encode_text(CAPTIONS))
    # Other words are gone: both are unknown.
    assert_close(smaller.encode_text(["a green cat"]).embeds, smaller.encode_text(["a pear heart"]).embeds)
    assert tiny_clip.config["architecture"]["text_cfg"]["hf_config"]["vocab_size"] > size


@pytest.fixture
def byte_pair_clip() -> FrozenCLIP:
    """An open_clip model of the original layout, tiny."""
    return FrozenCLIP.from_open_clip(
        {
            "embed_dim": 8,
            "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
            "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 2, "vocab_size": 49408},
        }
    )


def test_padding_is_found_again(tiny_clip):
    """Wherever it stood in the vocabulary: a batch of unequal lengths comes out as one by one."""
    whole = tiny_clip.text_tokenizer
    words = whole.tokenizer.get_vocab()
    tiny_clip.text_tokenizer = FileTokenizer(whole.tokenizer, whole.context_length, pad_id=words["small"])
    smaller = keep_frequent_pieces(tiny_clip, 5, CAPTIONS)
    kept = smaller.text_tokenizer
    assert kept.tokenizer.id_to_token(kept.pad_id) == "small"
    assert smaller.config["tokenizer_options"]["pad_id"] == kept.pad_id < words["small"]


def test_only_word_pieces_can_be_left_out(byte_pair_clip, tiny_clip):
    with pytest.raises(UserError, match="only a text tower of word pieces"):
        keep_frequent_pieces(byte_pair_clip, 100, CAPTIONS)
    with pytest.raises(UserError, match="at least one"):
        keep_frequent_pieces(tiny_clip, 0, CAPTIONS)
