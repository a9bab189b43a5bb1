"""Priors by name: what each gives, that any serves every pipeline, folders, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.testing import assert_close

from unclip import pipelines
from unclip.errors import UserError
from unclip.models import RegressionPrior
from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.priors import Draw, draw_embeds
from unclip.pipelines.stages import image_seeds

SHORT, LONG = "a red apple", "a small blue house on the left of the green cat"
KINDS = ["diffusion", "ar", "regression", "recall", "linear"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeds(pipe: Any, prompt: Any, prior: Any = None, **options: Any) -> Tensor:
    made = pipe(prompt, prior=prior, size=16, output_type="pt", **{"generator": seeded(), **options})
    return made.image_embeds


# ---- what a prior gives ------------------------------------------------------------------------------------------


def test_none_gives_the_captions_own_embedding(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    z_t = tiny_pipeline.clip.encode_text([SHORT, LONG]).embeds
    assert_close(embeds(tiny_pipeline, [SHORT, LONG], "none"), z_t, rtol=0, atol=1e-6)


def test_the_default_is_the_component(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    plain = embeds(tiny_pipeline, SHORT)
    assert torch.equal(embeds(tiny_pipeline, SHORT, "diffusion"), plain)
    assert torch.equal(embeds(tiny_pipeline, SHORT, tiny_pipeline.prior), plain)
    assert tiny_pipeline.prior_of(None) is tiny_pipeline.prior


def test_a_linear_prior_is_its_map(
    tiny_pipeline: UnCLIPTextToImagePipeline, priors: dict[str, nn.Module]
) -> None:
    linear: Any = priors["linear"]
    z_t = tiny_pipeline.clip.encode_text([SHORT]).embeds
    expected = F.normalize(F.linear(z_t, linear.weight, linear.bias), dim=-1)
    assert_close(embeds(tiny_pipeline, SHORT, linear), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(
    tiny_pipeline: UnCLIPTextToImagePipeline, priors: dict[str, nn.Module], kind: str
) -> None:
    options = {"prior_guidance_scale": 2.0, "num_prior_candidates": 3}
    together = embeds(tiny_pipeline, [LONG, SHORT], priors[kind], num_images_per_prompt=2, **options)
    alone = embeds(tiny_pipeline, SHORT, priors[kind], num_images_per_prompt=2, **options)
    assert_close(together[2:], alone, rtol=0, atol=1e-4)
    assert_close(together.norm(dim=-1), torch.ones(4))
    assert (together[0] - together[2]).abs().max() > 1e-3  # captions differ
    assert torch.equal(together[2], together[3]) == (kind in ("regression", "linear"))  # no chance in these
    assert torch.equal(embeds(tiny_pipeline, SHORT, priors[kind], num_images_per_prompt=2, **options), alone)


@pytest.mark.parametrize("kind", ["diffusion", "ar", "recall"])
def test_the_best_of_n_candidates_is_kept(
    tiny_pipeline: UnCLIPTextToImagePipeline, priors: dict[str, nn.Module], kind: str
) -> None:
    encode = tiny_pipeline.clip.encode_text
    text, nothing = encode([SHORT], things=True), encode([""])
    (seed,) = image_seeds(seeded(), 1, 1)
    generators = [seed.generator("prior", k) for k in range(5)]
    settings = tiny_pipeline.settings(num_prior_candidates=5)
    drawn = draw_embeds(
        priors[kind], Draw(text, nothing, generators, settings, tiny_pipeline.prior_scheduler)
    )
    assert drawn.shape == (5, 12)
    best = (drawn @ text.embeds[0]).argmax()
    made = embeds(tiny_pipeline, SHORT, priors[kind], num_prior_candidates=5)
    assert_close(made[0], drawn[best], rtol=0, atol=1e-5)


def test_temperature_and_top_p_reach_the_autoregressive_prior(
    tiny_pipeline: UnCLIPTextToImagePipeline, priors: dict[str, nn.Module]
) -> None:
    def spread(**options: Any) -> float:
        options = {"num_prior_candidates": 1, "num_images_per_prompt": 24, **options}
        return float(embeds(tiny_pipeline, SHORT, priors["ar"], **options).std(0).mean())

    plain = spread()
    assert spread(prior_temperature=0.2) < 0.8 * plain
    assert spread(prior_top_p=0.2) < 0.8 * plain


def test_a_call_draws_as_the_autoregressive_prior_does_by_default(
    tiny_pipeline: UnCLIPTextToImagePipeline, priors: dict[str, nn.Module]
) -> None:
    ar: Any = priors["ar"]
    (seed,) = image_seeds(seeded(), 1, 1)
    alone = ar.sample(tiny_pipeline.clip.encode_text([SHORT]), [seed.generator("prior", 0)])
    made = embeds(tiny_pipeline, SHORT, ar, num_prior_candidates=1)
    assert_close(made, alone, rtol=0, atol=1e-6)
    assert (
        embeds(tiny_pipeline, SHORT, ar, num_prior_candidates=1, prior_top_p=1.0) - made
    ).abs().max() > 1e-3


# ---- in every pipeline -------------------------------------------------------------------------------------------


def own_arguments(pictures: list[Tensor]) -> dict[str, dict[str, Any]]:
    """The own arguments of each pipeline that asks a prior."""
    mask = torch.zeros(16, 16)
    mask[4:9, 4:9] = 1
    return {
        "UnCLIPTextToImagePipeline": {"prompt": SHORT},
        "UnCLIPInterpolationPipeline": {"inputs": [f"prompt:{SHORT}", pictures[0]]},
        "UnCLIPTextDiffPipeline": {
            "image": pictures[0],
            "source_prompt": "a cat",
            "target_prompt": LONG,
        },
        "UnCLIPImg2ImgPipeline": {"prompt": SHORT, "image": pictures[0]},
        "UnCLIPInpaintPipeline": {
            "prompt": SHORT,
            "image": pictures[0],
            "mask_image": mask,
        },
    }


PIPELINES = list(own_arguments([torch.zeros(1)]))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_kind_in_every_pipeline(
    made_from: Callable[[Any], Any], priors: dict[str, nn.Module], pictures: list[Tensor], name: str
) -> None:
    pipe = made_from(getattr(pipelines, name))
    arguments = own_arguments(pictures)[name]
    found = []
    for kind in [*KINDS, "none"]:
        options = {"size": 16, "output_type": "pt", "decoder_num_inference_steps": 3}
        made = pipe(**arguments, **options, prior=priors.get(kind, kind), generator=seeded())
        assert made.images.isfinite().all()
        assert_close(made.image_embeds.norm(dim=-1), torch.ones(1))
        found.append(made.image_embeds[0])
    apart = torch.cdist(torch.stack(found), torch.stack(found)) + torch.eye(len(found))
    assert apart.min() > 1e-3  # each prior has its own opinion


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tiny_model: Path, priors: dict[str, nn.Module]) -> Path:
    """The folder of a tiny model with two further priors."""
    for name in ("ar", "linear"):
        priors[name].save_pretrained(tiny_model / "priors" / name)  # type: ignore[operator]
    return tiny_model


@pytest.mark.parametrize("loader", [UnCLIPTextToImagePipeline, DiffusionPipeline])
def test_priors_are_found_saved_and_found_again(
    several: Path, priors: dict[str, nn.Module], tmp_path: Path, loader: Any
) -> None:
    pipe = loader.from_pretrained(str(several))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.prior_names == ["diffusion", "ar", "linear", "none"]
    expected = {name: embeds(pipe, SHORT, priors[name]) for name in ("ar", "linear")}
    for name in expected:
        assert torch.equal(embeds(pipe, SHORT, name), expected[name])
        assert pipe.prior_of(name) is pipe.prior_of(name)  # read once
    pipe.save_pretrained(tmp_path / "again")
    again = loader.from_pretrained(str(tmp_path / "again"))
    again.set_progress_bar_config(disable=True)
    assert again.prior_names == pipe.prior_names
    for name in expected:
        assert torch.equal(embeds(again, SHORT, name), expected[name])
    pipe.save_pretrained(several)  # over itself
    assert loader.from_pretrained(str(several)).prior_names == pipe.prior_names


def test_unknown_names_and_kinds(several: Path, tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    with pytest.raises(UserError, match="no prior 'ar' in this model: choose one of diffusion, none"):
        tiny_pipeline(SHORT, prior="ar")
    pipe = UnCLIPTextToImagePipeline.from_pretrained(several)
    with pytest.raises(UserError, match=r"no prior 'best' .*: choose one of diffusion, ar, linear, none"):
        pipe(SHORT, prior="best")
    with pytest.raises(UserError, match=r"a name or one of DiffusionPrior, .*, got Linear"):
        tiny_pipeline(SHORT, prior=nn.Linear(2, 2))
    with pytest.raises(UserError, match="Linear is no prior: give one of DiffusionPrior"):
        draw_embeds(nn.Linear(2, 2), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sizes", "message"), [((8, 20), "embed_dim is 8"), ((12, 9), "token_dim is 9")])
def test_priors_of_another_clip_are_refused(several: Path, sizes: tuple[int, int], message: str) -> None:
    other = RegressionPrior.identity(*sizes)
    other.save_pretrained(several / "priors" / "other")
    pipe = UnCLIPTextToImagePipeline.from_pretrained(several)
    for prior in (other, "other"):
        with pytest.raises(UserError, match=f"trained on another CLIP: its {message}, CLIP's is"):
            pipe(SHORT, prior=prior)
