"""Commands of `unclip eval` that compare variants of a model, and options that they share with the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unclip.eval.choice import Pictures
    from unclip.eval.features import FeatureNet
    from unclip.eval.pca import Basis
    from unclip.pipelines import UnCLIPTextToImagePipeline

app = typer.Typer()

DATA = typer.Option(help="Folder made by `unclip data build emoji`, or one .tar of it.")
MODEL = typer.Option(help="Pipeline folder or hub id; the embedded model by default.")
_OUT = typer.Option("--out", "--output", "-o", help="Folder to write into.")
_SEED = typer.Option(help="Settles pictures, prompts and noise.")
_JUDGE = typer.Option(help="mobilenet_v2 or efficientnet_lite0.")
_DEVICE = typer.Option(help="cpu, cuda, mps.")
_JSON = typer.Option("--json", help="Print the report as JSON, no tables.")
_BATCH = typer.Option(help="Pictures drawn at a time.")


@app.command("claims")
def claims_command(
    data: Annotated[Path, DATA] = Path("data/emoji"),
    model: Annotated[str | None, MODEL] = None,
    out: Annotated[Path, _OUT] = Path("out/claims"),
    prompts: Annotated[int, typer.Option(help="Half of them trained on, half of unseen styles.")] = 200,
    seed: Annotated[int, _SEED] = 0,
    text_decoder: Annotated[
        Path | None, typer.Option(help="A run of `unclip train decoder` on z_t in place of z_i.")
    ] = None,
    caption_decoder: Annotated[Path | None, typer.Option(help="A run of it on captions alone.")] = None,
    prior: Annotated[
        list[str] | None, typer.Option(help="To compare; repeat for more; by default all of the model.")
    ] = None,
    section: Annotated[
        list[str] | None, typer.Option(help="a, b, c, d, e or noise; repeat for more; by default all.")
    ] = None,
    judge: Annotated[str, _JUDGE] = "mobilenet_v2",
    varied: Annotated[int, typer.Option(help="Prompts drawn from 2 more seeds, for variety.")] = 20,
    sources: Annotated[int, typer.Option(help="Pictures to make variations of.")] = 40,
    batch_size: Annotated[int, _BATCH] = 8,
    device: Annotated[str, _DEVICE] = "cpu",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Compare priors, decoders, guidance and noise as the unCLIP paper does; writes claims.json, claims.md and plots.

    What OUT holds already of the same model and settings is not drawn or measured again; sections join those before.
    """
    from unclip.eval.claims import Bench, Options
    from unclip.eval.claims_report import claims_markdown, draw_plots, section_table
    from unclip.eval.claims_sections import Offered, check_sections, measure_claims
    from unclip.eval.plots import require_matplotlib
    from unclip.pipelines.measured import Variants, as_manipulator

    options = Options(prompts=prompts, seed=seed, varied=varied, sources=sources, batch_size=batch_size)
    wanted = check_sections(section or [])
    require_matplotlib()
    pictures, net, cache, pipe = _ready(data, model, out, judge, device)
    size = min(pipe.sizes)
    decoders = {
        name: path
        for name, path in (("text", text_decoder), ("caption", caption_decoder))
        if path is not None
    }
    variants = Variants(pipe, size, decoders)
    offered = Offered(_priors(pipe, prior or []), {name: _training(path) for name, path in decoders.items()})
    bench = Bench.of(pictures, variants(), net, out, cache, replace(options, size=size))
    manipulator = as_manipulator(pipe, size, {})
    report = measure_claims(
        bench, variants, manipulator, offered, wanted, lambda line: typer.echo(line, err=True)
    )
    draw_plots(report, out)
    tables = [section_table(name, each) for name, each in report["sections"].items()]
    _deliver(report, claims_markdown(report), tables, out / "claims.md", as_json)


