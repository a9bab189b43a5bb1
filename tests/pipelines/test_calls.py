"""What every pipeline's call takes, and pipelines made of one another's components or loaded by their class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from unclip import pipelines
from unclip.data.words import LEXICON_FILE, Lexicon
from unclip.errors import UserError
from unclip.pipelines import (
    UnCLIPImg2ImgPipeline,
    UnCLIPPipelineOutput,
    UnCLIPTextToImagePipeline,
    UnCLIPUpscalePipeline,
    UnCLIPVariationPipeline,
)
from unclip.pipelines.calls import CallOptions
from unclip.pipelines.components import COMPONENTS, DEFAULTS

CLASSES = [
    name for name in pipelines.__all__ if name.endswith("Pipeline") and name != "UnCLIPPriorPipeline"
]  # that make pictures
PROMPT = "a red apple"
LEXICON = Lexicon({"a": 9, "red": 5, "apple": 5}, languages={"es": {"manzana": "apple"}})


def own_arguments(picture: Tensor) -> dict[str, dict[str, Any]]:
    """What a pipeline's call has to be given."""
    mask = torch.zeros(16, 16)
    mask[4:9, 4:9] = 1
    return {
        "UnCLIPTextToImagePipeline": {"prompt": PROMPT},
        "UnCLIPVariationPipeline": {"image": picture, "eta": 0.5},
        "UnCLIPInterpolationPipeline": {"inputs": [f"prompt:{PROMPT}", picture]},
        "UnCLIPTextDiffPipeline": {
            "image": picture,
            "source_prompt": PROMPT,
            "target_prompt": "a small house",
        },
        "UnCLIPImg2ImgPipeline": {"prompt": PROMPT, "image": picture},
        "UnCLIPInpaintPipeline": {"prompt": PROMPT, "image": picture, "mask_image": mask},
        "UnCLIPUpscalePipeline": {"image": picture},
    }


@pytest.fixture
def runs(made_from: Callable[[Any], Any], pictures: list[Tensor]) -> Callable[..., Any]:
    """The name of a pipeline and options -> what a call gives: pictures of 64 px, in three steps."""
    made: dict[str, Any] = {}
    arguments = own_arguments(pictures[0])

    def run(name: str, **options: Any) -> Any:
        given = {"size": 64, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
        steps = {"decoder_num_inference_steps": 3}
        if name not in made:
            made[name] = made_from(getattr(pipelines, name))
        output = made[name](**{**arguments[name], **given, **steps, **options})
        return getattr(output, "images", output)

    return run


# ---- options -----------------------------------------------------------------------------------------------------

STAGES = {
    "UnCLIPTextToImagePipeline": ["prior", "decoder", "upsampler_256"],
    "UnCLIPVariationPipeline": ["inversion", "decoder", "upsampler_256"],
    "UnCLIPInterpolationPipeline": ["prior", "inversion", "decoder", "upsampler_256"],
    "UnCLIPTextDiffPipeline": ["prior", "inversion", "decoder", "upsampler_256"],
    "UnCLIPImg2ImgPipeline": ["prior", "decoder", "upsampler_256"],
    "UnCLIPInpaintPipeline": ["prior", "decoder", "upsampler_256"],
    "UnCLIPUpscalePipeline": ["upsampler_256"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_callbacks_see_each_stage(runs: Callable[..., Any], name: str) -> None:
    seen: list[str] = []

    def watch(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert set(tensors) == {"latents", "x0"}
        assert tensors["x0"].shape == tensors["latents"].shape
        seen.append(pipe.stage)
        return {}

    both = {"callback_on_step_end_tensor_inputs": ["latents", "x0"]}
    watched = runs(name, callback_on_step_end=watch, **both)
    assert list(dict.fromkeys(seen)) == STAGES[name]
    assert torch.equal(watched, runs(name))


@pytest.mark.parametrize("name", [name for name in CLASSES if "Inpaint" not in name])
def test_a_callback_may_replace_what_is_made(runs: Callable[..., Any], name: str) -> None:
    def blank(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])} if pipe.stage == "upsampler_256" else {}

    assert_close(runs(name, callback_on_step_end=blank), torch.full((1, 3, 64, 64), 0.5))


# An option with another value than the default, and the pipelines in which that is to make another picture.
HAVE_PRIOR = [name for name, stages in STAGES.items() if "prior" in stages]
HAVE_DECODER = [name for name, stages in STAGES.items() if "decoder" in stages]
CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"prior_num_inference_steps": 5}, HAVE_PRIOR),
    ({"prior_guidance_scale": 6.0}, HAVE_PRIOR),
    ({"num_prior_candidates": 30}, [name for name in HAVE_PRIOR if "TextDiff" not in name]),
    ({"prior": "none"}, HAVE_PRIOR),
    ({"decoder_num_inference_steps": 5}, HAVE_DECODER),
    ({"decoder_guidance_scale": 5.0}, HAVE_DECODER),
    ({"noise_level": 0.9}, HAVE_DECODER),
    ({"upsampler_num_inference_steps": 5}, CLASSES),
    ({"upsampler_noise_level": 0.9}, CLASSES),
    ({"generator": torch.Generator().manual_seed(5)}, CLASSES),
]


