"""`unclip eval …`. Only typer is imported at the top, so that `unclip --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unclip.eval.studies_cli import DATA as _DATA
from unclip.eval.studies_cli import MODEL as _MODEL
from unclip.eval.studies_cli import app as studies
from unclip.eval.studies_cli import check_data as _check_data

if TYPE_CHECKING:
    from unclip.eval.card import Run

app = typer.Typer(help="Measure a model and write its card.", no_args_is_help=True)
app.add_typer(studies)  # without a name: its commands stand beside those below

_OUTPUT = typer.Option("--output", "--out", "-o", help="Folder to write into.")
_SETTING = typer.Option(
    metavar="KEY=VALUE", help="Of a call, e.g. decoder_guidance_scale=3; repeat for more."
)


@app.command("emoji")
def emoji_command(
    data: Annotated[Path, _DATA] = Path("data/emoji"),
    model: Annotated[str | None, _MODEL] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, pictures and grids.")] = Path("out/eval"),
    prompts: Annotated[int, typer.Option(help="Pictures to draw, over all splits; 0: none.")] = 200,
    seed: Annotated[int, typer.Option(help="Settles prompts and pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures drawn, in pixels.")] = 256,
    prior_steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    decoder_steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    upsampler_steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    prior_guidance: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    decoder_guidance: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Embeddings the prior chooses from.")] = None,
    noise_level: Annotated[float | None, typer.Option(help="Noise mixed into the embeddings.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="mobilenet_v2 or efficientnet_lite0; repeat for more; both by default."),
    ] = None,
    varied: Annotated[int, typer.Option(help="Seen prompts drawn from 3 more seeds, for variety.")] = 10,
    relations: Annotated[int, typer.Option(help="Scenes of two things to draw; 0: none.")] = 40,
    grid: Annotated[int, typer.Option(help="Pictures of each split in its sample grid.")] = 24,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, no tables.")] = False,
) -> None:
    """Measure a model on seen and held-out captions; writes report.json, report.md, pictures and grids.

    Pictures that OUT/images holds already from the same model and settings are not drawn again.
    """
    options = {
        "prompts": prompts,
        "seed": seed,
        "size": size,
        "grid": grid,
        "batch_size": batch_size,
        "varied": varied,
        "relations": relations,
    }
    settings = {
        "prior_num_inference_steps": prior_steps,
        "decoder_num_inference_steps": decoder_steps,
        "upsampler_num_inference_steps": upsampler_steps,
        "prior_guidance_scale": prior_guidance,
        "decoder_guidance_scale": decoder_guidance,
        "num_prior_candidates": candidates,
        "noise_level": noise_level,
    }
    report = _evaluate(data, model, out, options, settings, judge or [], device)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from unclip.eval.tables import print_report

    print_report(report, Console())
    typer.echo(f"{out / 'report.md'}")


@app.command("memorisation")
def memorisation_command(
    data: Annotated[Path, _DATA] = Path("data/emoji"),
    model: Annotated[str | None, _MODEL] = None,
    output: Annotated[Path, _OUTPUT] = Path("out/memorisation"),
    images: Annotated[
        Path, typer.Option(help="Folder of drawn pictures; those of `unclip eval emoji` are used again.")
    ] = Path("out/eval/images"),
    prompts: Annotated[int, typer.Option(help="Pictures to compare, over all splits.")] = 200,
    seed: Annotated[int, typer.Option(help="Settles prompts and pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures drawn, in pixels.")] = 256,
    setting: Annotated[list[str] | None, _SETTING] = None,
    judge: Annotated[str, typer.Option(help="mobilenet_v2 or efficientnet_lite0.")] = "mobilenet_v2",
    top: Annotated[int, typer.Option(help="Pairs in the sheet of the most similar; 0: none.")] = 24,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, no tables.")] = False,
) -> None:
    """Compare drawn pictures with the nearest training pictures; writes report.json and most-similar.png."""
    import json

    from unclip.cli import read_number
    from unclip.data import CaptionedImages
    from unclip.eval.cache import cache_folder
    from unclip.eval.features import load_feature_net
    from unclip.eval.memorisation import Options, evaluate_memorisation, memorisation_tables
    from unclip.files import check_writable, write_text
    from unclip.pipelines.loading import choose_device
    from unclip.pipelines.measured import load_model

    _check_data(data)
    options = Options(prompts=prompts, seed=seed, size=size, batch_size=batch_size, top=top)
    given = dict(read_number(each, "--setting") for each in setting or [])
    for folder in (output, images):
        check_writable(folder)
    net = load_feature_net(judge, choose_device(device))
    adapter = load_model(model, size, given, device)
    pictures = CaptionedImages(data, split=None)
    report = evaluate_memorisation(
        pictures, adapter, net, output, images, cache_folder(data, output), options
    )
    write_text(output / "report.json", json.dumps(report, indent=2))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from unclip.eval.tables import print_tables

    print_tables(memorisation_tables(report), Console())
    typer.echo(f"{output / 'report.json'}")


@app.command("gallery")
def gallery_command(
    output: Annotated[Path, _OUTPUT] = Path("out/gallery"),
    model: Annotated[str | None, _MODEL] = None,
    seeds: Annotated[str, typer.Option(help="Of each prompt's pictures, in quotes.")] = "0 1 2 3",
    section: Annotated[list[str] | None, typer.Option(help="Only this section; repeat for more.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Check first that the prompts are in its splits as they say.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures drawn, in pixels.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Draw a fixed list of prompts with fixed seeds, nothing picked; writes gallery.md and a grid a section.

    Pictures that OUTPUT/images holds already from the same model and settings are not drawn again.
    """
    from unclip.cli import torch_dtype
    from unclip.eval.gallery import check_splits, draw_gallery, read_seeds, sections
    from unclip.files import check_writable
    from unclip.pipelines.measured import load_model

    numbers, chosen = read_seeds(seeds), sections(section)
    if data is not None:
        from unclip.data import CaptionedImages

        _check_data(data)
        check_splits(chosen, CaptionedImages(data, split=None).records)
    check_writable(output)
    adapter = load_model(model, size, {}, device, torch_dtype(dtype))
    typer.echo(str(draw_gallery(chosen, numbers, adapter, output, size, batch_size=batch_size)))


