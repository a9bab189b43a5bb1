"""The third question of the report: do the pictures show what was asked?

Several independent networks judge by real pictures, pixels tell colour and skin tone, and the pictures are compared
with real ones as a set. Beside each figure of the generated pictures stands that of the real ones that were asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.data.splits import SPLITS
from unclip.eval.attributes import SkinTones, asked_colour, asked_tone, colour_of
from unclip.eval.bootstrap import bootstrap
from unclip.eval.choice import Asked, Pictures, choose, choose_stratified
from unclip.eval.distribution import NEIGHBOUR, cmmd, diversity, within
from unclip.eval.drawing import draw_pictures
from unclip.eval.features import FeatureNet
from unclip.eval.frechet import fit_gaussian, frechet_distance
from unclip.eval.grids import Cell, save_grid
from unclip.eval.judge import Judge, Whitening
from unclip.eval.model import JUDGED_AT, Drawing, Model, Options, encode_texts
from unclip.eval.retrieval import chance

Figures = dict[str, Any]
Groups = dict[str, np.ndarray]  # {split or "all": bool [Q]}

MORE_SEEDS = 3  # of the prompts whose variety is measured


@dataclass(frozen=True)
class Drawn:
    """Q prompts, what was drawn for each, and the real picture that was asked for: uint8 [S,S,3]."""

    asked: list[Asked]
    pictures: list[np.ndarray]
    true: list[np.ndarray]

    def groups(self) -> Groups:
        """Which prompts belong to each split, and to all."""
        where = np.array([a.split for a in self.asked])
        return {split: where == split for split in dict.fromkeys(where.tolist())} | {"all": where == where}


@dataclass(frozen=True)
class Floor:
    """What the figures of a set are compared with: further real pictures of the asked ones' splits, drawn like these.

    A split that has not as many left is out of both sides, so that they differ in nothing but chance.

    Attributes:
        asked: which of the prompts count. further: as many rows of the data.
    """

    asked: list[int]
    further: list[int]

    @classmethod
    def of(cls, data: Pictures, drawn: Drawn, seed: int) -> Floor:
        asked: list[int] = []
        further: list[int] = []
        for split in dict.fromkeys(a.split for a in drawn.asked):
            these = [i for i, a in enumerate(drawn.asked) if a.split == split]
            # The seeded order of a split begins with those that were asked.
            rows = [a.index for a in choose(data.records, split, 2 * len(these), seed)[len(these) :]]
            if len(rows) == len(these):
                asked += these
                further += rows
        return cls(asked, further)


def generated_part(
    data: Pictures,
    model: Model,
    nets: Sequence[tuple[FeatureNet, Tensor]],
    embeds: Tensor,
    out: Path,
    options: Options,
) -> Figures:
    """Draw and judge.

    Args:
        nets: the judges, each with its features of all real pictures [N,F].
        embeds: CLIP's of all real pictures [N,D].

    Returns:
        generated: {judge: see `judged`}; pixels: {"colour" | "tone": {split: {row: share}}}; cmmd; diversity;
        failures and grids, by the first judge.
    """
    drawn = draw(data, model, out / "images", options)
    found = closest_seen(data, model, embeds, drawn.asked)
    floor = Floor.of(data, drawn, options.seed)
    from_true = draw_from_true(model, drawn.asked, embeds, out / "images-true", options)
    figures: Figures = {"generated": {}}
    for net, gallery in nets:
        made, decoded, true = (
            net(each, options.progress) for each in (drawn.pictures, from_true, drawn.true)
        )
        judge = Judge(gallery, data.records)
        verdicts = verdict_rows(judge, drawn.asked, made, decoded, true, gallery[found])
        figures["generated"][net.name] = judged(
            judge, drawn, verdicts, made, true, gallery[found], gallery, floor, options.seed
        )
        if net is nets[0][0]:
            near = judge.nearest(made)
            figures["failures"] = _failures(data, drawn.asked, near, verdicts["generated"])
            figures["grids"] = _grids(data, drawn, near, out, options)
            figures["diversity"] = diversity_part(model, net, judge.whiten, drawn, out, options)
    figures["pixels"] = pixel_part(data, drawn, options)
    figures["cmmd"] = cmmd_part(model, drawn, floor, embeds, options)
    return figures


def draw(data: Pictures, model: Model, folder: Path, options: Drawing) -> Drawn:
    """The pictures of the seeded prompts, stratified over the splits; those in `folder` already are kept."""
    chosen = choose_stratified(data.records, options.prompts, options.seed)
    asked = [a for group in chosen.values() for a in group]
    return Drawn(
        asked, _draw(asked, model, folder, options), [data.rgb(a.index, options.size) for a in asked]
    )


def draw_from_true(
    model: Model, asked: Sequence[Asked], embeds: Tensor, folder: Path, options: Drawing
) -> list[np.ndarray]:
    """The same prompts and seeds drawn from the asked pictures' own embeddings: what is lost behind the prior."""
    of_prompt = {(a.prompt, a.seed): embeds[a.index] for a in asked}

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        z = torch.stack([of_prompt[pair] for pair in zip(prompts, seeds, strict=True)])
        return model.decode(z, prompts, seeds)

    # Pictures that are there already are of these embeddings, or drawn anew.
    digest = hashlib.sha256(torch.stack([embeds[a.index] for a in asked]).numpy().tobytes()).hexdigest()
    drawing = replace(model, generate=generate, settings={**model.settings, "image_embeds": digest})
    return _draw(asked, drawing, folder, options)


