"""The claims as tables, sentences and plots. Sentences follow from the figures: what does not hold is said not to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unclip.eval.bootstrap import told_apart
from unclip.eval.claims_sections import AUTOREGRESSIVE, DIFFUSION, NONE, PAPER_STEPS
from unclip.eval.plots import Panel, Point, save_panels
from unclip.eval.tables import Table, number, percent, to_markdown

Row = Mapping[str, Any]
Estimate = Mapping[str, float]

# Heading of a column -> (path of the figure, how it is shown).
Column = tuple[str, Callable[[Any], str]]


def distance(estimate: Estimate) -> str:
    """`104 (98–110)`."""
    return f"{estimate['value']:.0f} ({estimate['low']:.0f}–{estimate['high']:.0f})"


def decibels(estimate: Estimate) -> str:
    """`31.4 (30.2–32.6)`."""
    return f"{estimate['value']:.1f} ({estimate['low']:.1f}–{estimate['high']:.1f})"


def seconds(taken: Mapping[str, float]) -> str:
    """`.05 + .11`, prior and decoder; `.11` without a prior."""
    return " + ".join(
        f"{taken[stage]:.2f}".removeprefix("0") for stage in ("prior", "decoder") if stage in taken
    )


PICTURE_COLUMNS: dict[str, Column] = {
    "z_i · true z_i": ("cosine", number),
    "label, top-1": ("top1", percent),
    "z_i · z_t": ("text", number),
    "subject in 5": ("subject", percent),
    "in unseen styles": ("held_out", percent),
    "style by votes": ("style", percent),
    "FD": ("frechet", distance),
    "precision": ("precision", percent),
    "recall": ("recall", percent),
    "diversity": ("diversity", number),
    "seconds": ("seconds", seconds),
}
VARIATION_COLUMNS: dict[str, Column] = {
    "CLIP cosine": ("clip", number),
    "judge's cosine": ("judge", number),
    "PSNR, dB": ("psnr", decibels),
}
NOTE = (
    "z_i · true z_i: cosine of the prior's embedding to that of the asked picture; label: a real picture of that "
    "subject, tone and style is the nearest to it; z_i · z_t: to the caption's own embedding. Subject, style: judged "
    "by {judge} among all real pictures, as “generated” in the emoji report. FD: Fréchet distance to all real "
    "pictures, which few pictures bias upwards, all rows alike. Precision, recall: against the asked real pictures. "
    "Diversity: mean cosine distance between pictures of one prompt. Seconds: of one picture alone, prior + decoder. "
    "In brackets: 95 % intervals."
)


def verdict(better: Estimate, worse: Estimate, lower: bool = False) -> str:
    """Whether the first is better than the second, as is claimed; `lower`: where less is better."""
    sign = told_apart(better, worse) * (-1 if lower else 1)
    return {1: "holds", -1: "does not hold", 0: "cannot be told from so few pictures"}[sign]


def claims_markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    settings, place = report["settings"], report["machine"]
    asked = (
        f"{settings['prompts']} prompts, half of captions that were trained on, half of a style that the subject was "
        f"never seen in; {settings['size']} px, seed {settings['seed']}, model {settings['model']}"
    )
    parts = [
        "# Claims of the unCLIP paper at small scale",
        "",
        f"Written by `unclip eval claims`. {asked}. Seconds on {place['processor']}, {place['threads']} threads.",
        "",
        NOTE.format(judge=settings["judge"]),
        "",
    ]
    for name, section in report["sections"].items():
        parts += [f"## {section['title']}", "", sentence(name, section["rows"]), ""]
        parts += [line for each in section["notes"] for line in (each, "")]
        parts += [to_markdown(section_table(name, section)), f"![{section['title']}]({name}.png)", ""]
    return "\n".join(parts)


def section_table(name: str, section: Mapping[str, Any]) -> Table:
    """A row for each variant; columns that no row has are left out."""
    every = VARIATION_COLUMNS if name == "e" else PICTURE_COLUMNS
    rows = section["rows"]
    columns = {h: column for h, column in every.items() if any(column[0] in row["figures"] for row in rows)}
    cells = tuple(
        (
            row["name"],
            *(show(row["figures"][key]) if key in row["figures"] else "–" for key, show in columns.values()),
        )
        for row in rows
    )
    return Table(f"{section['title']}: figures", ("", *columns), cells)


def sentence(name: str, rows: Sequence[Row]) -> str:
    """What a section says, beside the paper."""
    return _SENTENCES[name](rows)


def _against_none(rows: Sequence[Row]) -> str:
    found = {row["name"]: row["figures"] for row in rows}
    prior, none = found[DIFFUSION], found[NONE]
    parts = [
        "Paper (FID): 7.99 with a prior, 16.55 with z_t in place of z_i.",
        f"Here the Fréchet distance is {prior['frechet']['value']:.0f} and {none['frechet']['value']:.0f}: that the "
        f"prior is nearer to real pictures {verdict(prior['frechet'], none['frechet'], lower=True)}; that it shows the "
        f"asked subject more often ({percent(prior['subject'])} against {percent(none['subject'])}) "
        f"{verdict(prior['subject'], none['subject'])}.",
    ]
    for row in rows[2:]:
        other = row["figures"]
        parts.append(
            f"Against a {row['name']} (paper: 9.16; here {other['frechet']['value']:.0f}) the claim "
            f"{verdict(prior['frechet'], other['frechet'], lower=True)} by the distance and "
            f"{verdict(prior['subject'], other['subject'])} by the subject ({percent(other['subject'])})."
        )
    return " ".join(parts)


def _of_priors(rows: Sequence[Row]) -> str:
    found = {row["name"]: row["figures"] for row in rows}
    named = {row["name"]: row["figures"] for row in rows if row["series"] == "priors"}
    subject = max(named, key=lambda name: named[name]["subject"]["value"])
    nearest = min(named, key=lambda name: named[name]["frechet"]["value"])
    parts = []
    if AUTOREGRESSIVE in named:
        claim = verdict(named[DIFFUSION]["frechet"], named[AUTOREGRESSIVE]["frechet"], lower=True)
        parts.append(f"Paper (FID): 10.39 by diffusion, 10.63 autoregressive; here that order {claim}.")
    parts.append(
        f"The asked subject is shown most often with {subject} ({percent(named[subject]['subject'])}), the distance to "
        f"real pictures is smallest with {nearest} ({named[nearest]['frechet']['value']:.0f})."
    )
    paper = found[f"{DIFFUSION}, DDPM, {PAPER_STEPS} steps"]
    enough = [
        row
        for row in rows
        if row["x"] and row["x"] < PAPER_STEPS and told_apart(paper["subject"], row["figures"]["subject"]) < 1
    ]
    if enough:
        least = min(enough, key=lambda row: (row["x"], -row["figures"]["subject"]["value"]))
        parts.append(
            f"By the subject, {least['x']:g} steps of {least['series']} ({percent(least['figures']['subject'])}) are "
            f"not told apart from the paper's {PAPER_STEPS} ({percent(paper['subject'])})."
        )
    else:
        parts.append(f"The paper's {PAPER_STEPS} steps show the subject more often than any fewer.")
    return " ".join(parts)


def _of_candidates(rows: Sequence[Row]) -> str:
    parts = ["The paper draws two candidates and keeps the one with the larger z_i · z_t."]
    for series in dict.fromkeys(row["series"] for row in rows):
        figures = [row["figures"] for row in rows if row["series"] == series]
        one, most = figures[0], figures[-1]
        change = {1: "raises", 0: "does not measurably change", -1: "lowers"}
        parts.append(
            f"With {series}, {_xs(rows, series)[-1]:g} in place of 1 "
            f"{change[told_apart(most['text'], one['text'])]} z_i · z_t "
            f"({number(one['text'])} to {number(most['text'])}), "
            f"{change[told_apart(most['subject'], one['subject'])]} the share of asked subjects "
            f"({percent(one['subject'])} to {percent(most['subject'])}) and "
            f"{change[told_apart(most['diversity'], one['diversity'])]} diversity."
        )
    return " ".join(parts)


def _of_guidance(rows: Sequence[Row]) -> str:
    losses = {}
    for series in dict.fromkeys(row["series"] for row in rows):
        values = [row["figures"]["diversity"] for row in rows if row["series"] == series]
        losses[series] = (values[0], values[-1])
    (one, (a, b)), (other, (c, d)) = losses.items()
    kept, rest = b["value"] / max(a["value"], 1e-9), d["value"] / max(c["value"], 1e-9)
    noise = math.hypot(_relative(a, b) * kept, _relative(c, d) * rest)
    claim = "cannot be told from so few pictures"
    if abs(kept - rest) > noise:
        claim = "holds" if kept > rest else "does not hold"
    scales = _xs(rows, one)
    return (
        "Paper: diversity survives guidance better in unCLIP than in a decoder of captions alone. From scale "
        f"{scales[0]:g} to {scales[-1]:g}, {one} keeps {100 * kept:.0f} % of its diversity ({number(a)} to "
        f"{number(b)}) and {other} {100 * rest:.0f} % ({number(c)} to {number(d)}): the claim {claim}."
    )


def _of_variations(rows: Sequence[Row]) -> str:
    inverted = [row["figures"] for row in rows if row["series"] == "inverted"]
    fresh = next(row["figures"] for row in rows if row["series"] == "fresh")
    names = {"clip": "CLIP", "judge": "the judge"}
    falls = {
        name: "falls" if told_apart(inverted[0][key], inverted[-1][key]) == 1 else "does not measurably fall"
        for key, name in names.items()
    }
    said = "; ".join(f"by {name} it {fall}" for name, fall in falls.items())
    return (
        "Paper: as eta grows, variations keep what CLIP sees and lose the rest. Here likeness to the source between "
        f"eta {_xs(rows, 'inverted')[0]:g} and {_xs(rows, 'inverted')[-1]:g}: {said}; PSNR goes from "
        f"{decibels(inverted[0]['psnr'])} to {decibels(inverted[-1]['psnr'])} dB, with fresh x_T "
        f"{decibels(fresh['psnr'])}."
    )


def _of_noise(rows: Sequence[Row]) -> str:
    parts = []
    for series in dict.fromkeys(row["series"] for row in rows):
        of_prior = [row for row in rows if row["series"] == series]
        best = min(of_prior, key=lambda row: row["figures"]["frechet"]["value"])
        subject = max(of_prior, key=lambda row: row["figures"]["subject"]["value"])
        clean = of_prior[0]["figures"]
        change = verdict(best["figures"]["frechet"], clean["frechet"], lower=True) == "holds"
        gain = "nearer than without noise" if change else "not told apart from none"
        parts.append(
            f"{series}: distance least at {best['x']:g} ({best['figures']['frechet']['value']:.0f}, {gain}), subject "
            f"most at {subject['x']:g} ({percent(subject['figures']['subject'])})"
        )
    return f"Best noise level of each prior. {'; '.join(parts)}."


_SENTENCES: dict[str, Callable[[Sequence[Row]], str]] = {
    "a": _against_none,
    "b": _of_priors,
    "c": _of_candidates,
    "d": _of_guidance,
    "e": _of_variations,
    "noise": _of_noise,
}


def _xs(rows: Sequence[Row], series: str) -> list[float]:
    return [row["x"] for row in rows if row["series"] == series]


def _relative(*estimates: Estimate) -> float:
    """Half width of the interval of a quotient, as a share of it."""
    return math.hypot(*((e["high"] - e["low"]) / 2 / max(e["value"], 1e-9) for e in estimates))


def draw_plots(report: Mapping[str, Any], out: Path) -> None:
    """OUT/SECTION.png of every section."""
    for name, section in report["sections"].items():
        save_panels(_PANELS[name](section["rows"]), out / f"{name}.png")


_AXES = {
    "subject": "asked subject in 5",
    "style": "style by votes",
    "frechet": "Fréchet distance",
    "recall": "recall",
    "precision": "precision",
    "diversity": "diversity within a prompt",
    "text": "z_i · z_t",
    "clip": "CLIP cosine to the source",
    "judge": "judge's cosine to the source",
    "psnr": "PSNR, dB",
}


def _bars(keys: Sequence[str]) -> Callable[[Sequence[Row]], list[Panel]]:
    def panels(rows: Sequence[Row]) -> list[Panel]:
        names = tuple(row["name"] for row in rows)
        return [
            Panel(
                _AXES[key],
                "",
                "",
                {"": [_point(i, row["figures"][key]) for i, row in enumerate(rows)]},
                names,
            )
            for key in keys
        ]

    return panels


def _over(x: str, keys: Sequence[str]) -> Callable[[Sequence[Row]], list[Panel]]:
    def panels(rows: Sequence[Row]) -> list[Panel]:
        placed = [row for row in rows if row["x"] is not None]
        return [
            Panel(
                _AXES[key],
                x,
                _AXES[key],
                {
                    series: [
                        _point(row["x"], row["figures"][key]) for row in placed if row["series"] == series
                    ]
                    for series in dict.fromkeys(row["series"] for row in placed)
                },
            )
            for key in keys
        ]

    return panels


def _against(pairs: Sequence[tuple[str, str]]) -> Callable[[Sequence[Row]], list[Panel]]:
    """Curves of one figure against another, a point for each row with its x beside it."""

    def panels(rows: Sequence[Row]) -> list[Panel]:
        return [
            Panel(
                f"{_AXES[y]} against {_AXES[x]}",
                _AXES[x],
                _AXES[y],
                {
                    series: [
                        _point(row["figures"][x]["value"], row["figures"][y], f"{row['x']:g}")
                        for row in rows
                        if row["series"] == series
                    ]
                    for series in dict.fromkeys(row["series"] for row in rows)
                },
            )
            for x, y in pairs
        ]

    return panels


_PANELS: dict[str, Callable[[Sequence[Row]], list[Panel]]] = {
    "a": _bars(("subject", "frechet", "recall")),
    "b": _bars(("subject", "frechet", "diversity")),
    "c": _over("candidates", ("text", "subject", "frechet", "diversity")),
    "d": _against((("diversity", "subject"), ("recall", "precision"), ("diversity", "frechet"))),
    "e": _over("eta", ("clip", "judge", "psnr")),
    "noise": _over("noise level", ("subject", "style", "frechet", "diversity")),
}


def _point(x: float, estimate: Estimate, label: str = "") -> Point:
    return Point(x, estimate["value"], estimate["low"], estimate["high"], label)
