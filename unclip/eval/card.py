"""The model card of an emoji model, written from what is on disk: training runs, a report, the data's
records.

Nothing in it is typed by hand but the limitations, so it is made again by one command whenever a figure
changes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from unclip.data.sources import SOURCES
from unclip.errors import UserError
from unclip.eval.memorisation import memorisation_section
from unclip.eval.tables import SPLIT_NAMES, Table, failure_lines, report_tables, to_markdown
from unclip.files import atomic_path, write_text

STAGES = ("clip", "prior", "decoder", "upsampler-256", "upsampler-1024")
GRID_QUALITY = 70  # of the WebP files beside the card: small, since they are kept with the weights


@dataclass(frozen=True)
class Run:
    """One training run: the name of its folder, its configuration, its log, the command that started it."""

    name: str
    config: dict[str, Any]
    log: tuple[dict[str, float], ...]
    command: str = ""

    @property
    def steps(self) -> int:
        """Optimiser steps taken, as far as the log tells."""
        return int(max((line["step"] for line in self.log), default=0))

    @property
    def samples(self) -> int:
        """Training samples seen."""
        return self.steps * int(self.config["batch_size"])

    @property
    def hours(self) -> float:
        """Time spent in training steps: interruptions, validation and checkpoints not counted."""
        seconds, before = 0.0, 0.0
        for line in self.log:
            if "samples_per_second" in line:
                drawn = (line["step"] - before) * self.config["batch_size"]
                seconds += drawn / max(line["samples_per_second"], 1e-9)
                before = line["step"]
        return seconds / 3600

    def last(self, prefix: str) -> dict[str, float]:
        """The last logged value of each key that starts with `prefix`."""
        found: dict[str, float] = {}
        for line in self.log:
            found |= {key: value for key, value in line.items() if key.startswith(prefix)}
        return found

    def started_by(self, command: str) -> Run:
        """The same run with its command."""
        return replace(self, command=command)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a card is written from.

    Attributes:
        report: of `emoji.evaluate`. records: of the whole data set. runs: in the order of training.
        hardware: what it was trained on. commands: those after training. notes: Markdown added to the
        limitations. memorisation: the report of `unclip eval memorisation`, if there is one.
    """

    report: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    runs: Sequence[Run]
    hardware: str
    commands: Sequence[str] = field(default=())
    notes: str = ""
    memorisation: Mapping[str, Any] | None = None


def read_report(path: Path) -> dict[str, Any]:
    """Read the report.json of `unclip eval emoji`.

    Raises:
        UserError: it is missing or no report.
    """
    if not path.is_file():
        raise UserError(f"no report at {path}; make it first: unclip eval emoji --out {path.parent}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON ({error}); make it again: unclip eval emoji --out {path.parent}"
        ) from None
    missing = [key for key in ("settings", "data", "retrieval", "prior") if key not in report]
    if missing:
        raise UserError(
            f"{path} lacks {missing[0]!r}, so it is no report; expected one of `unclip eval emoji`"
        )
    return report


