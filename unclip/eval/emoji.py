"""The report on an emoji model, for pictures it has seen and for each held-out split.

Three questions, from the front of the cascade to its end:

    retrieval    does CLIP find the right real pictures by a caption?
    prior        how near are the prior's image embeddings z_i to those of the real pictures?
    generated    do the pictures show the asked subject in the asked style, judged by real pictures in the
                 feature space of a network that had no part in making them?

Held-out splits: style (a subject never seen in this style), tone (a role never seen with this skin tone),
attribute (an object never seen in this colour), unseen (a subject never seen at all). `train` counts as seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.data.progress import track
from unclip.data.splits import SPLITS
from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.cache import cached
from unclip.eval.choice import Asked, Pictures, choose, choose_stratified, draw_caption
from unclip.eval.drawing import Generate, draw_pictures
from unclip.eval.features import INPUT_SIZE, FeatureNet
from unclip.eval.frechet import fit_gaussian, frechet_distance
from unclip.eval.grids import Cell, save_grid
from unclip.eval.judge import Judge
from unclip.eval.retrieval import chance, ranks

Report = dict[str, Any]

JUDGED_AT = 256  # pixels of the real pictures in the gallery
EMBED_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Model:
    """A text-to-image model as evaluation sees it; D = width of CLIP's embeddings.

    Attributes:
        encode_image: uint8 [N,H,W,3] -> [N,D]. encode_text: N captions -> [N,D]. Both of unit norm.
        make_embeds: N prompts and N seeds -> the prior's image embeddings [N,D].
        generate: N prompts and N seeds -> N pictures.
        fingerprint: of all weights; clip_fingerprint: of CLIP's.
        settings: steps, guidance and the like, as the report shows them.
    """

    encode_image: Callable[[np.ndarray], Tensor]
    encode_text: Callable[[Sequence[str]], Tensor]
    make_embeds: Callable[[Sequence[str], Sequence[int]], Tensor]
    generate: Generate
    fingerprint: str
    clip_fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)

    def stamp(self, size: int) -> dict[str, Any]:
        """What a picture of `size` pixels depends on besides prompt and seed; see `draw_pictures`."""
        return {**self.settings, "model": self.fingerprint, "size": size}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked, and how much of it.

    Attributes:
        prompts: pictures to draw, over all splits; 0 leaves that part out.
        queries: captions of each split for retrieval; prior_queries: embeddings of each split made by the
        prior.
        size: side in pixels of the pictures drawn.
        grid: pictures of each split in its grid: the first of the seeded list, good or bad.
    """

    prompts: int = 200
    seed: int = 0
    queries: int = 1000
    prior_queries: int = 200
    size: int = 256
    batch_size: int = 8
    grid: int = 24
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("queries", "prior_queries", "size", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("prompts", "seed", "grid"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")


def evaluate(
    data: Pictures, model: Model, judge_net: FeatureNet | None, out: Path, cache: Path, options: Options
) -> Report:
    """Answer all three questions; pictures and grids go to OUT/images and OUT/grids.

    Args:
        data: real pictures of all splits.
        judge_net: the independent network; None only with `options.prompts` = 0.
        cache: folder that keeps features of the real pictures between runs.

    Returns:
        The report as plain numbers, ready for JSON: settings, data, retrieval, prior, generated, frechet,
        failures. Every measured share or mean is {"value", "low", "high", "n"}: its 95 % interval and the
        number of cases.
    """
    embeds = real_embeds(data, model, cache, options.progress)
    counts = {split: sum(record["split"] == split for record in data.records) for split in SPLITS}
    report: Report = {
        "settings": {**asdict(options), **model.settings, "model": model.fingerprint},
        "data": {"pictures": len(data), "splits": counts, "fingerprint": data.fingerprint()},
        "retrieval": retrieval_part(data, model, embeds, options),
        "prior": prior_part(data, model, embeds, options),
    }
    if options.prompts:
        if judge_net is None:
            raise UserError("generated pictures need a judge; expected a feature network, got none")
        report |= generated_part(data, model, judge_net, embeds, out, cache, options)
    return report


def real_embeds(data: Pictures, model: Model, cache: Path, progress: bool = True) -> Tensor:
    """CLIP's embeddings of all real pictures -> [N,D], unit norm; kept in `cache`."""

    def compute() -> Tensor:
        starts = range(0, len(data), EMBED_BATCH)
        parts = [
            model.encode_image(_real(data, range(i, min(i + EMBED_BATCH, len(data))), JUDGED_AT))
            for i in track(starts, "CLIP embeddings", total=len(starts), show=progress)
        ]
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)

    fingerprint = f"{model.clip_fingerprint} {data.fingerprint()} {JUDGED_AT}"
    return cached(cache / "eval-clip.safetensors", fingerprint, compute)


def retrieval_part(data: Pictures, model: Model, embeds: Tensor, options: Options) -> Report:
    """Text-to-image retrieval on real pictures, {split: {"style" | "no_style": {"split" | "all": figures}}}.

    Captions that name the style must find the same concept in that style, the others the same concept in any
    style.
    Two galleries: the split's own pictures (a sample of at most `options.queries`), and all pictures, which
    is the harder task and the same for every split.
    """
    part: Report = {}
    for split in _present(data):
        asked = choose(data.records, split, options.queries, options.seed)
        rows = [a.index for a in asked]
        part[split] = {}
        for kind, naming_style in (("style", True), ("no_style", False)):
            captions = [draw_caption(data.records[i], options.seed, naming_style) for i in rows]
            labels = [_label(data.records[i], naming_style) for i in rows]
            # Pictures share captions that name no style: each such question is asked once.
            once = dict.fromkeys(zip(captions, labels, strict=True))
            texts, wanted = [text for text, _ in once], [label for _, label in once]
            queries = _encode_texts(model, texts)
            part[split][kind] = {
                "split": _retrieval(queries, embeds[rows], wanted, labels, options.seed),
                "all": _retrieval(
                    queries, embeds, wanted, [_label(r, naming_style) for r in data.records], options.seed
                ),
            }
    return part


def prior_part(data: Pictures, model: Model, embeds: Tensor, options: Options) -> Report:
    """How near the made z_i comes to the true one, and what it finds among the embeddings of all real
    pictures.

    Per split: `cosine` of made and true z_i; for comparison `text_cosine` of the caption's z_t and
    `other_cosine` of another picture's z_i, drawn at random; `top1`, `top5`: shares of made z_i among whose
    nearest real z_i is one of the same concept and style.
    """
    part: Report = {}
    everything = [_label(record, True) for record in data.records]
    for split in _present(data):
        asked = choose(data.records, split, options.prior_queries, options.seed)
        made = []
        starts = range(0, len(asked), EMBED_BATCH)
        for i in track(starts, f"prior, {split}", total=len(starts), show=options.progress):
            batch = asked[i : i + EMBED_BATCH]
            made.append(model.make_embeds([a.prompt for a in batch], [a.seed for a in batch]))
        z = F.normalize(torch.cat(made).float().cpu(), dim=-1)
        true = embeds[[a.index for a in asked]]
        text = _encode_texts(model, [a.prompt for a in asked])
        other = embeds[np.random.default_rng(options.seed).integers(len(embeds), size=len(asked))]
        figures = {
            name: bootstrap((vectors * true).sum(-1).numpy()).as_dict()
            for name, vectors in (("cosine", z), ("text_cosine", text), ("other_cosine", other))
        }
        part[split] = figures | _retrieval(z, embeds, [a.label for a in asked], everything, options.seed)
    return part


def generated_part(
    data: Pictures, model: Model, net: FeatureNet, embeds: Tensor, out: Path, cache: Path, options: Options
) -> Report:
    """Draw and judge; see `verdict_rows` for what is compared with what."""
    chosen = choose_stratified(data.records, options.prompts, options.seed)
    asked = [a for group in chosen.values() for a in group]
    pictures = draw_pictures(
        asked,
        model.generate,
        out / "images",
        model.stamp(options.size),
        batch_size=options.batch_size,
        progress=options.progress,
    )
    gallery = real_features(data, net, cache, options.progress)
    made = net(pictures, len(asked), progress=options.progress)
    judge = Judge(gallery, data.records)
    rows = [a.index for a in asked]
    true = net(_each_real(data, rows, options.size), len(rows), progress=options.progress)
    found = closest_seen(data, model, embeds, asked)
    verdicts = verdict_rows(judge, asked, made, true, gallery[found])
    again = judge.drawn_again(rows)
    counted = {"real": again, "generated_left_out": again}
    near = judge.nearest(made)
    return {
        "generated": _by_split(verdicts, counted, asked, options.seed),
        "chance": {"subject": chance([a.subject for a in asked], judge.subjects)},
        "frechet": _frechet(net, made, true, gallery),
        "failures": _failures(data, asked, near, verdicts["generated"]),
        "grids": _grids(data, asked, pictures, near, out, options),
        "judge": net.name,
    }


def verdict_rows(
    judge: Judge, asked: Sequence[Asked], made: Tensor, true: Tensor, found: Tensor
) -> dict[str, dict[str, np.ndarray]]:
    """Verdicts on what was made and on what it is compared with, all features [Q,F] -> {row: {verdict: bool
    [Q]}}.

    real                 the asked real picture itself, taken out of the gallery: what the judge can tell at
                         best
    generated_left_out   the generated picture by the same gallery, so comparable with `real`
    generated            the generated picture by the whole gallery, the asked picture being there to be found
    lookup               the training picture whose CLIP embedding is nearest to the caption: what a search
                         would give

    Without the asked picture, a subject that no other picture shows cannot be found: the report counts the first
    two rows over the other prompts only.
    """
    rows = [a.index for a in asked]
    return {
        "real": judge.verdicts(true, asked, without=rows),
        "generated_left_out": judge.verdicts(made, asked, without=rows),
        "generated": judge.verdicts(made, asked),
        "lookup": judge.verdicts(found, asked),
    }


def real_features(data: Pictures, net: FeatureNet, cache: Path, progress: bool = True) -> Tensor:
    """The judge's raw features of all real pictures -> [N,F]; kept in `cache`."""
    return cached(
        cache / f"eval-{net.name.lower()}.safetensors",
        f"{net.name} {INPUT_SIZE} {data.fingerprint()} {JUDGED_AT}",
        lambda: net(_each_real(data, range(len(data)), JUDGED_AT), len(data), progress=progress),
    )


def closest_seen(data: Pictures, model: Model, embeds: Tensor, asked: Sequence[Asked]) -> list[int]:
    """The training picture that CLIP finds for each prompt -> rows of the data."""
    seen = [i for i, record in enumerate(data.records) if record["split"] == "train"]
    similarity = _encode_texts(model, [a.prompt for a in asked]) @ embeds[seen].T
    return [seen[i] for i in similarity.argmax(1).tolist()]


def _retrieval(
    queries: Tensor, gallery: Tensor, wanted: Sequence[Any], labels: Sequence[Any], seed: int
) -> dict[str, Any]:
    found = ranks(queries, gallery, wanted, labels)
    return {
        "top1": bootstrap(found <= 1, seed=seed).as_dict(),
        "top5": bootstrap(found <= 5, seed=seed).as_dict(),
        "gallery": len(gallery),
        "chance_top1": chance(wanted, labels),
    }


def _by_split(
    verdicts: dict[str, dict[str, np.ndarray]],
    counted: dict[str, np.ndarray],
    asked: Sequence[Asked],
    seed: int,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{split or "all": {row: {verdict: estimate}}}; a row of which nothing in a split is counted is left out."""
    where = np.array([a.split for a in asked])
    chosen = {split: where == split for split in dict.fromkeys(where.tolist())} | {"all": where == where}
    found: dict[str, Any] = {}
    for split, these in chosen.items():
        found[split] = {}
        for row, verdict in verdicts.items():
            cases = these & counted.get(row, these)
            if cases.any():
                estimates = {name: bootstrap(hits[cases], seed=seed) for name, hits in verdict.items()}
                found[split][row] = {name: estimate.as_dict() for name, estimate in estimates.items()}
    return found


def _frechet(net: FeatureNet, made: Tensor, true: Tensor, gallery: Tensor) -> dict[str, Any]:
    """Distances to all real pictures: of the generated ones, and of as many asked real ones (the floor)."""
    if len(made) < 2:
        return {}
    everything = fit_gaussian(gallery)
    return {
        "name": f"FD-{net.name}",
        "generated": frechet_distance(fit_gaussian(made), everything),
        "real": frechet_distance(fit_gaussian(true), everything),
        "n": len(made),
        "gallery": len(gallery),
    }


def _failures(
    data: Pictures, asked: Sequence[Asked], near: np.ndarray, verdict: dict[str, np.ndarray], count: int = 20
) -> list[dict[str, str]]:
    """The first prompts, in turn over the splits, whose subject is not among the five nearest pictures."""
    order = dict.fromkeys(SPLITS, 0)
    missed = []
    for i, a in enumerate(asked):
        order[a.split] += 1
        if not verdict["subject_top5"][i]:
            record = data.records[near[i, 0]]
            looks_like = f"{record['concept']} ({record['style']})"
            missed.append((order[a.split], {"split": a.split, "prompt": a.prompt, "looks_like": looks_like}))
    return [failure for _, failure in sorted(missed, key=lambda pair: pair[0])[:count]]


def _grids(
    data: Pictures,
    asked: Sequence[Asked],
    pictures: list[np.ndarray],
    near: np.ndarray,
    out: Path,
    options: Options,
) -> dict[str, str]:
    """Write OUT/grids/SPLIT.png: generated, nearest real and asked real pictures -> {split: path in OUT}."""
    paths = {}
    for split in dict.fromkeys(a.split for a in asked):
        rows = [i for i, a in enumerate(asked) if a.split == split][: options.grid]
        cells = [
            Cell(
                caption=asked[i].prompt,
                pictures=(
                    Image.fromarray(pictures[i]),
                    Image.fromarray(data.rgb(int(near[i, 0]), JUDGED_AT)),
                    Image.fromarray(data.rgb(asked[i].index, JUDGED_AT)),
                ),
                right=data.records[near[i, 0]]["subject"] == asked[i].subject,
            )
            for i in rows
        ]
        if cells:
            paths[split] = f"grids/{split}.png"
            save_grid(cells, out / paths[split])
    return paths


def _present(data: Pictures) -> list[str]:
    there = {record["split"] for record in data.records}
    return [split for split in SPLITS if split in there]


def _label(record: dict[str, Any], naming_style: bool) -> tuple[str, ...]:
    return (record["concept"], record["style"]) if naming_style else (record["concept"],)


def _encode_texts(model: Model, texts: Sequence[str]) -> Tensor:
    parts = [model.encode_text(texts[i : i + EMBED_BATCH]) for i in range(0, len(texts), EMBED_BATCH)]
    return F.normalize(torch.cat(parts).float().cpu(), dim=-1)


def _real(data: Pictures, rows: Sequence[int], size: int) -> np.ndarray:
    """uint8 [N,size,size,3]."""
    return np.stack([data.rgb(i, size) for i in rows])


def _each_real(data: Pictures, rows: Sequence[int], size: int) -> Iterator[np.ndarray]:
    return (data.rgb(i, size) for i in rows)
