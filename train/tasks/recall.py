"""The prior beside a memory of the training pictures: which of them each caption recalls while it learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.data.progress import track
from unclip.errors import UserError
from unclip.models import RecallPrior
from unclip.models.memory import AT_ONCE, NOBODY, EmbeddingMemory

from ..config import TrainConfig
from .base import Batch
from .embedded import EmbeddedPictures, indices_of
from .prior import PriorOptions, PriorTask

SPARE = 24  # neighbours that stand in for those that a sample may not see


@dataclass(frozen=True, kw_only=True)
class RecallOptions(PriorOptions):
    """What of the memory a training sample does not see, so that the prior learns to do without it."""

    hide_own: float = 0.5  # probability that the picture itself is hidden: others have to serve
    hide_subject: float = 0.15  # that all pictures of its subject are
    hide_all: float = 0.1  # that there is nothing at all

    def __post_init__(self) -> None:
        """Reject what no run can have, before data is loaded."""
        super().__post_init__()
        shares = {name: getattr(self, name) for name in ("hide_own", "hide_subject", "hide_all")}
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            got = ", ".join(f"task.{name}={share:g}" for name, share in shares.items())
            raise UserError(f"expected probabilities that add up to at most 1, got {got}")


class NearPictures:
    """The nearest rows of a memory for every caption of the data, looked up once.

    Row j of the memory is picture `pictures[j]` of the data.
    """

    def __init__(self, pictures: np.ndarray, subjects: Tensor, options: RecallOptions, count: int) -> None:
        which = indices_of(pictures)
        self.subject_of_row, self.subjects = subjects[which], subjects
        self.row_of = torch.full((len(subjects),), NOBODY).index_put((which,), torch.arange(len(which)))
        self.options, self.count = options, count
        self.near = torch.empty(0, 0, dtype=torch.int32)

    def look_up(self, memory: EmbeddingMemory, captions: Tensor, least_likeness: float) -> None:
        """Find the neighbours of captions [M, D]."""
        chunks = captions.split(AT_ONCE)
        found = [
            memory.neighbours(chunk, self.count + SPARE, least_likeness).int()
            for chunk in track(chunks, "neighbours", len(chunks))
        ]
        self.near = torch.cat(found)

    def choose(self, pictures: np.ndarray, captions: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Rows [n, k] for each of n pictures and a caption of each, with what is hidden left out."""
        own, subject, everything = (
            torch.from_numpy(chosen)[:, None] for chosen in self._hidden(rng.random(len(pictures)))
        )
        near, which = self.near[indices_of(captions)].long(), indices_of(pictures)
        itself = near == self.row_of[which][:, None]
        kin = self.subject_of_row[near.clamp(min=0)] == self.subjects[which][:, None]
        near = near.masked_fill((itself & own) | (kin & subject) | everything, NOBODY)
        order = (near == NOBODY).to(torch.int8).argsort(dim=1, stable=True)[:, : self.count]
        return near.gather(1, order)

    def _hidden(self, chances: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of each chance in [0, 1) which of the three options it falls to, if any."""
        options = self.options
        ends = np.cumsum([0, options.hide_own, options.hide_subject, options.hide_all])
        return tuple((chances >= start) & (chances < end) for start, end in pairwise(ends))


class RecallPriorTask(PriorTask):
    """Trains `RecallPrior` on cached embeddings, with those it trains on in its memory."""

    name = "prior-recall"
    Options = RecallOptions
    model: RecallPrior

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        data = self.data
        subjects = data.subjects()
        several, captions = (indices_of(each) for each in self.pairs())
        self.model.memory.fit_keys(self.text_embeds[captions], subjects[several])
        self.near = NearPictures(data.sampling.trained, subjects, self.options, self.model.neighbours)
        # Of each caption the row of `composed`, of which the last is nothing.
        self.composed = torch.zeros(1, data.embed_dim)
        self.composed_of = torch.full((len(self.text_embeds),), -1)
        if config.initial is None:  # else once its weights are there
            self.remember()

    @classmethod
    def network(cls) -> Callable[..., RecallPrior]:
        return RecallPrior

    @classmethod
    def derived(cls) -> set[str]:
        """The size of the memory follows from the data."""
        return super().derived() | {"memory_size"}

    def network_arguments(self, data: EmbeddedPictures) -> dict[str, Any]:
        """Those of the prior, and as many places in the memory as there are pictures to train on."""
        return super().network_arguments(data) | {"memory_size": len(data.sampling.trained)}

    def remember(self) -> None:
        """Put the pictures into the memory, by its keys and in the scaled space of the model; learn of scenes."""
        pictures = indices_of(self.data.sampling.trained)
        captions = self.data.caption_means(self.text_embeds)[pictures]
        memory = self.model.memory
        memory.store(captions, self.model.normalize(self.data.image_embeds[pictures]))
        self.near.look_up(memory, self.text_embeds, self.model.least_likeness)
        if (memory.neighbours(self._empty.embeds, 1, self.model.least_likeness) != NOBODY).any():
            warnings.warn(
                'the memory finds pictures like the empty caption "", which guidance then leads away from: raise '
                f"model.least_likeness (it is {self.model.least_likeness:g}) or model.key_dim",
                stacklevel=2,
            )
        if self.data.scenes is not None:
            self._compose(memory)

    def _compose(self, memory: EmbeddingMemory) -> None:
        """Fit how two things make a scene, and what that gives for the captions of scenes."""
        scenes = self.data.scene_indices
        captions = [self.data.cache.caption_of[i][0] for i in scenes]
        texts = [self.data.cache.texts[m] for m in captions]
        chunks = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        things = torch.cat([self.clip.encode_things(chunk) for chunk in track(chunks, "things", len(chunks))])
        z_t = self.text_embeds[captions]
        memory.fit_compositions(z_t, things, self.model.normalize(self.data.image_embeds[indices_of(scenes)]))
        self.composed = F.pad(memory.compose(z_t, things), (0, 0, 0, 1))
        self.composed_of[captions] = torch.arange(len(captions))

    def load(self, path: Path) -> None:
        """Weights of either transformer prior; what is remembered is the data at hand."""
        super().load(path)
        self.remember()

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """As of the prior, with the neighbours' `rows` [n, k] and what is `composed` [n, D]."""
        indices, captions = self.data.draw(n, rng)
        rows = self.near.choose(indices, captions, rng)
        composed = self.composed[self.composed_of[indices_of(captions)]]
        drop = torch.from_numpy(rng.random(n) < self.options.drop_text)
        batch = self._drop(self._samples(indices, captions), drop)
        rows, composed = rows.masked_fill(drop[:, None], NOBODY), composed.masked_fill(drop[:, None], 0)
        return batch | {"rows": rows, "composed": composed}