def find_runs(folder: Path) -> list[Run]:
    """All runs in the folders below `folder` (config.yaml beside log.jsonl), in the order of the cascade.

    Raises:
        UserError: there is none.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    runs = []
    for path in sorted(folder.glob("*/config.yaml")):
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(path))
            known = {"stage", "preset", "batch_size"} <= set(config)
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError):
            known = False
        if not known:
            raise UserError(
                f"{path} is no training configuration: mend it, or move its folder out of {folder}"
            )
        log = path.with_name("log.jsonl")
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        runs.append(
            Run(path.parent.name, config, tuple(json.loads(line) for line in lines if line.endswith("}")))
        )
    if not runs:
        raise UserError(
            f"no training runs under {folder}; expected {folder}/NAME/config.yaml, one for each stage"
        )
    order = {stage: i for i, stage in enumerate(STAGES)}
    return sorted(runs, key=lambda run: order.get(run.config["stage"], len(order)))


def train_command(config: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """The command that gives `config`: what differs from its preset, as `key=value`; paths are shortened."""
    parts = [f"unclip train {config['stage']} --preset {config['preset']}"]
    for key in ("data", "output"):
        if config.get(key):
            parts.append(f"--{key} {short_path(str(config[key]))}")
    if config.get("seed"):
        parts.append(f"--seed {config['seed']}")
    apart = {"stage", "preset", "data", "output", "seed", "device"}
    for key, value in _flat(config).items():
        if key not in apart and value != _flat(preset).get(key):
            shown = short_path(value) if isinstance(value, str) and os.sep in value else value
            parts.append(f"{key}={shown}")
    return " ".join(str(part).replace(" ", "") if "=" in str(part) else str(part) for part in parts)


def short_path(path: str) -> str:
    """A path that means something on another machine: relative to here, or else its last two parts."""
    absolute = Path(path).expanduser().resolve()
    if absolute.is_relative_to(Path.cwd()):
        return str(absolute.relative_to(Path.cwd()))
    return str(Path(*absolute.parts[-2:]))


def write_card(facts: Facts, model: Path, grids: Path) -> Path:
    """Write MODEL/README.md and MODEL/samples-SPLIT.webp (the grids under `grids`); gives the card's path."""
    samples = []
    for split, path in facts.report.get("grids", {}).items():
        if (grids / path).is_file():
            name = f"samples-{split}.webp"
            with Image.open(grids / path) as grid, atomic_path(model / name) as temporary:
                grid.save(temporary, quality=GRID_QUALITY, method=6)
            samples.append((split, name))
    write_text(model / "README.md", card_text(facts, model, samples))
    return model / "README.md"


