"""`unclip eval …`. Only typer is imported at the top, so that `unclip --help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unclip.eval.card import Run
    from unclip.eval.emoji import Model
    from unclip.pipelines import UnCLIPTextToImagePipeline

app = typer.Typer(help="Measure a model and write its card.", no_args_is_help=True)

_DATA = typer.Option(help="Folder made by `unclip data build emoji`, or one .tar of it.")
_MODEL = typer.Option(help="Pipeline folder or hub id; the embedded model by default.")


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
    judge: Annotated[str, typer.Option(help="mobilenet_v2 or efficientnet_lite0.")] = "mobilenet_v2",
    grid: Annotated[int, typer.Option(help="Pictures of each split in its sample grid.")] = 24,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at a time.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, no tables.")] = False,
) -> None:
    """Measure a model on seen and held-out captions; writes report.json, report.md, pictures and grids.

    Pictures that OUT/images holds already from the same model and settings are not drawn again.
    """
    options = {"prompts": prompts, "seed": seed, "size": size, "grid": grid, "batch_size": batch_size}
    settings = {
        "prior_num_inference_steps": prior_steps,
        "decoder_num_inference_steps": decoder_steps,
        "upsampler_num_inference_steps": upsampler_steps,
        "prior_guidance_scale": prior_guidance,
        "decoder_guidance_scale": decoder_guidance,
        "num_prior_candidates": candidates,
        "noise_level": noise_level,
    }
    report = _evaluate(data, model, out, options, settings, judge, device)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from unclip.eval.tables import print_report

    print_report(report, Console())
    typer.echo(f"{out / 'report.md'}")


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
) -> None:
    """Write the model card MODEL/README.md and its sample grids from training runs and a report."""
    from unclip.data import CaptionedImages
    from unclip.eval.card import Facts, read_report, write_card
    from unclip.pipelines.loading import locate

    _check_data(data)
    folder = Path(locate(model))
    facts = Facts(
        report=read_report(report),
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

    from unclip.eval.tables import print_table
    from unclip.eval.words import table

    print_table(table(report["rows"], report["keywords"]), Console())
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
    from unclip.eval.emoji import real_embeds
    from unclip.eval.tables import to_markdown
    from unclip.files import atomic_path
    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.loading import choose_device

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
        with atomic_path(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return report


def _evaluate(
    data: Path,
    model: str | None,
    out: Path,
    options: dict[str, Any],
    settings: dict[str, Any],
    judge: str,
    device: str,
) -> dict[str, Any]:
    import json

    from unclip.data import CaptionedImages
    from unclip.errors import UserError
    from unclip.eval.cache import cache_folder
    from unclip.eval.emoji import Options, evaluate
    from unclip.eval.features import load_feature_net
    from unclip.eval.tables import report_markdown
    from unclip.files import atomic_path
    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.loading import choose_device

    # All that may be wrong is looked at before anything slow.
    _check_data(data)
    checked = Options(**options)
    device = choose_device(device)
    net = load_feature_net(judge, device) if checked.prompts else None
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(device)
    if checked.size not in pipe.sizes:
        offered = ", ".join(str(side) for side in pipe.sizes)
        raise UserError(f"size {checked.size} is not offered by this model; choose one of: {offered}")
    adapter = as_model(pipe, checked.size, settings)
    pictures = CaptionedImages(data, split=None)
    report = evaluate(pictures, adapter, net, out, cache_folder(data, out), checked)
    for name, text in (("report.json", json.dumps(report, indent=2)), ("report.md", report_markdown(report))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return report


def as_model(pipe: UnCLIPTextToImagePipeline, size: int, given: dict[str, Any]) -> Model:
    """A pipeline as evaluation sees it; `given` overrides the model's own settings where it is not None."""
    from dataclasses import asdict

    import torch

    from unclip.eval.emoji import Model
    from unclip.pipelines.stages import image_seeds, sample_prior

    pipe.set_progress_bar_config(disable=True)
    settings = pipe.settings(**given)

    def generators(seeds: Any) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def encode_image(pictures: Any) -> torch.Tensor:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(pipe.device)
        return pipe.clip.encode_image(pixels.float() / 127.5 - 1)

    @torch.no_grad()
    def make_embeds(prompts: Any, seeds: Any) -> torch.Tensor:
        return sample_prior(
            pipe.prior,
            pipe.prior_scheduler,
            pipe.clip.encode_text(list(prompts)),
            pipe.clip.encode_text([""]),
            image_seeds(generators(seeds), len(prompts), 1),
            num_inference_steps=settings.prior_num_inference_steps,
            guidance_scale=settings.prior_guidance_scale,
            num_candidates=settings.num_prior_candidates,
        )

    def generate(prompts: Any, seeds: Any) -> Any:
        return pipe(list(prompts), size=size, generator=generators(seeds), **asdict(settings)).images

    return Model(
        encode_image=encode_image,
        encode_text=lambda texts: pipe.clip.encode_text(list(texts)).embeds,
        make_embeds=make_embeds,
        generate=generate,
        fingerprint=_fingerprint(pipe),
        clip_fingerprint=pipe.clip.fingerprint(),
        settings=asdict(settings),
    )


def _fingerprint(pipe: UnCLIPTextToImagePipeline) -> str:
    """Of all weights and scheduler settings of a pipeline, wherever it was loaded from."""
    import hashlib
    import json

    from torch import nn

    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        digest.update(name.encode())
        if isinstance(component, nn.Module):
            for tensor in component.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        elif component is not None and hasattr(component, "config"):
            digest.update(json.dumps(dict(component.config), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


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


def _check_data(data: Path) -> None:
    from unclip.errors import UserError

    if not data.exists():
        raise UserError(f"no data at {data}; build it first: unclip data build emoji --out {data}")


def _read_notes(path: Path) -> str:
    from unclip.errors import UserError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the notes in {path}: {error}") from error
