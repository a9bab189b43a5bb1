"""The report as tables: once described, shown on a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from unclip.eval.judge import VERDICTS

# How splits and the rows of `emoji.verdict_rows` are called in tables.
SPLIT_NAMES = {
    "train": "seen",
    "style": "unseen style of a seen subject",
    "tone": "unseen skin tone of a seen role",
    "attribute": "unseen colour of a seen object",
    "unseen": "unseen subject",
    "all": "all",
}
ROW_NAMES = {
    "generated": "generated",
    "generated_left_out": "generated *",
    "decoded": "from true z_i",
    "real": "real *",
    "lookup": "lookup",
}
# Rows judged in a gallery without the asked picture. Of a subject, tone and style there is one picture: none of these
# can show all three.
LEFT_OUT_ROWS = {"generated_left_out", "real"}


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text and a note that says how to read them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """All tables of a report made by `emoji.evaluate`."""
    tables = [_retrieval(report["retrieval"]), _prior(report["prior"])]
    if "generated" in report:
        tables += [_generated(judge, figures) for judge, figures in report["generated"].items()]
        tables += [_pixels(report["pixels"])] if report["pixels"] else []
        as_a_set = _as_a_set(report)
        tables += [as_a_set] if as_a_set.rows else []
    if "relations" in report:
        tables.append(_relations(report["relations"]))
    return tables


def to_markdown(table: Table) -> str:
    """A heading, the table, the note."""
    lines = [f"### {table.title}", "", *(_line(row) for row in (table.header, ("---",) * len(table.header)))]
    lines += [_line(row) for row in table.rows]
    return "\n".join([*lines, "", *([table.note.replace("*", "\\*"), ""] if table.note else [])])


def report_markdown(report: Mapping[str, Any]) -> str:
    """The whole report as a page: settings, tables, failures, grids."""
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items() if value is not None)
    parts = ["# Evaluation of the emoji model", "", f"Settings: {settings}.", ""]
    parts += [f"Data: {report['data']['pictures']} pictures, {_counts(report['data']['splits'])}.", ""]
    parts += [to_markdown(table) for table in report_tables(report)]
    if report.get("failures"):
        parts += ["### Failures", "", *failure_lines(report), ""]
    grids = {SPLIT_NAMES[split]: path for split, path in report.get("grids", {}).items()}
    if "relations" in report:
        grids["relations, beside the real scenes"] = report["relations"]["grid"]
    for name, path in grids.items():
        parts += [f"### Samples: {name}", "", f"![{name}]({path})", ""]
    return "\n".join(parts)


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Show all tables on a terminal."""
    print_tables(report_tables(report), console)


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Show tables on a terminal, each with its note."""
    for table in tables:
        shown = RichTable()
        for i, column in enumerate(table.header):
            shown.add_column(column, justify="left" if i < 2 else "right")
        for row in table.rows:
            shown.add_row(*row)
        # Around the table, not of it: a title or caption would be wrapped at the table's width.
        console.print(f"\n[bold]{table.title}[/bold]")
        console.print(shown)
        console.print(table.note, style="dim")


def failure_lines(report: Mapping[str, Any]) -> list[str]:
    """The recorded failures as a Markdown list."""
    return [
        f"- “{failure['prompt']}” ({SPLIT_NAMES[failure['split']]}) looks most like: {failure['looks_like']}"
        for failure in report.get("failures", [])
    ]


def percent(estimate: Mapping[str, float]) -> str:
    """`62 % (55–69)`."""
    return f"{100 * estimate['value']:.0f} % ({100 * estimate['low']:.0f}–{100 * estimate['high']:.0f})"


def number(estimate: Mapping[str, float]) -> str:
    """`.742 (.721–.763)`, with the sign where it is negative."""
    value, low, high = (f"{estimate[key]:.3f}".replace("0.", ".", 1) for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def _retrieval(part: Mapping[str, Any]) -> Table:
    kinds = {"style": "names the style", "no_style": "does not"}
    rows = []
    for split, by_kind in part.items():
        for kind, by_gallery in by_kind.items():
            own, everything = by_gallery["split"], by_gallery["all"]
            cells = [percent(each[top]) for each in (own, everything) for top in ("top1", "top5")]
            queries = str(own["top1"]["n"])
            rows.append((SPLIT_NAMES[split], kinds[kind], queries, str(own["gallery"]), *cells))
    return Table(
        "CLIP: caption → real picture",
        ("split", "caption", "captions", "pictures", "top-1", "top-5", "top-1 of all", "top-5 of all"),
        tuple(rows),
        "Right: a picture of the same subject and tone and, if the caption names it, style. "
        "In brackets: 95 % bootstrap intervals.",
    )


def _prior(part: Mapping[str, Any]) -> Table:
    rows = [
        (
            SPLIT_NAMES[split],
            str(figures["cosine"]["n"]),
            *(number(figures[key]) for key in ("cosine", "text_cosine", "other_cosine")),
            *(percent(figures[key]) for key in ("top1", "top5")),
        )
        for split, figures in part.items()
    ]
    return Table(
        "Prior: made z_i against the true one",
        ("split", "prompts", "cosine", "caption's z_t", "another's z_i", "top-1 of all", "top-5 of all"),
        tuple(rows),
        "Cosine similarity to the real picture's z_i: of the prior's, and for comparison of the caption's "
        "own embedding and of a random picture's. Top-k: a real picture of that subject, tone and style is "
        "among the k nearest to the made z_i.",
    )


def _generated(judge: str, figures: Mapping[str, Any]) -> Table:
    rows = []
    for split, by_row in figures["verdicts"].items():
        for row, name in ROW_NAMES.items():
            if row not in by_row:
                continue
            estimates = by_row[row]
            idle = {"both"} if row in LEFT_OUT_ROWS else set()
            cells = ["–" if verdict in idle else percent(estimates[verdict]) for verdict in VERDICTS]
            rows.append((SPLIT_NAMES[split], name, str(estimates["subject"]["n"]), *cells))
    return Table(
        f"Generated pictures, judged by {judge}",
        ("split", "pictures", "n", *VERDICTS.values()),
        tuple(rows),
        "By the nearest real picture of all splits. * = the asked real picture is taken out of the gallery "
        "first (prompts whose subject no other picture shows are not counted); “real *” judges that real "
        "picture itself: the judge's ceiling. –: no other picture has that subject, tone and style. From true "
        "z_i: drawn from the embedding of the asked picture, the prior left out. Lookup: the "
        f"training picture that CLIP finds for the prompt. Chance for the subject: {100 * figures['chance']:.2g} %.",
    )


def _pixels(part: Mapping[str, Any]) -> Table:
    kinds = {"colour": "colour", "tone": "skin tone"}
    rows = []
    for kind, by_split in part.items():
        for split, by_row in by_split.items():
            cells = (percent(by_row[row]) for row in ("generated", "real"))
            rows.append((kinds[kind], SPLIT_NAMES[split], str(by_row["real"]["n"]), *cells))
    return Table(
        "Colour and skin tone, by the pixels",
        ("asked", "split", "prompts", "generated", "real"),
        tuple(rows),
        "Of the prompts that ask for one. Colour: what most pixels of the object are called. Skin tone: which of the "
        "five paints of the asked style, measured on training pictures, covers most. Real: the asked picture itself, "
        "the ceiling.",
    )


def _relations(part: Mapping[str, Any]) -> Table:
    names = {"generated": "generated", "other": "another prompt's", "real": "real scene"}
    measures = ("objects", "both", "relation")
    return Table(
        "Two things, one where the other is not",
        ("picture", "n", "things found", "both found", "both in the asked relation"),
        tuple(
            (name, str(part["n"]), *(percent(part[row][m]) for m in measures)) for row, name in names.items()
        ),
        "Scenes with a combination of things, places or colours that training never shows. A thing is found where its "
        f"sprite correlates with the picture by {part['threshold']:.2f} or more, which 5 % of sprites that are not "
        "there do in real scenes. Another prompt's: chance. Real scene: the ceiling.",
    )


def _as_a_set(report: Mapping[str, Any]) -> Table:
    both = ("generated", "real")
    rows: list[tuple[str, ...]] = []
    for judge, figures in report["generated"].items():
        if distance := figures.get("frechet"):
            name = f"FD-{judge} to all {distance['gallery']} real pictures"
            cells = (f"{distance[row]:.1f}" for row in (*both, "lookup"))
            rows.append((name, str(distance["n"]), *cells))
        for measure in ("precision", "recall"):
            if share := figures.get(measure):
                cells = (percent(share[row]) for row in both)
                rows.append((f"{measure}, {judge}", str(share["real"]["n"]), *cells, "–"))
    if found := report["cmmd"]:
        name = "CMMD of this model's own CLIP"
        rows.append((name, str(found["n"]), *(f"{found[row]:.2f}" for row in both), "–"))
    if spread := report["diversity"]:
        within, seeds = spread["within"], spread["seeds"]
        rows.append((f"diversity: {seeds} seeds of a prompt", str(within["n"]), number(within), "–", "–"))
        if "between" in spread:
            rows.append(
                ("diversity: different prompts", str(within["n"]), number(spread["between"]), "–", "–")
            )
    return Table(
        "The pictures as a set",
        ("measure", "n", "generated", "real", "lookup"),
        tuple(rows),
        "Real: for the distance to all, the asked pictures; else as many further ones of the same splits, drawn in the "
        "same way (splits with too few left are out of both). Few pictures bias the Fréchet distance upwards: compare "
        "it with that of as many real ones, and with that of the pictures that a search by caption finds (lookup). "
        "Precision: share of generated pictures among the asked real ones, within reach of their 3rd neighbours; "
        "recall: the reverse. CMMD to the asked pictures; its CLIP also guided the drawing. Diversity: mean cosine "
        "distance of features, n prompts.",
    )


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {SPLIT_NAMES[split]}" for split, count in splits.items() if count)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"
