"""How much of what a model draws is a copy of a training picture?

For each generated picture the nearest training picture is found by two measures, both in [−1, 1], 1 = equal:

    pixels     similarity of the ink (white − picture) of coarse pictures a, b: 1 − |a − b|² / (|a|² + |b|²).
               Area-averaged from 64 px (what the decoder draws) to 32, so that the grain of a decoder does not
               count. Relative to the ink and not a plain RMS error, which calls any two thin icons alike because
               most of both is white.
    features   cosine in the judge's whitened feature space (judge.py): finds what was moved or recoloured a
               little, but sees grain and softness as difference.

A copy is a picture nearer than training pictures of *different* subjects are to one another: the threshold is the
QUANTILE of their nearest similarities. Whether it can be trusted is measured by the same comparison of real pictures:
held-out ones, which are no copies (false alarms), training pictures against the rest, and training pictures made
soft or grainy, which are copies (how many are found). A clumsy redrawing of a training picture is no copy by this
measure: how often the nearest is the very picture that was asked for is reported beside it.

Shapes: Q pictures asked about, N real pictures, T of them in training, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.data.splits import SPLITS
from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap, bootstrap_quantile
from unclip.eval.cache import Features, features_of_all
from unclip.eval.choice import Asked, Pictures, choose
from unclip.eval.features import FeatureNet
from unclip.eval.generated import Drawn, draw
from unclip.eval.grids import save_pairs
from unclip.eval.judge import Whitening
from unclip.eval.model import JUDGED_AT, Drawing, Model
from unclip.eval.tables import SPLIT_NAMES, Table, number, percent

# Above the 99 % quantile stand series that differ in a detail (guard and man guard, Norway and Bouvet Island). The
# 99.9 % quantile is that of equal drawings under two names: copies with a little grain stay below it.
QUANTILE = 0.99
REFERENCE = 4000  # training pictures that the threshold is taken from
REAL = 1000  # real pictures of each split that are compared as the generated ones are
KNOWN = 64  # training pictures made soft or grainy
FIXED_SEED = 0  # of the reference: the threshold does not depend on the prompts asked
DRAWN_AT, COARSE = 64, 32  # pixels
GRAIN = 12.0  # standard deviation, of 255
HELD_OUT = "held out"
_CHUNK = 256  # queries at a time


@dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """What is asked; `top`: pairs in the sheet of the most similar."""

    LEAST: ClassVar[dict[str, int]] = {**Drawing.LEAST, "top": 0}

    top: int = 24


@dataclass(frozen=True)
class Measure:
    """A likeness of pictures: `gallery` [N,F] of all real ones, `describe` gives [Q,F] of others."""

    name: str
    gallery: Tensor
    describe: Callable[[Sequence[np.ndarray]], Tensor]


@dataclass(frozen=True)
class Nearest:
    """The most similar training picture of each of Q pictures: similarity [Q], row of the data [Q]."""

    similarity: np.ndarray
    row: np.ndarray


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """1 − |a − b|² / (|a|² + |b|²) of [Q,F] and [T,F] -> [Q,T]; of unit vectors that is the cosine."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return 2 * (a @ b.T) / squares.clamp(min=1e-12)


