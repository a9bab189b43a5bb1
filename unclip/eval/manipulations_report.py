"""Measured manipulations as tables and a page; the sentence follows from the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unclip.eval.bootstrap import told_apart
from unclip.eval.claims_report import decibels
from unclip.eval.tables import Table, number, percent, to_markdown

_TITLES = {
    "style": "Style: “SUBJECT, flat” → “SUBJECT, 3D”",
    "generic": "Style: “a flat emoji” → “a 3D emoji”",
    "colour": "Colour: “red SUBJECT” → “blue SUBJECT”",
    "expression": "Expression: “grinning face” → “crying face”",
}
_COLUMNS = {
    "reached": "reached",
    "nearest": "nearest in that style",
    "kept": "subject kept",
    "both": "reached and kept",
    "style": "own style kept",
}
_NOTE = (
    "θ = 0 is the picture itself, inverted and decoded, or decoded from fresh noise; real: pictures of what was to be "
    "reached, taken out of the gallery first. Style reached: by ten votes of other subjects' pictures; colour: by the "
    "pixels; expression: the asked face is among the five nearest. Kept: the subject is among the five nearest (of any "
    "colour); of a face, that most of the ten nearest are faces. The sources are among the real pictures, so that θ = "
    "0 finds itself. Own style kept: by ten votes of other subjects' pictures. In brackets: 95 % intervals."
)


def manipulations_tables(report: Mapping[str, Any]) -> list[Table]:
    """A table for each kind of change, and one of the round trip."""
    tables = [_kind(name, figures) for name, figures in report["kinds"].items()]
    return tables + ([_round_trip(report["round_trip"])] if report.get("round_trip") else [])


def manipulations_markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    settings = report["settings"]
    parts = [
        "# Manipulations, measured",
        "",
        f"Written by `unclip eval manipulations`. Real pictures at {settings['size']} px, seed {settings['seed']}, "
        f"model {settings['model']}, judged by {settings['judge']}.",
        "",
        best_sentence(report),
        "",
        _NOTE,
        "",
    ]
    for name, figures in report["kinds"].items():
        parts += [to_markdown(_kind(name, figures)), f"![{_TITLES[name]}]({name}.webp)", ""]
    if report.get("round_trip"):
        parts.append(to_markdown(_round_trip(report["round_trip"])))
    return "\n".join(parts)


def best_sentence(report: Mapping[str, Any]) -> str:
    """The way of each kind that most often changes what is asked and keeps the rest, beside none and real pictures."""
    said = []
    for name, figures in report["kinds"].items():
        if not (best := figures.get("best")):
            continue
        ways = {(row["via"], row["noise"], row["theta"]): row["both"] for row in figures["rows"]}
        there = ways[best["via"], best["noise"], best["theta"]]
        still = ways[best["via"], best["noise"], 0]
        than = {1: "more than", 0: "not told apart from", -1: "less than"}[told_apart(there, still)]
        real = f"; real pictures {percent(figures['true']['both'])}" if "true" in figures else ""
        said.append(
            f"{name} via {best['via']}, {best['noise']} x_T, θ = {best['theta']:g}: {percent(there)}, {than} the "
            f"{percent(still)} of θ = 0{real}"
        )
    return f"Most often reached and kept, chosen among the rows on these same pictures: {'. '.join(said)}."


def _kind(name: str, figures: Mapping[str, Any]) -> Table:
    shown = {key: title for key, title in _COLUMNS.items() if key in figures["rows"][0]}
    rows = [
        (row["via"], row["noise"], f"{row['theta']:g}", *(percent(row[key]) for key in shown))
        for row in figures["rows"]
    ]
    if "true" in figures:
        n = figures["true"]["kept"]["n"]
        rows.append((f"real ({n})", "–", "–", *(percent(figures["true"][key]) for key in shown)))
    title = f"{_TITLES[name]}, {figures['n']} pictures"
    return Table(title, ("via", "x_T", "θ", *shown.values()), tuple(rows))


def _round_trip(rows: list[Mapping[str, Any]]) -> Table:
    return Table(
        f"Round trip: decode(invert(x)), {rows[0]['psnr']['n']} pictures of held-out styles",
        ("steps", "corrections", "PSNR, dB", "judge's cosine"),
        tuple(
            (
                str(row["steps"] or "fresh x_T"),
                str(row["corrections"] or "–"),
                decibels(row["psnr"]),
                number(row["judge"]),
            )
            for row in rows
        ),
        "Likeness of what is decoded to the picture; last with x_T that was not found but drawn.",
    )