def verdict_rows(
    judge: Judge, asked: Sequence[Asked], made: Tensor, decoded: Tensor, true: Tensor, found: Tensor
) -> dict[str, dict[str, np.ndarray]]:
    """Verdicts on what was made and on what it is compared with, all features [Q,F] -> {row: {verdict: bool
    [Q]}}.

    real                 the asked real picture itself, taken out of the gallery: what the judge can tell at
                         best
    generated_left_out   the generated picture by the same gallery, so comparable with `real`
    generated            the generated picture by the whole gallery, the asked picture being there to be found
    decoded              the same prompt drawn from the asked picture's own embedding, by the whole gallery: what a
                         perfect prior would give
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
        "decoded": judge.verdicts(decoded, asked),
        "lookup": judge.verdicts(found, asked),
    }


def judged(
    judge: Judge,
    drawn: Drawn,
    verdicts: dict[str, dict[str, np.ndarray]],
    made: Tensor,
    true: Tensor,
    found: Tensor,
    gallery: Tensor,
    floor: Floor,
    seed: int,
) -> Figures:
    """What one network says, of features [Q,F] of made, true and looked-up pictures and [G,F] of the gallery.

    Returns:
        verdicts: {split: {row: {verdict: share}}}; chance: of the subject; frechet: distances to all real pictures of
        the generated ones, of as many asked real ones (the floor) and of those that a search finds; precision and
        recall of the generated pictures against the asked ones, and of as many further real ones (see `Floor`).
    """
    again = judge.drawn_again([a.index for a in drawn.asked])
    figures: Figures = {
        "verdicts": _by_split(verdicts, {"real": again, "generated_left_out": again}, drawn.groups(), seed),
        "chance": chance([a.subject for a in drawn.asked], judge.subjects),
    }
    if len(made) > NEIGHBOUR:
        everything = fit_gaussian(gallery)
        figures["frechet"] = {
            "generated": frechet_distance(fit_gaussian(made), everything),
            "real": frechet_distance(fit_gaussian(true), everything),
            "lookup": frechet_distance(fit_gaussian(found), everything),
            "n": len(made),
            "gallery": len(gallery),
        }
    if len(floor.asked) > NEIGHBOUR:
        asked = judge.whiten(true[floor.asked])
        rows = {"generated": judge.whiten(made[floor.asked]), "real": judge.gallery[floor.further]}
        figures["precision"] = {
            row: bootstrap(within(each, asked), seed=seed).as_dict() for row, each in rows.items()
        }
        figures["recall"] = {
            row: bootstrap(within(asked, each), seed=seed).as_dict() for row, each in rows.items()
        }
    return figures


def pixel_part(data: Pictures, drawn: Drawn, options: Options) -> Figures:
    """Shares of pictures with the asked colour and skin tone, of those prompts that ask for one.

    {"colour" | "tone": {split: {"generated" | "real": share}}}; what no prompt asks for is left out.
    """
    records = [data.records[a.index] for a in drawn.asked]
    part: Figures = {}
    colours = [asked_colour(record) for record in records]
    tones = [asked_tone(record) for record in records]
    if any(colours):
        called = {"generated": drawn.pictures, "real": drawn.true}
        named = {row: [colour_of(picture) for picture in pictures] for row, pictures in called.items()}
        part["colour"] = _shares(named, colours, drawn.groups(), options.seed)
    if any(tones):
        skin = SkinTones.measure(data, progress=options.progress)
        named = {
            row: [skin.tone_of(picture, a.style) for picture, a in zip(pictures, drawn.asked, strict=True)]
            for row, pictures in (("generated", drawn.pictures), ("real", drawn.true))
        }
        part["tone"] = _shares(named, tones, drawn.groups(), options.seed)
    return part


def cmmd_part(model: Model, drawn: Drawn, floor: Floor, embeds: Tensor, options: Options) -> Figures:
    """CMMD to the asked real pictures, of the generated ones and of further real ones; {} for fewer than two."""
    if len(floor.asked) < 2:
        return {}
    pictures = [drawn.pictures[i] for i in floor.asked]
    size = options.batch_size
    batches = [np.stack(pictures[i : i + size]) for i in range(0, len(pictures), size)]
    made = F.normalize(torch.cat([model.encode_image(batch) for batch in batches]).float().cpu(), dim=-1)
    asked = embeds[[drawn.asked[i].index for i in floor.asked]]
    further = embeds[floor.further]
    return {"generated": cmmd(made, asked), "real": cmmd(further, asked), "n": len(made)}


def diversity_part(
    model: Model,
    net: FeatureNet,
    whiten: Whitening,
    drawn: Drawn,
    out: Path,
    options: Options,
) -> Figures:
    """How unlike the pictures of one prompt are (1 + MORE_SEEDS seeds each), beside those of different prompts.

    The prompts are the first `options.varied` of the seen ones; {} if that is none.
    """
    first = [i for i, a in enumerate(drawn.asked) if a.split == "train"][: options.varied]
    if not first:
        return {}
    sets = [[drawn.pictures[i] for i in first]]
    for k in range(1, MORE_SEEDS + 1):
        again = [replace(drawn.asked[i], seed=drawn.asked[i].seed + k) for i in first]
        sets.append(_draw(again, model, out / f"images-{k}", options))
    features = [whiten(net(pictures, options.progress)) for pictures in sets]
    by_prompt = torch.stack(features, dim=1)  # [P, S, F]
    figures = {"within": bootstrap(diversity(by_prompt), seed=options.seed).as_dict(), "seeds": len(sets)}
    if len(first) > 1:
        # Each seed's pictures of all prompts: the distance between different prompts.
        between = diversity(by_prompt.transpose(0, 1))
        figures["between"] = bootstrap(between, seed=options.seed).as_dict()
    return figures


def closest_seen(data: Pictures, model: Model, embeds: Tensor, asked: Sequence[Asked]) -> list[int]:
    """The training picture that CLIP finds for each prompt -> rows of the data."""
    seen = [i for i, record in enumerate(data.records) if record["split"] == "train"]
    similarity = encode_texts(model, [a.prompt for a in asked]) @ embeds[seen].T
    return [seen[i] for i in similarity.argmax(1).tolist()]


def _by_split(
    verdicts: Mapping[str, Mapping[str, np.ndarray]],
    counted: Mapping[str, np.ndarray],
    groups: Groups,
    seed: int,
) -> Figures:
    """{split or "all": {row: {verdict: estimate}}}; a row of which nothing in a split is counted is left out."""
    found: Figures = {}
    for split, these in groups.items():
        found[split] = {}
        for row, verdict in verdicts.items():
            cases = these & counted.get(row, these)
            if cases.any():
                estimates = {name: bootstrap(hits[cases], seed=seed) for name, hits in verdict.items()}
                found[split][row] = {name: estimate.as_dict() for name, estimate in estimates.items()}
    return found


def _shares(
    named: Mapping[str, Sequence[str | None]], asked: Sequence[str | None], groups: Groups, seed: int
) -> Figures:
    """{split: {row: share of pictures called what was asked}}, of those that anything was asked of."""
    wanted = np.array([name is not None for name in asked])
    found: Figures = {}
    for split, these in groups.items():
        cases = np.flatnonzero(these & wanted).tolist()
        if cases:
            found[split] = {
                row: bootstrap([float(names[i] == asked[i]) for i in cases], seed=seed).as_dict()
                for row, names in named.items()
            }
    return found


def _draw(asked: Sequence[Asked], model: Model, folder: Path, options: Drawing) -> list[np.ndarray]:
    return draw_pictures(
        asked,
        model.generate,
        folder,
        model.stamp(options.size),
        batch_size=options.batch_size,
        progress=options.progress,
    )


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


def _grids(data: Pictures, drawn: Drawn, near: np.ndarray, out: Path, options: Options) -> dict[str, str]:
    """Write OUT/grids/SPLIT.png: generated, nearest real and asked real pictures -> {split: path in OUT}."""
    paths, asked = {}, drawn.asked
    for split in dict.fromkeys(a.split for a in asked):
        rows = [i for i, a in enumerate(asked) if a.split == split][: options.grid]
        cells = [
            Cell(
                caption=asked[i].prompt,
                pictures=(
                    Image.fromarray(drawn.pictures[i]),
                    Image.fromarray(data.rgb(int(near[i, 0]), JUDGED_AT)),
                    Image.fromarray(drawn.true[i]),
                ),
                right=data.records[near[i, 0]]["subject"] == asked[i].subject,
            )
            for i in rows
        ]
        if cells:
            paths[split] = f"grids/{split}.png"
            save_grid(cells, out / paths[split])
    return paths