def ink(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H,W,3] on white, of any size -> float32 [Q, 32·32·3], 0 = white, 1 = black."""
    small = [Image.fromarray(each).resize((DRAWN_AT, DRAWN_AT), Image.Resampling.BOX) for each in pictures]
    dark = 1 - torch.from_numpy(np.stack([np.asarray(each) for each in small])).float() / 255
    step = DRAWN_AT // COARSE
    return dark.unflatten(2, (COARSE, step)).unflatten(1, (COARSE, step)).mean((2, 4)).flatten(1)


def pixel_measure(data: Pictures, cache: Path, progress: bool = True) -> Measure:
    """The measure `pixels`; the coarse real pictures are kept in `cache`."""

    coarse = Features(
        "eval-ink.safetensors", f"{DRAWN_AT} {COARSE}", lambda pictures: (ink(pictures) * 255).round().byte()
    )
    (kept,) = features_of_all(data, [coarse], cache, DRAWN_AT, progress)
    return Measure("pixels", kept.float() / 255, ink)


def feature_measure(data: Pictures, net: FeatureNet, cache: Path, progress: bool = True) -> Measure:
    """The measure `features`, from the features that `unclip eval emoji` keeps in `cache`."""
    (raw,) = features_of_all(data, [net.features], cache, JUDGED_AT, progress)
    whiten = Whitening(raw)
    return Measure("features", whiten(raw), lambda pictures: whiten(net(pictures, progress)))


def nearest(
    measure: Measure,
    queries: Tensor,
    trained: np.ndarray,
    forbidden: Callable[[slice], np.ndarray] | None = None,
) -> Nearest:
    """The most similar of the training pictures, `trained` [T] being their rows, to each of queries [Q,F].

    Args:
        forbidden: for a part of the queries, bool [part,T]: True where a picture may not be found.
    """
    gallery = measure.gallery[torch.from_numpy(trained)]
    best, where = [], []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(queries)))
        alike = similarity(queries[part], gallery)
        if forbidden is not None:
            alike = alike.masked_fill(torch.from_numpy(forbidden(part)), -torch.inf)
        highest = alike.max(1)
        best.append(highest.values)
        where.append(highest.indices)
    return Nearest(torch.cat(best).double().numpy(), trained[torch.cat(where).numpy()])


def nearest_other(measure: Measure, rows: np.ndarray, trained: np.ndarray) -> Nearest:
    """As `nearest`, of real pictures: a picture does not find itself."""
    return nearest(measure, measure.gallery[rows], trained, lambda part: rows[part, None] == trained)


def between_subjects(measure: Measure, data: Pictures, rows: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """How similar the nearest training picture of a *different* subject is to real pictures `rows` [Q] -> [Q]."""
    names: dict[str, int] = {}
    subjects = np.array([names.setdefault(record["subject"], len(names)) for record in data.records])
    own, shown = subjects[rows], subjects[trained]
    found = nearest(measure, measure.gallery[rows], trained, lambda part: own[part, None] == shown)
    return found.similarity[np.isfinite(found.similarity)]


def evaluate_memorisation(
    data: Pictures, model: Model, net: FeatureNet, out: Path, images: Path, cache: Path, options: Options
) -> dict[str, Any]:
    """Draw what is asked (or take it from `images`) and compare it; writes OUT/most-similar.png.

    Returns:
        Plain numbers for JSON: settings, data, and for each measure its `threshold`, `between_subjects` (quantiles),
        `known_copies` (shares found) and `splits`: {split, "held out" or "all": {"generated" | "real": figures}}.
        Every estimate is {"value", "low", "high", "n"}.

    Raises:
        UserError: the data has no training pictures of at least two subjects.
    """
    trained = np.array([i for i, record in enumerate(data.records) if record["split"] == "train"], np.int64)
    if len({data.records[i]["subject"] for i in trained}) < 2:
        raise UserError(
            "memorisation needs training pictures of two subjects or more; give the whole data set"
        )
    drawn = draw(data, model, images, options)
    measures = (
        pixel_measure(data, cache, options.progress),
        feature_measure(data, net, cache, options.progress),
    )
    found = {each.name: nearest(each, each.describe(drawn.pictures), trained) for each in measures}
    counts = {split: sum(record["split"] == split for record in data.records) for split in SPLITS}
    return {
        "settings": {**asdict(options), **model.settings, "model": model.fingerprint, "judge": net.name},
        "data": {"pictures": len(data), "splits": counts, "fingerprint": data.fingerprint()},
        "quantile": QUANTILE,
        "measures": {
            each.name: _figures(each, data, drawn.asked, found[each.name], trained) for each in measures
        },
        "sheet": _most_similar(data, drawn, found["pixels"], out, options.top),
    }


def known_copies(pictures: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Copies as a cascade may draw them, uint8 [256,256,3]: `soft` (enlarged from 64 px), `grainy` (noise there)."""
    rng = np.random.default_rng(FIXED_SEED)
    copies: dict[str, list[np.ndarray]] = {"soft": [], "grainy": []}
    for picture in pictures:
        small = np.asarray(Image.fromarray(picture).resize((DRAWN_AT, DRAWN_AT), Image.Resampling.BOX))
        grainy = (small + rng.normal(0, GRAIN, small.shape)).clip(0, 255).round().astype(np.uint8)
        for name, content in (("soft", small), ("grainy", grainy)):
            enlarged = Image.fromarray(content).resize((JUDGED_AT, JUDGED_AT), Image.Resampling.BICUBIC)
            copies[name].append(np.asarray(enlarged))
    return copies


