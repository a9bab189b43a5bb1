"""Manipulations of real pictures, measured: text diffs (unCLIP §3.3) and the round trip of inversion (§3).

Diffs are made in every way, along the kinds of change of changes.py. The theta 0, with which nothing changes, and real
pictures of what was to be reached say how much each share means.

Shapes: Q cases, T angles' shares theta.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from unclip.errors import UserError
from unclip.eval.bootstrap import bootstrap
from unclip.eval.cache import features_of_all
from unclip.eval.changes import Case, Changes, Hits, Kind
from unclip.eval.choice import Asked, Pictures, choose
from unclip.eval.claims import machine, psnr
from unclip.eval.drawing import draw_pictures
from unclip.eval.features import FeatureNet
from unclip.eval.grids import save_rows
from unclip.eval.judge import Judge
from unclip.eval.model import JUDGED_AT, Drawing, Manipulator
from unclip.files import write_text

Figures = dict[str, Any]

THETAS = (0.0, 0.2, 0.3, 0.4, 0.5)
VIAS, NOISES = ("prior", "text", "redraw"), ("inverted", "slerp", "fresh")
# Steps of the decoder -> how often x_T is corrected at each.
ROUND_TRIPS = {10: (1, 2, 3), 25: (1, 2, 3), 50: (1, 2, 3), 100: (1, 2), 250: (1,)}


@dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """How much is measured; there are no prompts.

    Attributes:
        pictures: to change, dealt evenly to the kinds of change.
        thetas: how far the diffs go. vias, noises: in which ways.
        round_trip: pictures that are inverted and decoded again.
        grid: pictures of each kind in its grid: the first of the seeded list, good or bad.
    """

    LEAST: ClassVar[dict[str, int]] = {
        **Drawing.LEAST, "prompts": 0, "pictures": 3, "round_trip": 0, "grid": 0,
    }  # fmt: skip

    prompts: int = 0
    size: int = 64
    pictures: int = 120
    round_trip: int = 24
    grid: int = 8
    thetas: tuple[float, ...] = THETAS
    vias: tuple[str, ...] = VIAS
    noises: tuple[str, ...] = NOISES

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [each for each in self.thetas if not 0 <= each <= 0.5]:
            raise UserError(f"theta must lie between 0 and 0.5, got {wrong[0]}")
        for name, known in (("vias", VIAS), ("noises", NOISES)):
            if wrong_names := set(getattr(self, name)) - set(known):
                raise UserError(f"{name}: choose of {', '.join(known)}, got {wrong_names.pop()}")
        # The picture itself is what all others are compared with.
        object.__setattr__(self, "thetas", tuple(sorted({0.0, *self.thetas})))


def measure_manipulations(
    data: Pictures,
    manipulator: Manipulator,
    net: FeatureNet,
    out: Path,
    cache: Path,
    options: Options,
    tell: Callable[[str], object] = lambda line: None,
) -> Figures:
    """Make and judge all; OUT/manipulations.json is written after each kind, grids are OUT/KIND.webp.

    Returns:
        {"settings", "machine", "kinds": {kind: see `measure_kind`}, "round_trip": see `round_trips`}
    """
    (gallery,) = features_of_all(data, [net.features], cache, JUDGED_AT, options.progress)
    judge = Judge(gallery, data.records)
    report: Figures = {
        "settings": {
            **asdict(options),
            **{name: list(getattr(options, name)) for name in ("thetas", "vias", "noises")},
            **manipulator.settings,
            "model": manipulator.fingerprint,
            "judge": net.name,
            "data": data.fingerprint(),
        },
        "machine": machine(),
        "kinds": {},
    }
    for kind in Changes(data, judge, options).kinds(options.pictures // 3):
        report["kinds"][kind.name] = measure_kind(kind, data, manipulator, net, out, options, tell)
        write_text(out / "manipulations.json", json.dumps(report, indent=2))
    if options.round_trip:
        report["round_trip"] = round_trips(data, manipulator, net, judge, out, options, tell)
        write_text(out / "manipulations.json", json.dumps(report, indent=2))
    return report


def measure_kind(
    kind: Kind,
    data: Pictures,
    manipulator: Manipulator,
    net: FeatureNet,
    out: Path,
    options: Options,
    tell: Callable[[str], object] = lambda line: None,
) -> Figures:
    """All ways to make one kind of change, and the best of them in the grid OUT/KIND.webp.

    Returns: {"n", "splits", "rows": [{"via", "noise", "theta", and shares}], "best": see `best_of`, "true": shares of
    the real targets}. The shares are `reached`, `kept`, both at once (`both`), and what else the kind judges.
    """
    rows: list[Figures] = []
    strips = {}
    for noise, via in product(options.noises, options.vias):
        tell(f"{kind.name}: via {via}, {noise} x_T")
        made = strips[via, noise] = draw_diffs(kind, data, manipulator, out, options, via, noise)  # [Q][T]
        for t, theta in enumerate(options.thetas):
            pictures = [strip[t] for strip in made]
            hits = kind.judge(kind.cases, np.stack(pictures), net(pictures, progress=False), None)
            rows.append({"via": via, "noise": noise, "theta": theta, **_shares(hits, options.seed)})
    figures: Figures = {"n": len(kind.cases), "splits": Counter(case.source.split for case in kind.cases)}
    figures["rows"] = rows
    if best := best_of(rows):
        figures["best"] = best
        _save_grid(kind, strips[best["via"], best["noise"]], data, out / f"{kind.name}.webp", options)
    true = [case for case in kind.cases if case.true is not None]
    if true:
        targets = [int(case.true) for case in true if case.true is not None]
        pictures = [data.rgb(i, options.size) for i in targets]
        hits = kind.judge(true, np.stack(pictures), net(pictures, progress=False), targets)
        figures["true"] = _shares(hits, options.seed)
    return figures


def draw_diffs(
    kind: Kind,
    data: Pictures,
    manipulator: Manipulator,
    out: Path,
    options: Options,
    via: str,
    noise: str,
) -> list[list[np.ndarray]]:
    """Each case at every theta -> pictures [Q][T]; kept as strips in OUT/images/KIND-VIA-NOISE."""
    asked = [_asked(case) for case in kind.cases]
    cases = {(a.prompt, a.seed): case for a, case in zip(asked, kind.cases, strict=True)}
    given = {"theta": list(options.thetas), "via": via, "noise": noise}

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Image.Image]:
        for pair in zip(prompts, seeds, strict=True):
            case = cases[pair]
            picture = data.rgb(case.source.index, JUDGED_AT)[None]
            before = (
                None if via == "redraw" else case.before
            )  # it begins with the picture, not with what is said of it
            yield _strip(manipulator.diff(picture, [before], [case.after], [pair[1]], **given))

    stamp = {**manipulator.settings, **given, "model": manipulator.fingerprint, "size": options.size}
    strips = draw_pictures(
        asked,
        lambda prompts, seeds: list(generate(prompts, seeds)),
        out / "images" / f"{kind.name}-{via}-{noise}",
        stamp,
        batch_size=1,
        progress=options.progress,
    )
    return [np.split(strip, len(options.thetas), axis=1) for strip in strips]


def best_of(rows: Sequence[Figures]) -> Figures:
    """The way {"via", "noise", "theta"} with theta > 0 that most often both reached and kept; {} if there is none."""
    changed = [row for row in rows if row["theta"] > 0]
    if not changed:
        return {}
    best = max(changed, key=lambda row: row["both"]["value"])
    return {name: best[name] for name in ("via", "noise", "theta")}


def round_trips(
    data: Pictures,
    manipulator: Manipulator,
    net: FeatureNet,
    judge: Judge,
    out: Path,
    options: Options,
    tell: Callable[[str], object] = lambda line: None,
) -> list[Figures]:
    """decode(invert(x)) beside x, held-out real pictures, with more steps and corrections; last with fresh x_T.

    [{"steps", "corrections", "psnr", "judge"}], the last two as means with intervals; None for fresh x_T.
    """
    asked = choose(data.records, "style", options.round_trip, options.seed)
    if not asked:
        return []
    sources = {(a.prompt, a.seed): data.rgb(a.index, options.size) for a in asked}
    source = [sources[a.prompt, a.seed] for a in asked]
    felt = judge.whiten(net(source, progress=False))
    ways: list[tuple[int | None, int | None]] = [
        (steps, count) for steps, counts in ROUND_TRIPS.items() for count in counts
    ]
    rows = []
    for steps, corrections in [*ways, (None, None)]:
        tell(f"round trip: {steps or 'fresh x_T'}, {corrections or 'no'} corrections")
        given: dict[str, Any] = {"noise": "fresh"}
        if steps is not None:
            given = {
                "eta": 0.0,
                "noise": "inverted",
                "decoder_num_inference_steps": steps,
                "num_corrections": corrections,
            }
        made = draw_pictures(
            asked,
            lambda prompts, seeds, given=given: manipulator.vary(  # type: ignore[misc]
                np.stack([sources[pair] for pair in zip(prompts, seeds, strict=True)]), seeds, **given
            ),
            out / "images" / (f"round-{steps}-{corrections}" if steps else "round-fresh"),
            {**manipulator.settings, **given, "model": manipulator.fingerprint, "size": options.size},
            batch_size=options.batch_size,
            progress=options.progress,
        )
        again = judge.whiten(net(made, progress=False))
        rows.append(
            {
                "steps": steps,
                "corrections": corrections,
                "psnr": bootstrap([psnr(a, b) for a, b in zip(made, source, strict=True)]).as_dict(),
                "judge": bootstrap((again * felt).sum(-1).numpy()).as_dict(),
            }
        )
    return rows


def _shares(hits: Hits, seed: int) -> dict[str, dict[str, float]]:
    every = {**hits, "both": hits["reached"] & hits["kept"]}
    return {name: bootstrap(each, seed=seed).as_dict() for name, each in every.items()}


def _save_grid(
    kind: Kind, made: Sequence[Sequence[np.ndarray]], data: Pictures, path: Path, options: Options
) -> None:
    rows = []
    for case, strip in list(zip(kind.cases, made, strict=True))[: options.grid]:
        blank = np.full_like(strip[0], 255)
        true = blank if case.true is None else data.rgb(case.true, options.size)
        pictures = [data.rgb(case.source.index, options.size), *strip, true]
        rows.append((f"{case.before} -> {case.after}", [Image.fromarray(each) for each in pictures]))
    if rows:
        save_rows(rows, ["source", *(f"theta = {theta:g}" for theta in options.thetas), "real"], path)


def _asked(case: Case) -> Asked:
    """The change in the place of a prompt, so that what is kept is of this change."""
    return replace(case.source, prompt=f"{case.before} → {case.after}")


def _strip(pictures: Sequence[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(each.convert("RGB")) for each in pictures], axis=1))