@app.command("card")
def card_command(
    runs: Annotated[Path, typer.Option(help="Folder of training runs, one folder for each stage.")],
    report: Annotated[Path, typer.Option(help="report.json of `unclip eval emoji`.")],
    data: Annotated[Path, _DATA] = Path("data/emoji"),
    model: Annotated[Path | None, typer.Option(help="Pipeline folder; default: the embedded one.")] = None,
    hardware: Annotated[str, typer.Option(help="What it was trained on.")] = "2 CPU cores",
    command: Annotated[
        list[str] | None, typer.Option(help="A command after training; repeat for more.")
    ] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown to add under Limitations.")] = None,
    memorisation: Annotated[
        Path | None, typer.Option(help="report.json of `unclip eval memorisation`.")
    ] = None,
) -> None:
    """Write the model card MODEL/README.md and its sample grids from training runs and a report."""
    from unclip.data import CaptionedImages
    from unclip.eval.card import Facts, read_report, write_card
    from unclip.eval.memorisation import read_memorisation
    from unclip.pipelines.loading import locate

    _check_data(data)
    folder = Path(locate(model))
    measured = read_report(report)
    copied = read_memorisation(memorisation, measured["settings"].get("model")) if memorisation else None
    facts = Facts(
        report=measured,
        memorisation=copied,
        records=CaptionedImages(data, split=None).records,
        runs=_runs(runs),
        hardware=hardware,
        commands=tuple(command or ()),
        notes=_read_notes(notes) if notes else "",
    )
    typer.echo(str(write_card(facts, folder, grids=report.parent)))


@app.command("words")
def words_command(
    data: Annotated[Path, _DATA] = Path("data/emoji"),
    model: Annotated[str | None, _MODEL] = None,
    out: Annotated[Path, typer.Option(help="Folder for words.json and words.md.")] = Path("out/eval"),
    prompts: Annotated[int, typer.Option(help="Prompts of each kind and language.")] = 100,
    seed: Annotated[int, typer.Option(help="Settles the prompts.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of fetched packages.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, no table.")] = False,
) -> None:
    """Measure how plain words are understood: sentences, typing errors, spellings, plurals and languages."""
    report = _evaluate_words(data, model, out, prompts, seed, cache, device)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from unclip.eval.tables import print_tables
    from unclip.eval.words import table

    print_tables([table(report["rows"], report["keywords"])], Console())
    typer.echo(f"{out / 'words.md'}")


