"""Text to token ids, with every cut made visible.

Two sorts of tokenizer stand behind one call: a `tokenizer.json` of the tokenizers library, which travels with the
weights, and open_clip's byte-pair tokenizer, which lies inside open_clip itself.
Shapes: B texts, L tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from unclip.errors import UserError
from unclip.files import atomic_path

TOKENIZER_FILE = "tokenizer.json"
_PLAIN_MARKS = (
    dict.fromkeys("‘’ʼ`´", "'") | dict.fromkeys("“”„«»", '"') | dict.fromkeys("‐‑–—−", "-") | {"…": "..."}
)


class Tokens(NamedTuple):
    """Token ids [B,L], mask [B,L] (True = real token, False = padding) and, per text, the words cut off ("" = none)."""

    ids: Tensor
    mask: Tensor
    lost: list[str]


class TextTokenizer(Protocol):
    """Turns texts into Tokens; `save` puts what it needs into the model's folder."""

    def __call__(self, texts: Sequence[str]) -> Tokens: ...

    def save(self, folder: str | Path) -> None: ...


class FileTokenizer:
    """A tokenizers.Tokenizer cut at `context_length` tokens, special tokens included.

    L is the longest text of the batch, or `context_length` when `fixed_length` is set (networks whose positions or
    pooling need the whole window).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        *,
        pad_id: int = 0,
        fixed_length: bool = False,
        clean: str | None = None,
    ) -> None:
        # A private copy: truncation and padding belong to this object, not to the caller's.
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(context_length)
        self.context_length = context_length
        self.pad_id = pad_id
        self.fixed_length = fixed_length
        self.clean = get_clean_fn(clean) if clean else None
        self.options: dict[str, Any] = {"pad_id": pad_id, "fixed_length": fixed_length, "clean": clean}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        texts = [self.clean(text) for text in texts] if self.clean else list(texts)
        encodings = self.tokenizer.encode_batch(texts)
        lost = [_cut_off(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        length = self.context_length if self.fixed_length else max(len(e.ids) for e in encodings)
        ids, mask = _pad([encoding.ids for encoding in encodings], length, self.pad_id)
        return Tokens(ids, mask, lost)

    def save(self, folder: str | Path) -> None:
        with atomic_path(Path(folder) / TOKENIZER_FILE) as path:
            self.tokenizer.save(str(path))

    @classmethod
    def from_folder(cls, folder: str | Path, context_length: int, **options: Any) -> FileTokenizer:
        """Read `folder/tokenizer.json`.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(
                f"no {TOKENIZER_FILE} in {folder}: the CLIP folder is incomplete; copy or save it again"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UserError(f"{path} is damaged ({error}); copy or save the CLIP folder again") from error
        return cls(tokenizer, context_length, **options)


class BytePairTokenizer:
    """open_clip's own tokenizer: always `context_length` ids, the last real one being the end-of-text token."""

    def __init__(self, context_length: int) -> None:
        self.tokenizer = SimpleTokenizer(context_length=context_length)
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tokens:
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        room = self.context_length - 2
        words = [self.tokenizer.encode(text) for text in texts]
        lost = [self.tokenizer.decode(ids[room:]).strip() for ids in words]
        ids, mask = _pad([[start, *w[:room], end] for w in words], self.context_length, pad_id=0)
        return Tokens(ids, mask, lost)

    def save(self, folder: str | Path) -> None:
        """Nothing to write: the vocabulary is part of open_clip."""


def make_word_pieces(texts: Iterable[str], vocab_size: int = 8192) -> Tokenizer:
    """Make a WordPiece vocabulary (BERT's layout: [CLS] text [SEP], id 0 = [PAD]) from captions; no network.

    It holds every character, at the start of a word and inside, and the most frequent words. (The trainer of
    `tokenizers` finds finer pieces, but others in each process, and a resumed run needs the same.)
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in counts for character in word})
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{each}" for each in characters), *words]
    vocabulary = {piece: i for i, piece in enumerate(pieces[:vocab_size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(s, tokenizer.token_to_id(s)) for s in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def keep_pieces(tokenizer: Tokenizer, keep: Callable[[str], bool]) -> tuple[Tokenizer, list[int]]:
    """A word-piece tokenizer that knows only the pieces of which `keep` is true, and their ids in the old one.

    Piece n of the new one is piece ids[n] of the old one, so embeddings[ids] are the new one's. Words that need another
    piece become "unknown". The special tokens must be kept.
    """
    vocabulary = tokenizer.get_vocab()
    ids = sorted(number for piece, number in vocabulary.items() if keep(piece))
    renumbered = {old: new for new, old in enumerate(ids)}
    plan = json.loads(tokenizer.to_str())
    plan["model"]["vocab"] = {
        piece: renumbered[old] for piece, old in vocabulary.items() if old in renumbered
    }
    for token in plan["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    for token in plan["post_processor"]["special_tokens"].values():
        token["ids"] = [renumbered[old] for old in token["ids"]]
    return Tokenizer.from_str(json.dumps(plan)), ids


def with_plain_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, changed in place: it reads typographic marks (’ “ ” – …), which phones type, as a keyboard's."""
    first = [normalizers.Replace(mark, plain) for mark, plain in _PLAIN_MARKS.items()]
    tokenizer.normalizer = normalizers.Sequence([*first, tokenizer.normalizer])
    return tokenizer


def _pad(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask


def _cut_off(text: str, encoding: Any) -> str:
    """Return the words of `text` that did not fit; a word cut in the middle counts as cut off."""
    if not encoding.overflowing:
        return ""
    kept_end = max((end for _, end in encoding.offsets), default=0)
    start = next((start for start, end in encoding.overflowing[0].offsets if end > start), kept_end)
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    return text[start:].strip()
