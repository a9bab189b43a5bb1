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
_OUTPUT = typer.Option("--output", "--out", "-o", help="Folder to write into.")
_SETTING = typer.Option(
    metavar="KEY=VALUE", help="Of a call, e.g. decoder_guidance_scale=3; repeat for more."
)
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
    from unclip.files import atomic_path, check_writable
    from unclip.pipelines.loading import choose_device

    _check_data(data)
    options = Options(prompts=prompts, seed=seed, size=size, batch_size=batch_size, top=top)
    given = dict(read_number(each, "--setting") for each in setting or [])
    for folder in (output, images):
        check_writable(folder)
    net = load_feature_net(judge, choose_device(device))
    adapter = _load(model, size, given, device)
    pictures = CaptionedImages(data, split=None)
    report = evaluate_memorisation(
        pictures, adapter, net, output, images, cache_folder(data, output), options
    )
    with atomic_path(output / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
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
    from unclip.eval.gallery import check_splits, draw_gallery, read_seeds, sections
    from unclip.files import check_writable

    numbers, chosen = read_seeds(seeds), sections(section)
    if data is not None:
        from unclip.data import CaptionedImages

        _check_data(data)
        check_splits(chosen, CaptionedImages(data, split=None).records)
    check_writable(output)
    adapter = _load(model, size, {}, device, dtype)
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
    from unclip.eval.cache import cache_folder
    from unclip.eval.emoji import Options, evaluate
    from unclip.eval.features import load_feature_net
    from unclip.eval.tables import report_markdown
    from unclip.files import atomic_path
    from unclip.pipelines.loading import choose_device

    # All that may be wrong is looked at before anything slow.
    _check_data(data)
    checked = Options(**options)
    net = load_feature_net(judge, choose_device(device)) if checked.prompts else None
    adapter = _load(model, checked.size, settings, device)
    pictures = CaptionedImages(data, split=None)
    report = evaluate(pictures, adapter, net, out, cache_folder(data, out), checked)
    for name, text in (("report.json", json.dumps(report, indent=2)), ("report.md", report_markdown(report))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return report


def _load(
    model: str | None, size: int, settings: dict[str, Any], device: str, dtype: str = "float32"
) -> Model:
    """A model on its device, whose pictures have `size` pixels; all that may be wrong is said here."""
    from dataclasses import replace

    from unclip.cli import torch_dtype
    from unclip.errors import UserError
    from unclip.pipelines import UnCLIPTextToImagePipeline
    from unclip.pipelines.loading import choose_device

    precision, place = torch_dtype(dtype), choose_device(device)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model).to(place)
    if size not in pipe.sizes:
        offered = ", ".join(str(side) for side in pipe.sizes)
        raise UserError(f"size {size} is not offered by this model; choose one of: {offered}")
    adapter = as_model(pipe, size, settings)  # its fingerprint is that of the weights as they are stored
    if dtype == "float32":
        return adapter
    pipe.to(precision)
    return replace(adapter, settings={**adapter.settings, "dtype": dtype})


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