def _figures(
    measure: Measure, data: Pictures, asked: Sequence[Asked], found: Nearest, trained: np.ndarray
) -> dict[str, Any]:
    reference = _rows(data, "train", REFERENCE)
    others = between_subjects(measure, data, reference, trained)
    threshold = float(np.quantile(others, QUANTILE))
    known = reference[:KNOWN]
    originals = [data.rgb(int(i), JUDGED_AT) for i in known]
    hits = {}
    for name, copies in known_copies(originals).items():
        again = nearest(measure, measure.describe(copies), trained)
        hits[name] = {
            "found": bootstrap(again.similarity > threshold).as_dict(),
            "nearest": bootstrap(again.row == known).as_dict(),
        }
    return {
        "threshold": threshold,
        "between_subjects": {f"{q:g}": float(np.quantile(others, q)) for q in (0.5, 0.95, 0.99, 0.999)},
        "between_subjects_n": len(others),
        "known_copies": hits,
        "splits": _by_split(measure, data, asked, found, trained, threshold),
    }


def _by_split(
    measure: Measure,
    data: Pictures,
    asked: Sequence[Asked],
    found: Nearest,
    trained: np.ndarray,
    threshold: float,
) -> dict[str, dict[str, Any]]:
    """{split, "held out" or "all": {"generated" and "real": figures}}; `real` of all would mix at other shares."""
    where = np.array([a.split for a in asked])
    real = {
        split: nearest_other(measure, _rows(data, split, REAL), trained) for split in dict.fromkeys(where)
    }
    rows = np.array([a.index for a in asked])
    subject = np.array(
        [data.records[i]["subject"] == a.subject for i, a in zip(found.row, asked, strict=True)]
    )
    groups = {split: where == split for split in real} | {HELD_OUT: where != "train", "all": where == where}
    figures: dict[str, dict[str, Any]] = {}
    for name, these in groups.items():
        if not these.any():
            continue
        made = _spread(found.similarity[these], threshold)
        made["same_subject"] = bootstrap(subject[these]).as_dict()
        if name == "train":
            made["asked_picture"] = bootstrap(found.row[these] == rows[these]).as_dict()
        figures[name] = {"generated": made}
        parts = [split for split in real if split == name or (name == HELD_OUT and split != "train")]
        if parts:
            together = np.concatenate([real[split].similarity for split in parts])
            figures[name]["real"] = _spread(together, threshold)
    return figures


def _spread(values: np.ndarray, threshold: float) -> dict[str, Any]:
    return {
        "median": bootstrap_quantile(values, 0.5).as_dict(),
        "q95": bootstrap_quantile(values, 0.95).as_dict(),
        "copies": bootstrap(values > threshold).as_dict(),
    }


def _rows(data: Pictures, split: str, count: int) -> np.ndarray:
    """Up to `count` real pictures of a split, drawn as prompts are (by weight) -> rows [Q]."""
    return np.array([a.index for a in choose(data.records, split, count, FIXED_SEED)], np.int64)


