"""What CLIP sees in a picture: the captions and the words that lie nearest to its image embedding.

Candidates come from the model's lexicon, not from data: the subjects that it has names for, its styles and skin tones,
and the commonest words of its captions. Every subject in every style would make tens of thousands of captions, so that
a picture is looked at three times:

    subject   the nearest by cosine, of all
    style     one for the picture: that of which the captions of the nearest subjects are nearest on average, compared
              with how near they are to the mean picture (which some styles are to every picture)
    tone      for each caption of a person or a hand that is shown, the nearest of: none, and each skin tone

Comparing with the mean picture names more styles of held-out pictures rightly, but no more subjects, so that it is left
to the style. All scores are plain cosines.

Shapes: B pictures, D embedding size, N texts; z is the image embedding of one picture, of unit norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.clip import FrozenCLIP
from unclip.data.concepts import TONES, role_of
from unclip.data.words import Lexicon
from unclip.errors import UserError

SUBJECTS = 20  # of the nearest decide on the style
WORDS = 1000  # the commonest; rarer ones are less often right
_BATCH = 128  # texts at a time

# What is in captions and says nothing about a picture.
_EMPTY_WORDS = frozenset(
    "a an the and or not no of in on at by to for from with without as is are was be being it its that this these "
    "up down out off over under all any very than then there i you me my your we our us he him his she her they them "
    "emoji icon picture style design rendered skin tone tones".split()
)
_SKIN_WORDS = frozenset("man woman person hand hands finger fingers fist thumbs index palms".split())

Scored = list[tuple[str, float]]


@dataclass(frozen=True)
class Described:
    """The nearest texts with their cosines, nearest first."""

    captions: Scored
    words: Scored


class Candidates:
    """What a picture may be called; keeps the embeddings of texts, of one CLIP at a time.

    Args:
        captions: whole captions, or subjects where there are styles.
        words: single words.
        styles: what each caption is tried with, as "CAPTION, STYLE".
        variants: caption -> what may take its place where it lies nearer, such as the same with a skin tone.

    Raises:
        UserError: there is no caption, or an empty one.
    """

    def __init__(
        self,
        captions: Sequence[str],
        *,
        words: Sequence[str] = (),
        styles: Sequence[str] = (),
        variants: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if isinstance(captions, str) or not captions or not all(text.strip() for text in captions):
            raise UserError("candidates must be a list of captions, none of them empty: give at least one")
        self.captions, self.words = list(dict.fromkeys(captions)), list(words)
        self.styles, self.variants = list(styles), dict(variants or {})
        self._clip: FrozenCLIP | None = None
        self._embeds: dict[str, Tensor] = {}

    @classmethod
    def of_lexicon(cls, lexicon: Lexicon) -> Candidates:
        """All that a model has English names for."""
        subjects = sorted({english for table in lexicon.languages.values() for english in table.values()})
        skins = [f"{tone}-skinned" for tone in TONES.values() if f"{tone}-skinned" in lexicon.words]
        words = [word for word in lexicon.words if _tells(word) and word not in lexicon.styles]
        return cls(
            subjects or words[:WORDS],
            words=words[:WORDS],
            styles=sorted(set(lexicon.styles.values())),
            variants={subject: [f"{skin} {subject}" for skin in skins] for subject in _with_skin(subjects)},
        )

    @classmethod
    def read(cls, path: str | Path) -> Candidates:
        """Captions of one's own, one in each line of a text file.

        Raises:
            UserError: the file is missing, holds no text, or no line.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read captions from {path} ({error}): give a text file") from error
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise UserError(f"{path} holds no caption: give one in each line")
        return cls(captions)

    def embeds(self, clip: FrozenCLIP, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts [N, D] of unit norm; each text is encoded once."""
        if clip is not self._clip:
            self._clip, self._embeds = clip, {}
        # Texts of one length in a batch need no padding.
        new = sorted({text for text in texts if text not in self._embeds}, key=lambda text: (len(text), text))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._embeds.update(zip(batch, clip.encode_text(batch).embeds.float().cpu(), strict=True))
        return torch.stack([self._embeds[text] for text in texts])

    def nearest(self, clip: FrozenCLIP, z: Tensor, texts: Sequence[str]) -> Scored:
        """All the texts with their cosines to z [D] of unit norm, nearest first."""
        if not texts:
            return []
        cosines, order = (self.embeds(clip, texts) @ z).sort(descending=True, stable=True)
        return [(texts[i], score) for i, score in zip(order.tolist(), cosines.tolist(), strict=True)]


def describe(clip: FrozenCLIP, image_embeds: Tensor, candidates: Candidates, top: int = 5) -> list[Described]:
    """The `top` captions (no subject twice) and words nearest to each image embedding [B, D], of any norm.

    The first call with some candidates encodes all their captions and words.

    Raises:
        UserError: no embeddings of this CLIP, or `top` below 1.
    """
    if image_embeds.ndim != 2 or image_embeds.shape[1] != clip.embed_dim:
        raise UserError(
            f"image_embeds must be [B, {clip.embed_dim}], got {list(image_embeds.shape)}: use clip.encode_image"
        )
    if top < 1:
        raise UserError(f"top must be 1 or more, got {top}: say how many captions to show")
    unit = F.normalize(image_embeds.detach().float().cpu(), dim=-1)
    return [
        Described(_captions(clip, z, candidates, top), candidates.nearest(clip, z, candidates.words)[:top])
        for z in unit
    ]


def _captions(clip: FrozenCLIP, z: Tensor, candidates: Candidates, top: int) -> Scored:
    """The captions nearest to one picture z [D]."""
    found = candidates.nearest(clip, z, candidates.captions)[: max(top, SUBJECTS)]
    subjects = [subject for subject, _ in found]
    style = _style(clip, z, candidates, subjects[:SUBJECTS])
    styled = {subject + style: (subject, *candidates.variants.get(subject, ())) for subject in subjects}
    shown = [styled[caption] for caption, _ in candidates.nearest(clip, z, list(styled))[:top]]
    best = [candidates.nearest(clip, z, [variant + style for variant in variants])[0] for variants in shown]
    return sorted(best, key=lambda scored: -scored[1])


def _style(clip: FrozenCLIP, z: Tensor, candidates: Candidates, subjects: Sequence[str]) -> str:
    """What follows a subject to name the style of z; "" where there are no styles."""
    if not candidates.styles:
        return ""
    endings = [f", {style}" for style in candidates.styles]
    embeds = candidates.embeds(clip, [subject + ending for ending in endings for subject in subjects])
    nearness = embeds @ (z - clip.embed_mean.float().cpu())
    return endings[int(nearness.view(len(endings), -1).mean(1).argmax())]


def _with_skin(subjects: Sequence[str]) -> list[str]:
    """Those of a person, by a word for one or by a role that comes in several genders, or of a hand."""
    roles = Counter(role_of(subject) for subject in subjects)
    return [
        subject
        for subject in subjects
        if roles[role_of(subject)] > 1 or not _SKIN_WORDS.isdisjoint(subject.replace("-", " ").split())
    ]


def _tells(word: str) -> bool:
    """Whether a word may say what is to be seen."""
    return len(word) > 2 and not word.endswith("-skinned") and word not in _EMPTY_WORDS