def card_text(facts: Facts, model: Path, samples: Sequence[tuple[str, str]] = ()) -> str:
    """The card as Markdown; `samples` are (split, file name) of grids beside it."""
    sections = [
        _head(facts),
        _use(),
        _parts(model),
        _data(facts),
        _training(facts),
        _measured(facts, samples),
        *([memorisation_section(facts.memorisation)] if facts.memorisation else []),
        _failures(facts),
        _limitations(facts),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def _head(facts: Facts) -> str:
    styles = ", ".join(sorted({record["style"] for record in facts.records}))
    hours = sum(run.hours for run in facts.runs)
    return f"""---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
tags: [unclip, text-to-image, emoji]
language: en
---

# unCLIP emoji

A small text-to-image model after unCLIP (Ramesh et al. 2022): a CLIP, a diffusion prior, a decoder and
upsamplers, trained from openly licensed emoji art in runs of {hours:.1f} hours in all on {facts.hardware}. It draws
emoji-like pictures of everyday subjects in these styles: {styles}. It shows how unCLIP works and runs on a
CPU; it is no match for large models."""


def _use() -> str:
    return """## Use

```python
from unclip.pipelines import UnCLIPTextToImagePipeline

pipe = UnCLIPTextToImagePipeline.from_pretrained()
pipe("a red apple, 3D").images[0].save("apple.png")
```

or `unclip generate "a red apple, 3D" --seed 0 --size 256`."""


def _parts(model: Path) -> str:
    rows = []
    for path in sorted(model.glob("*/*.safetensors")):
        with safe_open(str(path), "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
        count = sum(_product(shape) for shape in shapes)
        rows.append((path.parent.name, f"{count / 1e6:.1f} M", f"{path.stat().st_size / 1e6:.1f} MB"))
    index = model / "model_index.json"
    defaults = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    numbers = {key: value for key, value in defaults.items() if isinstance(value, (int, float))}
    settings = ", ".join(f"`{key}` {value}" for key, value in numbers.items())
    table = _table(("part", "parameters", "file"), rows)
    return f"## Parts\n\n{table}" + (f"\n\nDefault settings: {settings}." if settings else "")


def _data(facts: Facts) -> str:
    trained = Counter(record["style"] for record in facts.records if record["split"] == "train")
    held_out = Counter(record["style"] for record in facts.records if record["split"] != "train")
    rows = []
    for style, source in SOURCES.items():
        if trained[style] + held_out[style]:
            name = f"{source.package.name} {source.package.version}"
            author = f"[{source.author}]({source.url})"
            rows.append((style, name, author, source.licence, str(trained[style]), str(held_out[style])))
    rows.append(("all", "", "", "", str(sum(trained.values())), str(sum(held_out.values()))))
    splits = Counter(record["split"] for record in facts.records)
    share_alike = any(SOURCES[record["style"]].share_alike for record in facts.records)
    held = ", ".join(f"{count} {SPLIT_NAMES[s]}" for s, count in splits.items() if s != "train")
    table = _table(("style", "package", "author (attribution)", "licence", "trained on", "held out"), rows)
    return f"""## Data

{table}

Held out, with their near-duplicates: {held}. The art keeps its licences: the MIT, Apache and CC-BY sources
ask for the attribution given here, which goes with the weights. Names and tags: emojibase-data and emojilib
(MIT). {_learned_from(facts, share_alike)}"""


def _learned_from(facts: Facts, share_alike: bool) -> str:
    """Whether anything but these pictures went into the weights: CLIP's towers may have started elsewhere."""
    alone = "Prior, decoder and upsamplers learned from these pictures alone"
    licence = "" if share_alike else ", none of which is under a share-alike licence"
    tasks = [run.config.get("task") or {} for run in facts.runs if run.config["stage"] == "clip"]
    starts = (
        ("text_tower", "minilm", "the text tower started from MiniLM, which read texts of the web"),
        (
            "image_tower",
            "efficientnet",
            "the image tower from EfficientNet-lite0, which saw ImageNet's photographs",
        ),
    )
    found = [text for key, name, text in starts if any(task.get(key) == name for task in tasks)]
    return f"{alone}{licence}." + (f" Of CLIP, {' and '.join(found)}." if found else "")


def _training(facts: Facts) -> str:
    rows = []
    for run in facts.runs:
        loss = run.last("loss").get("loss")
        checks = ", ".join(
            f"{k.removeprefix('validation/')} {v:.3g}" for k, v in run.last("validation/").items()
        )
        shown = "" if loss is None else f"{loss:.4g}"
        cells = (
            run.config["stage"],
            run.name,
            f"{run.steps:,}",
            f"{run.samples:,}",
            f"{run.hours:.1f}",
            shown,
            checks,
        )
        rows.append(cells)
    table = _table(("stage", "run", "steps", "samples", "hours", "last loss", "validation"), rows)
    data = next((run.config["data"] for run in facts.runs if run.config.get("data")), "data/emoji")
    built = [f"unclip data build emoji --out {short_path(str(data))}"]
    commands = "\n".join([*built, *(run.command for run in facts.runs if run.command), *facts.commands])
    return f"""## Training

On {facts.hardware}; hours are those spent in steps.

{table}

```sh
{commands}
```"""


def _measured(facts: Facts, samples: Sequence[tuple[str, str]]) -> str:
    settings = ", ".join(
        f"{key} {value}" for key, value in facts.report["settings"].items() if value is not None
    )
    tables: list[Table] = report_tables(facts.report)
    grids = [f"![Samples: {SPLIT_NAMES[split]}]({name})\n\n{SPLIT_NAMES[split]}" for split, name in samples]
    parts = [
        "## Measured",
        f"`unclip eval emoji`, with {settings}.",
        *(to_markdown(table).strip("\n") for table in tables),
    ]
    if grids:
        parts.append(
            "### Samples\n\nThe first prompts of the seeded list, good or bad: generated, nearest real (green: the "
            "right subject), the real picture that was asked for."
        )
    return "\n\n".join([*parts, *grids])


def _failures(facts: Facts) -> str:
    if not facts.report.get("failures"):
        return "## Failures\n\nNone recorded."
    lines = "\n".join(failure_lines(facts.report))
    return f"""## Failures

The first prompts of the seeded list, in turn over the splits, whose subject is not among the five nearest
pictures:

{lines}"""


def _limitations(facts: Facts) -> str:
    notes = f"\n{facts.notes.strip()}" if facts.notes.strip() else ""
    return f"""## Limitations

- It knows the subjects, words and styles of its data: emoji of the Unicode list and plain icons. Photographs,
  scenes, written words and names of people are beyond it.
- Words outside the captions are understood only as far as the text tower's pretraining carries.
- Of subjects, styles, tones and colours that were held out it makes what the tables say, no more: look there
  before relying on a combination.
- Emoji carry their designers' choices: professions, families and gestures as drawn there, with "person" often
  drawn like a man or a woman.
- The judge is an ImageNet network that never saw emoji; its ceiling on real pictures stands in the table, and
  a picture that a person would accept may miss.{notes}"""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
