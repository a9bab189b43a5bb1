"""A smaller vocabulary: word embeddings are the largest part of a small CLIP, and most of them are for rare words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from tokenizers.models import WordLevel, WordPiece
from torch import nn

from unclip.clip.frozen import FrozenCLIP
from unclip.clip.tokenize import FileTokenizer, keep_pieces
from unclip.errors import UserError


@torch.no_grad()
def keep_frequent_pieces(clip: FrozenCLIP, count: int, texts: Iterable[str]) -> FrozenCLIP:
    """The same CLIP with the first `count` word pieces, those of `texts`, and single characters.

    BERT's vocabulary is sorted by frequency, so the first are the commonest. `texts` are embedded as before; a rare
    word that lost its piece is spelled out in shorter ones, of which the tower knows less.

    Raises:
        UserError: the text tower has no word pieces (only BERT-like ones do), or `count` is not positive.
    """
    tokenizer = clip.text_tokenizer
    words = getattr(getattr(getattr(clip.model, "text", None), "transformer", None), "embeddings", None)
    if not (
        isinstance(tokenizer, FileTokenizer)
        and isinstance(tokenizer.tokenizer.model, WordPiece | WordLevel)
        and words is not None
    ):
        raise UserError(
            "only a text tower of word pieces (BERT) can do with fewer: leave its vocabulary as it is"
        )
    if count < 1:
        raise UserError(f"expected at least one word piece to keep, got {count}")
    whole = tokenizer.tokenizer
    vocabulary, padding = whole.get_vocab(), whole.id_to_token(tokenizer.pad_id)
    assert padding is not None, "the padding has an embedding, so it has a piece"
    read = tokenizer.clean or str
    used = {piece for text in [*texts, ""] for piece in whole.encode(read(text)).tokens}
    used |= {token.content for token in whole.get_added_tokens_decoder().values()}
    used |= {whole.model.unk_token, padding}

    def kept(piece: str) -> bool:
        # Any word can be spelled out in single characters.
        return piece in used or len(piece.removeprefix("##")) == 1 or vocabulary[piece] < count

    smaller, ids = keep_pieces(whole, kept)
    architecture: Any = _with_vocabulary(clip.config.architecture, len(ids))
    options = {**tokenizer.options, "pad_id": smaller.token_to_id(padding)}
    pruned = FrozenCLIP(
        architecture,
        clip.config.tokenizer,
        options,
        clip.config.image_mean,
        clip.config.image_std,
    )
    state = clip.state_dict()
    name = "model.text.transformer.embeddings.word_embeddings.weight"
    state[name] = state[name][torch.tensor(ids)]
    cast(nn.Module, pruned).load_state_dict(state)
    pruned.text_tokenizer = FileTokenizer(smaller, clip.context_length, **options)
    return pruned


def _with_vocabulary(architecture: dict[str, Any], size: int) -> dict[str, Any]:
    text = architecture["text_cfg"]
    return {
        **architecture,
        "text_cfg": {**text, "hf_config": {**text["hf_config"], "vocab_size": size}},
    }
