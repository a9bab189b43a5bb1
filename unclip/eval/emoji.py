"""The report on an emoji model, for pictures it has seen and for each held-out split.

Four questions, from the front of the cascade to its end:

    retrieval    does CLIP find the right real pictures by a caption?
    prior        how near are the prior's image embeddings z_i to those of the real pictures?
    generated    do the pictures show the asked subject in the asked style, judged by real pictures in the
                 feature space of a network that had no part in making them?
    relations    are two things drawn where they were asked for?

Held-out splits: style (a subject never seen in this style), tone (a role never seen with this skin tone),
attribute (an object never seen in this colour), unseen (a subject never seen at all). `train` counts as seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.data.progress import track
from unclip.data.splits import SPLITS
from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.cache import features_of_all
from unclip.eval.choice import Pictures, choose, draw_caption
from unclip.eval.features import FeatureNet
from unclip.eval.generated import generated_part
from unclip.eval.model import EMBED_BATCH, JUDGED_AT, Model, Options, clip_features, encode_texts
from unclip.eval.relations import RelationTest, relation_part
from unclip.eval.retrieval import chance, ranks

Report = dict[str, Any]


def evaluate(
    data: Pictures,
    model: Model,
    judges: Sequence[FeatureNet],
    out: Path,
    cache: Path,
    options: Options,
    relations: RelationTest | None = None,
) -> Report:
    """Answer all four questions; pictures and grids go to OUT/images and OUT/grids.

    Args:
        data: real pictures of all splits.
        relations: scenes for the last question; None leaves it out.
        judges: independent networks; failures and grids are by the first. None are needed with `options.prompts` = 0.
        cache: folder that keeps features of the real pictures between runs.

    Returns:
        The report as plain numbers, ready for JSON: settings, data, retrieval, prior, what `generated_part` gives, and
        relations.
        Every measured share or mean is {"value", "low", "high", "n"}: its 95 % interval and the
        number of cases.
    """
    judges = judges if options.prompts else []
    kept = [clip_features(model), *(judge.features for judge in judges)]
    embeds, *galleries = features_of_all(data, kept, cache, JUDGED_AT, options.progress)
    counts = {split: sum(record["split"] == split for record in data.records) for split in SPLITS}
    report: Report = {
        "settings": {**asdict(options), **model.settings, "model": model.fingerprint},
        "data": {"pictures": len(data), "splits": counts, "fingerprint": data.fingerprint()},
        "retrieval": retrieval_part(data, model, embeds, options),
        "prior": prior_part(data, model, embeds, options),
    }
    if options.prompts:
        if not judges:
            raise UserError("generated pictures need a judge; expected a feature network, got none")
        report |= generated_part(data, model, list(zip(judges, galleries, strict=True)), embeds, out, options)
    if relations is not None:
        report["relations"] = relation_part(relations, model, out, options)
    return report


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
            queries = encode_texts(model, texts)
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
        text = encode_texts(model, [a.prompt for a in asked])
        other = embeds[np.random.default_rng(options.seed).integers(len(embeds), size=len(asked))]
        figures = {
            name: bootstrap((vectors * true).sum(-1).numpy()).as_dict()
            for name, vectors in (("cosine", z), ("text_cosine", text), ("other_cosine", other))
        }
        part[split] = figures | _retrieval(z, embeds, [a.label for a in asked], everything, options.seed)
    return part


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


def _present(data: Pictures) -> list[str]:
    there = {record["split"] for record in data.records}
    return [split for split in SPLITS if split in there]


def _label(record: dict[str, Any], naming_style: bool) -> tuple[str, ...]:
    return (record["concept"], record["style"]) if naming_style else (record["concept"],)