def _most_similar(data: Pictures, drawn: Drawn, found: Nearest, out: Path, top: int) -> dict[str, Any] | None:
    """Write OUT/most-similar.png: the `top` pairs of the greatest similarity in pixels."""
    order = np.argsort(-found.similarity, kind="stable")[:top]
    if not len(order):
        return None
    pairs, cells = [], []
    for i in order.tolist():
        record, value = data.records[found.row[i]], float(found.similarity[i])
        pairs.append(
            {
                "prompt": drawn.asked[i].prompt,
                "split": drawn.asked[i].split,
                "similarity": value,
                "nearest": record["key"],
            }
        )
        twin = Image.fromarray(data.rgb(int(found.row[i]), JUDGED_AT))
        cells.append((f"{value:.4f}  {drawn.asked[i].prompt}", Image.fromarray(drawn.pictures[i]), twin))
    heading = f"The {len(cells)} of {len(drawn.asked)} generated pictures most similar to a training picture (pixels)"
    save_pairs(cells, heading, out / "most-similar.png")
    return {"path": "most-similar.png", "measure": "pixels", "pairs": pairs}


def memorisation_tables(report: Mapping[str, Any]) -> list[Table]:
    """The report as tables, one for each measure."""
    return [_table(name, part, report["quantile"]) for name, part in report["measures"].items()]


def _table(name: str, part: Mapping[str, Any], quantile: float) -> Table:
    rows = []
    for split, by_row in part["splits"].items():
        for row, figures in by_row.items():
            subject, same = figures.get("same_subject"), figures.get("asked_picture")
            cells = (number(figures["median"]), number(figures["q95"]), percent(figures["copies"]))
            extra = tuple("–" if each is None else percent(each) for each in (subject, same))
            shown = SPLIT_NAMES.get(split, split)
            rows.append((shown, row, str(figures["copies"]["n"]), *cells, *extra))
    known = ", ".join(f"{kind} {percent(each['found'])}" for kind, each in part["known_copies"].items())
    return Table(
        f"Nearest training picture by {name}",
        ("split", "pictures", "n", "median", "95 %", "copies", "same subject", "the asked picture"),
        tuple(rows),
        f"Copies: similarity above {part['threshold']:.4f}, the {100 * quantile:g} % quantile of the nearest "
        f"similarity between training pictures of different subjects ({part['between_subjects_n']} compared). A clumsy "
        "redrawing stays below it; how often one is of the asked training picture, the last column says. Real: the "
        "same for real pictures, never with themselves; of the held-out splits these are false alarms. Of training "
        f"pictures made soft or grainy, which are copies, it finds: {known}.",
    )


def read_memorisation(path: Path, model: str) -> dict[str, Any]:
    """Read a report.json of `unclip eval memorisation` on the model with fingerprint `model`.

    Raises:
        UserError: it is missing, no such report, or of another model.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); make it: unclip eval memorisation") from None
    if not isinstance(report, dict) or not {"measures", "settings", "quantile"} <= set(report):
        raise UserError(f"{path} is no report of `unclip eval memorisation`; give its report.json")
    if report["settings"]["model"] != model:
        raise UserError(
            f"{path} is about model {report['settings']['model']}, the card's report about {model}; "
            "run both evaluations on the same model"
        )
    return report


def memorisation_section(report: Mapping[str, Any]) -> str:
    """What the model card says of it, as Markdown."""
    from unclip.eval.tables import to_markdown

    pixels, features = (report["measures"][name] for name in ("pixels", "features"))
    copies = pixels["splits"]["all"]["generated"]["copies"]
    found = [
        " and ".join(
            f"{percent(each['found'])} of {kind} copies" for kind, each in part["known_copies"].items()
        )
        for part in (pixels, features)
    ]
    head = f"""## Copies of training pictures

The set is small and was seen many times, so some copying is to be expected. Of {copies["n"]} generated pictures are
copies of a training picture: {percent(copies)}, by their pixels (on white, averaged to {COARSE} px), which find
{found[0]} of real pictures. The features of {report["settings"]["judge"]} find
{found[1]}. Made by `unclip eval memorisation`, seed {report["settings"]["seed"]}."""
    return "\n\n".join([head, *(to_markdown(each).strip("\n") for each in memorisation_tables(report))])
