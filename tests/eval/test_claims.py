"""Claims on models whose figures are known: the perfect one, and one that draws anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from unclip.errors import UserError
from unclip.eval import features, plots
from unclip.eval.bootstrap import told_apart
from unclip.eval.choice import Pictures
from unclip.eval.claims import Bench, Options, Variants, psnr
from unclip.eval.claims_report import claims_markdown, draw_plots, sentence
from unclip.eval.claims_sections import Offered, check_sections, measure_claims
from unclip.eval.cli import app
from unclip.eval.features import FeatureNet
from unclip.eval.frechet import FrechetTo, fit_gaussian, frechet_distance
from unclip.eval.model import Manipulator, Model

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "emoji-fixture.tar"
OPTIONS = Options(prompts=16, varied=4, sources=4, progress=False)
OFFERED = Offered(["diffusion", "none"])


@pytest.fixture
def coarse_net() -> FeatureNet:
    """48 features: their distances are quick to find."""
    return FeatureNet("Coarse", lambda pictures: F.avg_pool2d(pictures, 40).flatten(1))


@pytest.fixture
def bench(drawn: Pictures, perfect_model: Model, coarse_net: FeatureNet, tmp_path: Path) -> Bench:
    return Bench.of(drawn, perfect_model, coarse_net, tmp_path / "out", tmp_path / "cache", OPTIONS)


@pytest.fixture
def careless(drawn: Pictures, perfect_model: Model) -> Model:
    """Draws one picture or another, all too dark, whatever is asked."""

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(drawn.rgb(seed % len(drawn), 64) // 4) for seed in seeds]

    def make_embeds(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    return replace(perfect_model, generate=generate, make_embeds=make_embeds, fingerprint="careless")


def variants_of(by_prior: dict[str, Model]) -> Variants:
    """Settings are kept in the stamp, as those of a pipeline are."""

    def variants(decoder: str | None = None, prior: str = "diffusion", **given: Any) -> Model:
        settings = {"decoder": decoder, "prior": prior, **given}
        return replace(by_prior[prior], settings=settings)

    return variants


@pytest.fixture
def manipulator(drawn: Pictures) -> Manipulator:
    """Gives the picture again up to eta .5, then the negative."""

    def vary(
        pictures: np.ndarray, seeds: Sequence[int], *, noise: str, eta: float = 1.0
    ) -> list[Image.Image]:
        return [Image.fromarray(each if eta <= 0.5 else drawn.rgb(0, 64)) for each in pictures]

    return Manipulator(vary=vary, diff=vary, fingerprint="varied")


def test_the_row_of_a_perfect_model_and_of_a_careless_one(
    bench: Bench, perfect_model: Model, careless: Model
) -> None:
    assert len(bench.asked) == 12  # six of a held-out style, and as many trained on
    assert [a.split for a in bench.asked[:4]] == ["train", "style", "train", "style"]
    perfect, other = bench.measure(perfect_model), bench.measure(careless)
    for name in ("cosine", "text", "top1", "subject", "held_out", "precision", "recall"):
        assert perfect[name]["value"] == pytest.approx(1), name
    assert perfect["diversity"]["value"] == pytest.approx(0, abs=1e-6)
    assert set(perfect["seconds"]) == {"prior", "decoder"}
    assert perfect["cosine"]["n"] == 12
    assert perfect["held_out"]["n"] == 6
    assert other["cosine"]["high"] < 0.3
    assert other["subject"]["value"] < 0.7
    assert other["frechet"]["low"] > perfect["frechet"]["high"]


def test_another_picture_for_every_seed_is_diverse(
    bench: Bench, drawn: Pictures, perfect_model: Model
) -> None:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(drawn.rgb(seed % len(drawn), 64)) for seed in seeds]

    assert bench.measure(replace(perfect_model, generate=generate))["diversity"]["low"] > 0.3


def test_a_decoder_of_captions_alone_has_no_embeddings(bench: Bench, perfect_model: Model) -> None:
    figures = bench.measure(replace(perfect_model, settings={"captions_only": True}))
    assert not {"cosine", "text", "top1"} & figures.keys()
    assert set(figures["seconds"]) == {"decoder"}
    assert figures["subject"]["value"] == 1


def test_what_was_measured_is_read_and_a_cut_run_goes_on(bench: Bench, perfect_model: Model) -> None:
    calls: list[str] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        if len(calls) == 2:
            calls.append("cut")
            raise KeyboardInterrupt
        calls.append("drawn")
        return perfect_model.generate(prompts, seeds)

    model = replace(perfect_model, generate=generate)
    bench.options = replace(OPTIONS, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(model)
    figures = bench.measure(model)
    # 12 prompts in batches of 4, then one batch for each further seed of the first four; none twice.
    assert calls == ["drawn", "drawn", "cut", "drawn", "drawn", "drawn"]
    assert bench.measure(model) == figures
    assert len(calls) == 6
    bench.measure(replace(model, settings={"steps": 2}))  # another variant
    assert len(calls) == 11


def test_sections_join_and_sentences_follow_the_figures(
    bench: Bench, perfect_model: Model, careless: Model, manipulator: Manipulator
) -> None:
    right = variants_of({"diffusion": perfect_model, "none": careless})
    told: list[str] = []
    report = measure_claims(bench, right, manipulator, OFFERED, ["a"], told.append)
    assert told == ["a: diffusion", "a: none"]
    said = sentence("a", report["sections"]["a"]["rows"])
    assert said.count("holds") == 2
    assert "not" not in said
    assert report["sections"]["a"]["notes"] == [
        "A decoder trained on z_t is left out; give one by --text-decoder."
    ]

    report = measure_claims(bench, right, manipulator, OFFERED, ["e"])
    assert list(report["sections"]) == ["a", "e"]
    assert json.loads((bench.out / "claims.json").read_text()) == report
    rows = {row["name"]: row["figures"] for row in report["sections"]["e"]["rows"]}
    for eta in ("eta 0", "eta 0.25", "eta 0.5"):
        assert rows[eta]["psnr"]["value"] == pytest.approx(100)
        assert rows[eta]["clip"]["value"] == pytest.approx(1)
        assert rows[eta]["judge"]["value"] == pytest.approx(1)
    assert rows["eta 1"] == rows["fresh x_T"]
    assert rows["eta 1"]["psnr"]["value"] < 20

    wrong = variants_of({"diffusion": careless, "none": perfect_model})
    other = measure_claims(bench, wrong, manipulator, OFFERED, ["a"])
    assert list(other["sections"]) == ["a"]  # another model: what was measured of the first is not joined
    said = sentence("a", other["sections"]["a"]["rows"])
    assert said.count("does not hold") == 2


def test_every_section_has_its_table_sentence_and_plot(
    drawn: Pictures,
    perfect_model: Model,
    careless: Model,
    manipulator: Manipulator,
    coarse_net: FeatureNet,
    tmp_path: Path,
) -> None:
    few = replace(OPTIONS, prompts=8, varied=1, sources=1)
    bench = Bench.of(drawn, perfect_model, coarse_net, tmp_path / "out", tmp_path / "cache", few)
    models = {"diffusion": perfect_model, "none": careless, "ar": perfect_model}
    offered = Offered(["ar", "diffusion", "none"], {"text": "1 step of 2 pictures, from nothing"})
    report = measure_claims(bench, variants_of(models), manipulator, offered, check_sections([]))
    page = claims_markdown(report)
    draw_plots(report, bench.out)
    for name in report["sections"]:
        with Image.open(bench.out / f"{name}.png") as plot:
            assert plot.width > 1000
        assert f"({name}.png)" in page
    for part in (
        "Against a decoder trained on z_t",
        "had 1 step of 2 pictures, from nothing: other training than the model's own",
        "With ar, 8 in place of 1 does not measurably change z_i · z_t (1.000",
        "give one that learned nothing else by --caption-decoder",
        "| diffusion, DPM-Solver++, 64 steps |",
        "none: distance least at 0",
    ):
        assert part in page, part
    n = {name: len(section["rows"]) for name, section in report["sections"].items()}
    assert n == {"a": 3, "b": 11, "c": 8, "d": 12, "e": 6, "noise": 15}
    # What two sections share was measured once.
    same = [report["sections"][s]["rows"][i]["figures"] for s, i in (("a", 0), ("b", 1))]
    assert same[0] == same[1]


def row(series: str, x: float, diversity: float, **more: float) -> dict[str, Any]:
    figures = {"diversity": diversity, **more}
    plain = {k: {"value": v, "low": v - 0.01, "high": v + 0.01, "n": 9} for k, v in figures.items()}
    return {"name": f"{series} {x}", "series": series, "x": x, "figures": plain}


@pytest.mark.parametrize(
    ("kept", "rest", "said"),
    [
        (0.6, 0.3, "keeps 75 % of its diversity"),
        (0.6, 0.3, "the claim holds"),
        (0.3, 0.6, "the claim does not hold"),
        (0.6, 0.6, "cannot be told"),
    ],
)
def test_guidance_is_judged_by_what_is_left_of_diversity(kept: float, rest: float, said: str) -> None:
    rows = [row("unCLIP", 1, 0.8), row("unCLIP", 8, kept), row("others", 1, 0.8), row("others", 8, rest)]
    assert said in sentence("d", rows)


def test_figures_are_told_apart_by_their_intervals() -> None:
    low, high = ({"value": v, "low": v - 3, "high": v + 3} for v in (10.0, 16.0))
    near = {"value": 14.0, "low": 11, "high": 17}
    assert (told_apart(high, low), told_apart(low, high), told_apart(near, low)) == (1, -1, 0)


def test_the_quick_distance_is_that_of_the_fitted_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    large, small = torch.randn(300, 6, generator=rng), torch.randn(20, 6, generator=rng) * 2 + 1
    found = FrechetTo(large).estimate(small)
    assert found.value == pytest.approx(frechet_distance(fit_gaussian(small), fit_gaussian(large)), rel=1e-6)
    assert found.low < found.value < found.high
    assert found.n == 20
    few = FrechetTo(large).estimate(small[:4])  # fewer samples than features
    assert few.value == pytest.approx(
        frechet_distance(fit_gaussian(small[:4]), fit_gaussian(large)), rel=1e-6
    )
    assert few.high - few.low > found.high - found.low


def test_psnr() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == pytest.approx(100)
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


@pytest.fixture
def stand_in_judge(coarse_net: FeatureNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(features.FEATURE_NETS, "mobilenet_v2", lambda device: coarse_net)


@pytest.mark.usefixtures("stand_in_judge")
@pytest.mark.filterwarnings("ignore:text longer than")
def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["claims", "--data", FIXTURE, "--model", tiny_model, "--out", tmp_path / "out"]
    arguments += ["--prompts", 8, "--varied", 1, "--sources", 1]
    arguments += ["--section", "a", "--text-decoder", tiny_model / "decoder", "--json"]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    report = json.loads(result.stdout)
    assert [row["name"] for row in report["sections"]["a"]["rows"]][2] == "decoder trained on z_t"
    assert "training that its folder does not tell" in report["sections"]["a"]["notes"][0]
    assert "A prior against none" in (tmp_path / "out" / "claims.md").read_text()


@pytest.mark.usefixtures("stand_in_judge")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "unclip data build emoji --out nowhere"),
        (["--prompts", "3"], "prompts must be at least 8, got 3"),
        (["--section", "f"], "unknown section 'f': choose from a, b, c, d, e, noise"),
        (["--prior", "oracle"], "no prior 'oracle' in this model"),
        (["--judge", "inception"], "expected one of: mobilenet_v2"),
        (["--text-decoder", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    given = ["claims", "--data", FIXTURE, "--model", tiny_model, "--out", tmp_path / "out", *arguments]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        plots.save_panels([], tmp_path / "plot.png")
