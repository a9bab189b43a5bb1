"""The claims of the unCLIP paper (2204.06125), measured at small scale: what is compared, and by which figures.

Everything compared is a *variant* of one model, which differs in its prior, its decoder or its settings. Each is asked
the same prompts with the same seeds, half of them of captions that were trained on (`train`) and half of a style that
the subject was never seen in (`style`), and gets the same row of figures. What two sections share is measured once.

Shapes: Q prompts, D width of CLIP's embeddings, F features of the judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.cache import features_of_all
from unclip.eval.choice import Asked, Pictures, choose
from unclip.eval.distribution import diversity, within
from unclip.eval.drawing import draw_pictures
from unclip.eval.features import FeatureNet
from unclip.eval.frechet import FrechetTo
from unclip.eval.judge import Judge
from unclip.eval.model import JUDGED_AT, Drawing, Manipulator, Model, clip_features, encode_texts
from unclip.eval.retrieval import ranks
from unclip.files import write_text

Figures = dict[str, Any]
Variants = Callable[..., Model]  # settings, prior, decoder, … -> a model; see unclip.pipelines.measured

SPLITS_ASKED = ("train", "style")
MORE_SEEDS = 2  # of the prompts whose variety is measured
REPEATS = 3  # of a timing


@dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """How much is measured.

    Attributes:
        varied: of the prompts, the first so many are drawn from MORE_SEEDS further seeds.
        sources: held-out pictures that variations are made of.
    """

    LEAST: ClassVar[dict[str, int]] = {**Drawing.LEAST, "prompts": 8, "varied": 1, "sources": 1}

    size: int = 64
    varied: int = 20
    sources: int = 40


@dataclass(frozen=True)
class Variant:
    """A row of a section: how it is called, which line and place of the plot it has, and what makes its model."""

    name: str
    given: Mapping[str, Any]
    series: str = ""
    x: float | None = None


class Bench:
    """Prompts, real pictures and the judge: what every variant is measured with.

    Args:
        data: real pictures of all splits. embeds: CLIP's of them [N,D]. gallery: the judge's features of them [N,F].
        net: the judge. out: folder for pictures and for what was measured.

    Raises:
        UserError: the data has no prompts of a split that is asked.
    """

    def __init__(
        self, data: Pictures, embeds: Tensor, net: FeatureNet, gallery: Tensor, out: Path, options: Options
    ) -> None:
        self.data, self.embeds, self.net, self.out, self.options = data, embeds, net, out, options
        half = options.prompts // 2
        chosen = [choose(data.records, split, half, options.seed) for split in SPLITS_ASKED]
        for split, asked in zip(SPLITS_ASKED, chosen, strict=True):
            if not asked:
                raise UserError(f"claims are measured on captions of the split {split}: this data has none")
        # In turn, so that the first of them are of both splits, and as many of each.
        self.asked = [a for pair in zip(*chosen, strict=False) for a in pair]
        self.held_out = np.array([a.split == SPLITS_ASKED[1] for a in self.asked])
        self.judge = Judge(gallery, data.records)
        self.everything = FrechetTo(gallery)
        self.labels = [(record["concept"], record["style"]) for record in data.records]
        self.true = self.judge.whiten(self.features([data.rgb(a.index, options.size) for a in self.asked]))

    @classmethod
    def of(
        cls, data: Pictures, model: Model, net: FeatureNet, out: Path, cache: Path, options: Options
    ) -> Bench:
        """With the features of the real pictures that `cache` holds, or will."""
        wanted = [clip_features(model), net.features]
        embeds, gallery = features_of_all(data, wanted, cache, JUDGED_AT, options.progress)
        return cls(data, embeds, net, gallery, out, options)

    @property
    def settings(self) -> dict[str, Any]:
        """What all figures depend on besides the variant."""
        kept = {key: value for key, value in asdict(self.options).items() if key not in _OF_THE_RUN}
        return {**kept, "judge": self.net.name, "data": self.data.fingerprint()}

    def features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """The judge's [Q,F]."""
        return self.net(pictures, progress=False)

    def measure(self, model: Model) -> Figures:
        """The row of figures of one model; what was measured before with the same settings is read.

        Returns: see `embed_figures`, `picture_figures`, `variety`, `seconds`; every share or mean as in `bootstrap`.
        """
        stamp = {**self.settings, **model.stamp(self.options.size)}
        digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
        kept = self.out / "measured" / f"{digest}.json"
        if kept.is_file():
            return json.loads(kept.read_text(encoding="utf-8"))
        pictures = self.draw(model, self.asked, digest)
        captions_only = bool(model.settings.get("captions_only"))
        figures = {
            **({} if captions_only else self.embed_figures(model)),
            **self.picture_figures(pictures),
            "diversity": self.variety(model, pictures, digest),
            "seconds": self.seconds(model, captions_only),
        }
        write_text(kept, json.dumps(figures, indent=2))
        return figures

    def draw(self, model: Model, asked: Sequence[Asked], name: str) -> list[np.ndarray]:
        """What a model makes of prompts; pictures are kept in OUT/images/NAME."""
        options = self.options
        return draw_pictures(
            asked,
            model.generate,
            self.out / "images" / name,
            model.stamp(options.size),
            batch_size=options.batch_size,
            progress=options.progress,
        )

    def embed_figures(self, model: Model) -> Figures:
        """cosine of the made z_i to the true one; text: z_i · z_t; top1: as in `emoji.prior_part`."""
        prompts = [a.prompt for a in self.asked]
        size = self.options.batch_size
        made = [
            model.make_embeds(prompts[i : i + size], [a.seed for a in self.asked[i : i + size]])
            for i in range(0, len(prompts), size)
        ]
        z = F.normalize(torch.cat(made).float().cpu(), dim=-1)
        found = ranks(z, self.embeds, [a.label for a in self.asked], self.labels)
        return {
            "cosine": self._mean((z * self.embeds[[a.index for a in self.asked]]).sum(-1)),
            "text": self._mean((z * encode_texts(model, prompts)).sum(-1)),
            "top1": self._mean(found <= 1),
        }

    def picture_figures(self, pictures: Sequence[np.ndarray]) -> Figures:
        """What the pictures show, by the judge.

        subject, style: of all; held_out: the subject in unseen styles; frechet: to all real pictures; precision,
        recall: against the asked ones.
        """
        features = self.features(pictures)
        verdicts = self.judge.verdicts(features, self.asked)
        made = self.judge.whiten(features)
        return {
            "subject": self._mean(verdicts["subject_top5"]),
            "held_out": self._mean(verdicts["subject_top5"][self.held_out]),
            "style": self._mean(verdicts["style_vote"]),
            "frechet": self.everything.estimate(features, self.options.seed).as_dict(),
            "precision": self._mean(within(made, self.true)),
            "recall": self._mean(within(self.true, made)),
        }

    def variety(self, model: Model, pictures: Sequence[np.ndarray], name: str) -> Figures:
        """Mean cosine distance between pictures of one prompt, over the first prompts."""
        count = min(self.options.varied, len(self.asked))
        sets = [pictures[:count]]
        for k in range(1, MORE_SEEDS + 1):
            again = [replace(a, seed=a.seed + k) for a in self.asked[:count]]
            sets.append(self.draw(model, again, f"{name}-{k}"))
        features = [self.judge.whiten(self.features(each)) for each in sets]
        return self._mean(diversity(torch.stack(features, dim=1)))

    def seconds(self, model: Model, captions_only: bool) -> dict[str, float]:
        """Of prior and decoder for one picture alone, its caption's encoding included in both."""
        prompts, seeds = [self.asked[0].prompt], [self.asked[0].seed]
        if captions_only:
            return {"decoder": _time(lambda: model.generate(prompts, seeds))}
        z = model.make_embeds(prompts, seeds)
        return {
            "prior": _time(lambda: model.make_embeds(prompts, seeds)),
            "decoder": _time(lambda: model.decode(z, prompts, seeds)),
        }

    def vary(self, model: Model, manipulator: Manipulator, given: Mapping[str, Any]) -> Figures:
        """How like their sources the variations of held-out pictures are: clip and judge cosines, psnr at `size`."""
        options = self.options
        asked = choose(self.data.records, "style", options.sources, options.seed)
        sources = {(a.prompt, a.seed): self.data.rgb(a.index, options.size) for a in asked}

        def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
            pictures = np.stack([sources[pair] for pair in zip(prompts, seeds, strict=True)])
            return manipulator.vary(pictures, seeds, **given)

        stamp = {**manipulator.settings, **given, "model": manipulator.fingerprint, "size": options.size}
        name = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
        made = draw_pictures(
            asked, generate, self.out / "images" / f"vary-{name}", stamp, progress=options.progress
        )
        source = [sources[a.prompt, a.seed] for a in asked]
        seen = [F.normalize(model.encode_image(np.stack(each)).float(), dim=-1) for each in (made, source)]
        felt = [self.judge.whiten(self.features(each)) for each in (made, source)]
        return {
            "clip": self._mean((seen[0] * seen[1]).sum(-1)),
            "judge": self._mean((felt[0] * felt[1]).sum(-1)),
            "psnr": self._mean([psnr(a, b) for a, b in zip(made, source, strict=True)]),
        }

    def _mean(self, values: Any) -> dict[str, float]:
        return bootstrap(np.asarray(values, np.float64), seed=self.options.seed).as_dict()


_OF_THE_RUN = {"batch_size", "progress"}  # what no figure depends on


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; 100 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 255**2 * 1e-10)))


def machine() -> dict[str, Any]:
    """Where seconds were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _time(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)
