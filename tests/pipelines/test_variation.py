"""Variations: what eta keeps and lets go, batches, latents in the picture's place, wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from unclip.errors import UserError
from unclip.pipelines import Latents, UnCLIPTextToImagePipeline, UnCLIPVariationPipeline
from unclip.pipelines.latents import load_embeds


@pytest.fixture
def pipe(made_from: Callable[[Any], Any]) -> UnCLIPVariationPipeline:
    return made_from(UnCLIPVariationPipeline)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vary(pipe: Any, image: Any, seed: int = 0, **options: Any) -> Tensor:
    """[B, 3, S, S] in [0, 1]."""
    options = {"size": 16, "decoder_num_inference_steps": 4, "generator": seeded(seed), **options}
    return pipe(image, output_type="pt", **options).images


# ---- eta ---------------------------------------------------------------------------------------------------------


def test_without_eta_there_is_no_chance(pipe: UnCLIPVariationPipeline, pictures: list[Tensor]) -> None:
    once = vary(pipe, pictures[0], eta=0.0)
    assert torch.equal(vary(pipe, pictures[0], eta=0.0), once)
    assert torch.equal(vary(pipe, pictures[0], seed=1, eta=0.0), once)
    assert torch.equal(vary(pipe, pictures[0], eta=0, generator=None), once)
    three = vary(pipe, pictures[0], eta=0.0, num_images_per_prompt=3)
    assert_close(three, once.expand(3, -1, -1, -1), rtol=0, atol=1e-5)


def test_with_eta_there_is(pipe: UnCLIPVariationPipeline, pictures: list[Tensor]) -> None:
    once = vary(pipe, pictures[0], eta=0.8)
    assert torch.equal(vary(pipe, pictures[0], eta=0.8), once)
    assert (vary(pipe, pictures[0], seed=1, eta=0.8) - once).abs().max() > 0.01
    one, other = vary(pipe, pictures[0], eta=0.8, num_images_per_prompt=2)
    assert_close(one, once[0], rtol=0, atol=1e-5)
    assert (one - other).abs().max() > 0.01


def test_without_eta_a_picture_comes_back(
    pipe: UnCLIPVariationPipeline, analytic: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    again = vary(analytic(pipe), pictures, eta=0.0, decoder_num_inference_steps=25)
    assert_close(again, torch.stack(pictures), rtol=0, atol=2e-3)


def test_the_more_eta_the_less_of_the_picture_stays(
    pipe: UnCLIPVariationPipeline, analytic: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    exact, source = analytic(pipe), torch.stack(pictures) - 0.5

    def likeness(eta: float) -> float:
        made = vary(exact, pictures, eta=eta, decoder_num_inference_steps=25) - 0.5
        return float(torch.corrcoef(torch.stack([made.flatten(), source.flatten()]))[0, 1])

    all_of_it, much, some, none = (likeness(eta) for eta in (0.0, 0.3, 0.6, 1.0))
    assert all_of_it > 0.999
    assert all_of_it > much + 0.02
    assert much > some + 0.1
    assert some > none + 0.1
    assert abs(none) < 0.1  # what DDPM would make


@pytest.mark.parametrize("size", [16, 64])
def test_batches_are_their_pictures(pipe: UnCLIPVariationPipeline, pictures: list[Tensor], size: int) -> None:
    options = {"eta": 0.7, "size": size, "upsampler_num_inference_steps": 2}
    together = vary(pipe, pictures, num_images_per_prompt=2, **options)
    assert together.shape == (6, 3, size, size)
    for i, picture in enumerate(pictures):
        alone = vary(pipe, picture, num_images_per_prompt=2, **options)
        assert_close(together[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-4)
    own = [seeded(7), seeded(8), seeded(9)]
    listed = vary(pipe, pictures, generator=own, **options)
    assert_close(listed[1:2], vary(pipe, pictures[1], generator=[seeded(8)], **options), rtol=0, atol=1e-4)


def test_fresh_noise_decodes_the_embedding(
    pipe: UnCLIPVariationPipeline, tiny_pipeline: UnCLIPTextToImagePipeline, pictures: list[Tensor]
) -> None:
    made = pipe(pictures[0], noise="fresh", size=16, output_type="pt", generator=seeded())
    assert_close(made.image_embeds, pipe.clip.encode_image(resized(pictures[0])))
    expected = tiny_pipeline(image_embeds=made.image_embeds, size=16, output_type="pt", generator=seeded())
    assert_close(made.images, expected.images, rtol=0, atol=1e-5)


def resized(picture: Tensor) -> Tensor:
    """As CLIP is shown it."""
    from unclip.pipelines.reading import read_pictures

    return read_pictures(picture, 256).rgb


def test_captions_reach_the_decoder(pipe: UnCLIPVariationPipeline, pictures: list[Tensor]) -> None:
    prompts = ["a red apple", "a small blue house", "a cat"]
    plain = vary(pipe, pictures, eta=0.5)
    captioned = vary(pipe, pictures, eta=0.5, prompt=prompts)
    assert (captioned - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    alone = vary(pipe, pictures[1], eta=0.5, prompt=prompts[1])
    assert_close(captioned[1:2], alone, rtol=0, atol=1e-4)
    shared = vary(pipe, pictures, eta=0.5, prompt=prompts[1])
    assert_close(shared[1:2], alone, rtol=0, atol=1e-4)


# ---- latents -----------------------------------------------------------------------------------------------------


@pytest.fixture
def latents(pipe: UnCLIPVariationPipeline, pictures: list[Tensor]) -> Latents:
    return pipe.latents(
        pictures, decoder_num_inference_steps=5, decoder_guidance_scale=1.5, num_corrections=3
    )


def test_latents_stand_for_their_pictures(
    pipe: UnCLIPVariationPipeline, pictures: list[Tensor], latents: Latents, tmp_path: Path
) -> None:
    found = {"decoder_num_inference_steps": 5, "decoder_guidance_scale": 1.5}
    assert latents.options() == found
    expected = vary(pipe, pictures, eta=0.4, num_corrections=3, num_images_per_prompt=2, **found)
    latents.save(tmp_path / "a.safetensors")
    for given in (latents, Latents.load(tmp_path / "a.safetensors")):
        none = {"decoder_num_inference_steps": None}  # as they were found
        made = vary(pipe, given, eta=0.4, num_images_per_prompt=2, **none)
        assert_close(made, expected, rtol=0, atol=1e-5)
    assert torch.equal(load_embeds(tmp_path / "a.safetensors"), latents.image_embeds)


def test_embeddings_are_read(latents: Latents, tmp_path: Path) -> None:
    save_file(
        {"image_embeds": latents.image_embeds.clone(), "noise": latents.noise}, tmp_path / "a.safetensors"
    )
    assert torch.equal(load_embeds(tmp_path / "a.safetensors"), latents.image_embeds)
    save_file({"other": latents.image_embeds[0].clone()}, tmp_path / "one.safetensors")
    assert torch.equal(load_embeds(tmp_path / "one.safetensors"), latents.image_embeds[:1])


def test_files_that_are_no_latents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file at .*gone.safetensors: make one with"):
        Latents.load(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("a picture")
    with pytest.raises(UserError, match="is no sound safetensors file"):
        load_embeds(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(
        UserError, match=r"two.safetensors holds no image_embeds: make it with `unclip invert`"
    ):
        Latents.load(tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"holds a, b: expected a tensor image_embeds"):
        load_embeds(tmp_path / "two.safetensors")


def test_latents_of_another_model(pipe: UnCLIPVariationPipeline) -> None:
    for embeds, noise in (((1, 8), (1, 3, 16, 16)), ((1, 12), (1, 3, 32, 32)), ((2, 12), (1, 3, 16, 16))):
        other = Latents(torch.ones(embeds), torch.zeros(noise), 5, 1.0)
        with pytest.raises(UserError, match=r"latents are of shapes .*: invert the picture with this model"):
            pipe(other)


# ---- the rest ----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"eta": 1.5}, "eta must lie between 0 and 1, got 1.5"),
    ({"eta": float("nan")}, "eta must lie between"),
    ({"noise": "old"}, "noise must be one of inverted, fresh, got 'old'"),
    ({"num_corrections": 0}, "num_corrections must be a whole number of at least 1"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number"),
    ({"fit": "shrink"}, "unknown fit 'shrink'"),
    ({"prompt": ["a", "b"]}, "got 2 prompts for 1 pictures"),
    ({"prompt": ""}, "prompt is empty"),
    ({"image": []}, "empty list"),
    ({"image": "nowhere.png"}, "no picture at nowhere.png"),
    ({"generator": [seeded(), seeded()]}, "2 generators for 1 pictures"),
    ({"steps": 3}, "unknown argument 'steps'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments(
    pipe: UnCLIPVariationPipeline,
    pictures: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    for name in ("encode_text", "encode_image"):
        monkeypatch.setattr(pipe.clip, name, lambda *_, **__: pytest.fail("a network ran"))
    with pytest.raises(UserError, match=message) as error:
        pipe(**{"image": pictures[0], **arguments})
    assert "\n" not in str(error.value)


def test_the_embedded_model_gives_a_picture_again(real: Any) -> None:
    """At most three seconds of the real decoder: PSNR of a picture of the fixture above 30 dB."""
    from unclip.pipelines.reading import read_pictures

    pipe = UnCLIPVariationPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    picture = real.rgba(7, 64)
    again = pipe(picture, eta=0.0, size=64, output_type="pt").images
    error = (again - (read_pictures(picture, 64).rgb / 2 + 0.5)).square().mean()
    assert -10 * error.log10() > 30


def test_noise_on_the_embedding_leaves_x_T_as_it_was_found(
    pipe: UnCLIPVariationPipeline, pictures: list[Tensor]
) -> None:
    """So each variation begins at the same x_T, whatever noise its embedding gets."""
    found = pipe.latents(pictures[0], decoder_num_inference_steps=4)
    options: dict[str, Any] = {"eta": 0.0, "noise_level": 0.6, "num_images_per_prompt": 2}
    made = vary(pipe, pictures[0], decoder_num_inference_steps=4, **options)
    assert_close(made, vary(pipe, found, **options), rtol=0, atol=1e-6)
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_latents_are_decoded_as_they_were_found(pipe: UnCLIPVariationPipeline, latents: Latents) -> None:
    own = latents.options()
    pipe(latents, size=16, **own)
    with pytest.raises(
        UserError, match=r"found with decoder_num_inference_steps \d+, got 7: leave it out, or inv"
    ):
        pipe(latents, size=16, decoder_num_inference_steps=7)
    with pytest.raises(UserError, match=r"found with decoder_guidance_scale .*, got 9"):
        pipe(latents, size=16, decoder_guidance_scale=9.0)
    pipe(latents, size=16, noise="fresh", decoder_num_inference_steps=2)


def test_what_is_no_latent(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 3, 2, 2)}, tmp_path / "a.safetensors", metadata={"unclip": "[]"})
    with pytest.raises(
        UserError, match=r"holds a tensor of shape \[3, 3, 2, 2\]: expected embeddings \[N, D\]"
    ):
        load_embeds(tmp_path / "a.safetensors")
    save_file(
        {"image_embeds": torch.zeros(1, 12), "noise": torch.zeros(1, 3, 16, 16)},
        tmp_path / "b.safetensors",
        metadata={"unclip": "[]"},
    )
    with pytest.raises(UserError, match="holds no decoder_num_inference_steps"):
        Latents.load(tmp_path / "b.safetensors")