@pytest.mark.parametrize(
    ("change", "name"),
    [(change, name) for change, names in CHANGES for name in names],
    ids=[f"{next(iter(change))}-{name}" for change, names in CHANGES for name in names],
)
def test_every_option_reaches(runs: Callable[..., Any], change: dict[str, Any], name: str) -> None:
    plain = runs(name)
    assert torch.equal(runs(name), plain)
    assert not torch.equal(runs(name, **change), plain)
    if not change.keys() & {"generator", "decoder_num_inference_steps"}:  # of which `runs` has its own
        assert torch.equal(runs(name, **dict.fromkeys(change)), plain)  # None stands for the default


@pytest.mark.parametrize("name", CLASSES)
def test_sizes_and_forms(runs: Callable[..., Any], name: str) -> None:
    for given in ({"size": 64}, {"height": 64, "width": 64}, {"size": 64, "width": 64}):
        images = runs(name, **{"size": None, **given}, output_type="pil")
        assert [type(each) for each in images] == [Image.Image]
        assert images[0].size == (64, 64)
    assert runs(name, output_type="np").shape == (1, 64, 64, 3)


@pytest.mark.parametrize("name", [name for name in CLASSES if "Upscale" not in name])
def test_a_tuple_or_an_output(runs: Callable[..., Any], made_from: Any, pictures: Any, name: str) -> None:
    pipe = made_from(getattr(pipelines, name))
    given = {**own_arguments(pictures[0])[name], "size": 16, "decoder_num_inference_steps": 2}
    made = pipe(**given)
    assert isinstance(made, UnCLIPPipelineOutput)
    assert_close(made.image_embeds.norm(dim=-1), torch.ones(1))
    images, embeds = pipe(**given, return_dict=False)
    assert (len(images), embeds.shape) == (1, (1, 12))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"steps": 3}, "unknown argument 'steps': besides its own a call takes prior_num_inference_steps"),
    ({"output_type": "jpeg"}, "unknown output_type 'jpeg': choose one of pil, np, pt, latent"),
    ({"size": 100}, "100 is not offered"),
    ({"size": 64, "height": 256}, "must agree"),
    ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be a whole number"),
    ({"noise_level": 2}, "noise_level must lie between"),
    ({"prior": "best"}, "no prior 'best' in this model: choose one of diffusion, none"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "may hold .*, got .'noise'."),
]


@pytest.mark.parametrize("name", CLASSES)
def test_wrong_options_are_named(runs: Callable[..., Any], name: str) -> None:
    for options, message in WRONG:
        with pytest.raises(UserError, match=message) as error:
            runs(name, **options)
        assert "\n" not in str(error.value)


def test_every_option_is_explained_once() -> None:
    explained = UnCLIPTextToImagePipeline.__doc__ or ""
    for option in CallOptions.__annotations__:
        ending = next(
            (end for end in ("_num_inference_steps", "_guidance_scale") if option.endswith(end)), option
        )
        assert ending in explained, option