@app.command("manipulations")
def manipulations_command(
    data: Annotated[Path, DATA] = Path("data/emoji"),
    model: Annotated[str | None, MODEL] = None,
    out: Annotated[Path, _OUT] = Path("out/manipulations"),
    pictures: Annotated[int, typer.Option(help="Pictures to change, over the kinds of change.")] = 120,
    seed: Annotated[int, _SEED] = 0,
    theta: Annotated[
        list[float] | None, typer.Option(help="How far, 0 to 0.5; repeat for more; by default several.")
    ] = None,
    via: Annotated[list[str] | None, typer.Option(help="prior, text or redraw; all by default.")] = None,
    noise: Annotated[list[str] | None, typer.Option(help="inverted, slerp or fresh; all by default.")] = None,
    round_trip: Annotated[int, typer.Option(help="Pictures inverted and decoded again; 0: none.")] = 24,
    judge: Annotated[str, _JUDGE] = "mobilenet_v2",
    grid: Annotated[int, typer.Option(help="Pictures in the grid of each kind.")] = 8,
    device: Annotated[str, _DEVICE] = "cpu",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Measure text diffs and the round trip of inversion; writes manipulations.json, manipulations.md and grids.

    What OUT holds already of the same model and settings is not drawn again.
    """
    from unclip.eval.manipulations import NOISES, THETAS, VIAS, Options, measure_manipulations
    from unclip.eval.manipulations_report import manipulations_markdown, manipulations_tables
    from unclip.pipelines.measured import as_manipulator

    options = Options(
        pictures=pictures,
        seed=seed,
        round_trip=round_trip,
        grid=grid,
        thetas=tuple(theta or THETAS),
        vias=tuple(via or VIAS),
        noises=tuple(noise or NOISES),
    )
    shown, net, cache, pipe = _ready(data, model, out, judge, device)
    size = min(pipe.sizes)
    report = measure_manipulations(
        shown,
        as_manipulator(pipe, size, {}),
        net,
        out,
        cache,
        replace(options, size=size),
        lambda line: typer.echo(line, err=True),
    )
    page = manipulations_markdown(report)
    _deliver(report, page, manipulations_tables(report), out / "manipulations.md", as_json)


@app.command("pca")
def pca_command(
    image: Annotated[list[Path], typer.Argument(help="Pictures.")],
    components: Annotated[
        str | None, typer.Option(help="How many to keep, e.g. 1,4,16; by default powers of two.")
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    data: Annotated[
        Path | None, typer.Option(help="Pictures to find components of, if the model has no AR prior.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="PNG to write.")] = Path("out/pca.png"),
    seed: Annotated[int, typer.Option(help="Of x_T, the same in all pictures.")] = 0,
    size: Annotated[int | None, typer.Option(help="Side in pixels; by default the decoder's.")] = None,
    device: Annotated[str, _DEVICE] = "cpu",
) -> None:
    """Decode pictures from ever more principal components of z_i (unCLIP, figure 7), a row for each."""
    from unclip.cli.options import read_numbers
    from unclip.eval.cache import cache_folder
    from unclip.eval.grids import save_rows
    from unclip.eval.pca import frames
    from unclip.files import check_writable
    from unclip.pipelines.manipulation import CLIP_SEES_AT
    from unclip.pipelines.pictures import to_output
    from unclip.pipelines.reading import read_pictures
    from unclip.pipelines.stages import generators

    wanted = None if components is None else read_numbers(components, "--components", whole=True)
    if data is not None:
        check_data(data)
    check_writable(out.parent)
    given = read_pictures(image, CLIP_SEES_AT).rgb
    pipe = _pipeline(model, device)
    basis = _basis(pipe, data, None if data is None else cache_folder(data, out.parent))
    embeds, headings = frames(basis, pipe.clip.encode_image(given.to(pipe.device)), basis.counts(wanted))
    rows = []
    for path, source, each in zip(image, to_output(given, "pil"), embeds, strict=True):
        # A generator of its own for each, all of one seed: they differ in z_i alone.
        made = pipe(image_embeds=each, size=size or min(pipe.sizes), generator=generators([seed] * len(each)))
        rows.append((path.name, [source, *made.images]))
    save_rows(rows, ["source", *headings], out)
    typer.echo(str(out))


def _basis(pipe: UnCLIPTextToImagePipeline, data: Path | None, cache: Path | None) -> Basis:
    """The principal components of the model's AR prior, or those of the data's embeddings where there is data.

    Raises:
        UserError: there is neither.
    """
    from unclip.data import CaptionedImages
    from unclip.errors import UserError
    from unclip.eval.claims_sections import AUTOREGRESSIVE
    from unclip.eval.model import real_embeds
    from unclip.eval.pca import Basis
    from unclip.pipelines.measured import as_model

    if data is not None and cache is not None:
        model = as_model(pipe, min(pipe.sizes), {})
        return Basis.fit(real_embeds(CaptionedImages(data, split=None), model, cache))
    if AUTOREGRESSIVE not in pipe.prior_names:
        raise UserError("this model has no AR prior, whose components are used: give pictures by --data")
    prior = pipe.prior_of(AUTOREGRESSIVE)
    return Basis(prior.embed_mean.float(), prior.axes.float())


def check_data(data: Path) -> None:
    """Whether there is data.

    Raises:
        UserError: there is none.
    """
    from unclip.errors import UserError

    if not data.exists():
        raise UserError(f"no data at {data}; build it first: unclip data build emoji --out {data}")


def _ready(
    data: Path, model: str | None, out: Path, judge: str, device: str
) -> tuple[Pictures, FeatureNet, Path, UnCLIPTextToImagePipeline]:
    """Real pictures, the judge, the cache of features and the pipeline; all that may be wrong is said here."""
    from unclip.data import CaptionedImages
    from unclip.eval.cache import cache_folder
    from unclip.eval.features import load_feature_net
    from unclip.files import check_writable
    from unclip.pipelines.loading import choose_device

    check_data(data)
    check_writable(out)
    net = load_feature_net(judge, choose_device(device))
    pipe = _pipeline(model, device)
    return CaptionedImages(data, split=None), net, cache_folder(data, out), pipe


def _training(run: Path) -> str:
    """How long a run of `unclip train` trained, by its config.yaml."""
    import yaml

    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        start = "from given weights" if config["initial"] else "from nothing"
        return f"{config['steps']} steps of {config['batch_size']} pictures, {start}"
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return "training that its folder does not tell"


def _pipeline(model: str | None, device: str) -> UnCLIPTextToImagePipeline:
    from unclip.cli.options import load_pipeline

    return load_pipeline(model, device, "float32", progress=False)


def _priors(pipe: UnCLIPTextToImagePipeline, named: list[str]) -> list[str]:
    """The names asked for, or all; each is loaded, so that a damaged one is found before the work."""
    from unclip.eval.claims_sections import DIFFUSION, NONE

    names = list(dict.fromkeys([DIFFUSION, *named, NONE])) if named else pipe.prior_names
    for name in names:
        pipe.prior_of(name)
    return names


def _deliver(report: dict[str, Any], page: str, tables: list[Any], path: Path, as_json: bool) -> None:
    """Write the page; print the report, or its tables and where the page is."""
    from unclip.files import write_text

    write_text(path, page)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console

    from unclip.eval.tables import print_tables

    print_tables(tables, Console())
    typer.echo(str(path))