def _evaluate_words(
    data: Path, model: str | None, out: Path, prompts: int, seed: int, cache: Path | None, device: str
) -> dict[str, Any]:
    import json

    import numpy as np

    from unclip.data import CaptionedImages
    from unclip.data.lexicon import translated_names, translated_tags
    from unclip.data.sources import default_cache
    from unclip.errors import UserError
    from unclip.eval import words
    from unclip.eval.cache import cache_folder
    from unclip.eval.model import real_embeds
    from unclip.eval.tables import to_markdown
    from unclip.files import write_text
    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.loading import choose_device
    from unclip.pipelines.measured import as_model

    _check_data(data)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(choose_device(device))
    lexicon = pipe.lexicon
    if lexicon is None:
        raise UserError(
            "this model has no lexicon; make one with `unclip data lexicon`, then assemble with it"
        )
    adapter = as_model(pipe, min(pipe.sizes), {})
    pictures = CaptionedImages(data, split=None)
    packages = cache or default_cache()
    cases = words.make_cases(pictures.records, lexicon, translated_names(packages), prompts, seed)
    rows, subjects = words.one_picture_each(pictures.records)
    gallery = real_embeds(pictures, adapter, cache_folder(data, out))[rows]
    rng = np.random.default_rng(seed)
    tags = {
        code: [str(tag) for tag in rng.permutation(all_tags)[: 3 * prompts]]
        for code, all_tags in translated_tags(packages, lexicon).items()
    }
    report: dict[str, Any] = {
        "settings": {
            "prompts": prompts,
            "seed": seed,
            "subjects": len(subjects),
            "model": adapter.fingerprint,
        },
        "rows": words.measure(cases, pipe.understand, adapter.encode_text, gallery, subjects, seed),
        "keywords": words.unknown_tags(tags, pipe.understand, seed),
    }
    page = to_markdown(words.table(report["rows"], report["keywords"]))
    for name, text in (("words.json", json.dumps(report, indent=2)), ("words.md", page)):
        write_text(out / name, text)
    return report


def _evaluate(
    data: Path,
    model: str | None,
    out: Path,
    options: dict[str, Any],
    settings: dict[str, Any],
    judges: list[str],
    device: str,
) -> dict[str, Any]:
    import json

    from unclip.data import CaptionedImages
    from unclip.errors import UserError
    from unclip.eval.cache import cache_folder
    from unclip.eval.emoji import evaluate
    from unclip.eval.features import FEATURE_NETS, load_feature_net
    from unclip.eval.model import Options
    from unclip.eval.relations import RelationTest
    from unclip.eval.tables import report_markdown
    from unclip.files import write_text
    from unclip.pipelines.loading import choose_device
    from unclip.pipelines.measured import load_model

    # All that may be wrong is looked at before anything slow.
    _check_data(data)
    checked = Options(**options)
    place = choose_device(device)
    names = list(dict.fromkeys(judges or FEATURE_NETS)) if checked.prompts else []
    nets = [load_feature_net(name, place) for name in names]
    adapter = load_model(model, checked.size, settings, device)
    pictures = CaptionedImages(data, split=None)
    relations = None
    if checked.prompts and checked.relations:
        try:
            relations = RelationTest.make(pictures.only("train"), checked)
        except UserError as error:  # own data may have nothing to compose scenes of
            typer.echo(f"relations are left out: {error}", err=True)
    report = evaluate(pictures, adapter, nets, out, cache_folder(data, out), checked, relations)
    for name, text in (("report.json", json.dumps(report, indent=2)), ("report.md", report_markdown(report))):
        write_text(out / name, text)
    return report


def _runs(folder: Path) -> list[Run]:
    """All training runs in a folder, with the command that each was started by."""
    from unclip.eval.card import find_runs, train_command
    from unclip.train.cli import configure

    runs = []
    for run in find_runs(folder):
        preset = configure(run.config["stage"], run.config["preset"], [], {}, False)
        runs.append(run.started_by(train_command(run.config, _plain(preset))))
    return runs


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(OmegaConf.create(config.to_yaml()))
    return plain


def _read_notes(path: Path) -> str:
    from unclip.errors import UserError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the notes in {path}: {error}") from error