# ---- one pipeline of another -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_from_pipe_shares_and_keeps_everything(
    tiny_pipeline: UnCLIPTextToImagePipeline, tmp_path: Path, name: str
) -> None:
    tiny_pipeline.register_to_config(noise_level=0.25, plain_words=False)
    tiny_pipeline.lexicon = LEXICON
    tiny_pipeline._priors_folder = tmp_path / "priors"
    (tmp_path / "priors" / "other").mkdir(parents=True)
    made = getattr(pipelines, name).from_pipe(tiny_pipeline)
    assert type(made).__name__ == name
    for component in COMPONENTS:
        assert getattr(made, component) is getattr(tiny_pipeline, component)
    assert {each: made.config[each] for each in DEFAULTS} == {
        each: tiny_pipeline.config[each] for each in DEFAULTS
    }
    assert made.settings() == tiny_pipeline.settings()
    assert made.lexicon is LEXICON
    assert made.prior_names == ["diffusion", "other", "none"]
    assert made._progress_bar_config == tiny_pipeline._progress_bar_config
    back = UnCLIPTextToImagePipeline.from_pipe(made)
    given = {"size": 16, "output_type": "pt"}
    one, two = (
        pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images
        for pipe in (tiny_pipeline, back)
    )
    assert torch.equal(one, two)


def test_from_pipe_with_another_component_or_default(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    scheduler = DPMSolverMultistepScheduler()
    made = UnCLIPVariationPipeline.from_pipe(tiny_pipeline, decoder_scheduler=scheduler, noise_level=0.5)
    assert made.decoder_scheduler is scheduler
    assert made.settings().noise_level == 0.5
    assert tiny_pipeline.settings().noise_level == 0.0
    assert UnCLIPUpscalePipeline.from_pipe(tiny_pipeline, upsampler_1024=None).sizes == {
        16: "decoder",
        64: "upsampler_256",
    }
    with pytest.raises(UserError, match="unknown component or default 'unet': choose from"):
        UnCLIPVariationPipeline.from_pipe(tiny_pipeline, unet=None)


def test_from_pipe_of_what_diffusers_loaded(tiny_model: Path, priors: dict[str, nn.Module]) -> None:
    """Its lexicon and priors are found, though diffusers' loader knows nothing of them."""
    priors["linear"].save_pretrained(tiny_model / "priors" / "linear")  # type: ignore[operator]
    LEXICON.save(tiny_model / LEXICON_FILE)
    loaded = DiffusionPipeline.from_pretrained(str(tiny_model))
    made = UnCLIPImg2ImgPipeline.from_pipe(loaded)
    assert made.in_plain_words(["manzana"], None) == ["apple"]
    assert made.prior_names == ["diffusion", "linear", "none"]


def test_the_scheduler_of_inversion(tiny_pipeline: UnCLIPTextToImagePipeline) -> None:
    """DDIM, the decoder's own where it is one."""
    assert isinstance(tiny_pipeline.ddim_scheduler, DDIMScheduler)
    tiny_pipeline.decoder_scheduler = own = DDIMScheduler(clip_sample=False)
    assert tiny_pipeline.ddim_scheduler is own


# ---- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_saved_and_loaded(
    made_from: Callable[[Any], Any], tiny_model: Path, pictures: list[Tensor], tmp_path: Path, name: str
) -> None:
    kind = getattr(pipelines, name)
    made = made_from(kind)
    given = {"size": 64, "output_type": "pt", **own_arguments(pictures[0])[name]}
    if "Upscale" not in name:
        given["decoder_num_inference_steps"] = 4

    def images(pipe: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        output = pipe(generator=torch.Generator().manual_seed(0), **given)
        return getattr(output, "images", output)

    expected = images(made)
    assert_close(
        images(kind.from_pretrained(tiny_model)), expected, rtol=0, atol=1e-4
    )  # saved by another class
    made.save_pretrained(tmp_path / "own")
    for loader in (kind, DiffusionPipeline):
        loaded = loader.from_pretrained(str(tmp_path / "own"))
        assert type(loaded) is kind
        assert_close(images(loaded), expected, rtol=0, atol=1e-4)
