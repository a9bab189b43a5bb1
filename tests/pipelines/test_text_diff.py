"""Text diffs: theta 0 is the picture, the way from there is an arc towards the difference, wrong ones are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import denoise, initial_noise, noise_to_step
from unclip.errors import UserError
from unclip.pipelines import UnCLIPTextDiffPipeline, UnCLIPVariationPipeline
from unclip.pipelines.sphere import slerp
from unclip.pipelines.stages import cut, decoder_noise, denoiser_of, image_seeds
from unclip.pipelines.text_diff import check_thetas

RED, GREEN, HOUSE, CAT = "a red apple", "a green apple", "a small house", "the blue cat on the left"


@pytest.fixture
def pipe(made_from: Callable[[Any], Any]) -> UnCLIPTextDiffPipeline:
    return made_from(UnCLIPTextDiffPipeline)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def change(pipe: Any, image: Any, source: Any = RED, target: Any = HOUSE, **options: Any) -> Any:
    given = {"size": 16, "decoder_num_inference_steps": 4, "generator": seeded(), "output_type": "pt"}
    return pipe(image, target, source_prompt=source, **{**given, **options})


# ---- where it goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["prior", "text"])
def test_theta_zero_is_the_variation_without_eta(
    pipe: UnCLIPTextDiffPipeline, made_from: Callable[[Any], Any], pictures: list[Tensor], via: str
) -> None:
    vary = made_from(UnCLIPVariationPipeline)
    own = vary(pictures, eta=0.0, size=16, decoder_num_inference_steps=4, output_type="pt")
    made = change(pipe, pictures, theta=0.0, via=via)
    assert_close(made.images, own.images, rtol=0, atol=1e-5)
    assert_close(made.image_embeds, own.image_embeds, rtol=0, atol=1e-6)


def test_the_way_of_the_paper(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    """slerp(z_i, z_d, theta), where z_d is the normalised difference of z_t (unCLIP §3.3)."""
    z = change(pipe, pictures, theta=0.0).image_embeds
    source, target = pipe.clip.encode_text([RED, HOUSE]).embeds
    z_d = F.normalize(target - source, dim=-1)
    thetas = [0.1, 0.25, 0.5]
    made = change(pipe, pictures, theta=thetas, via="text").image_embeds.unflatten(0, (3, 3))
    for i, theta in enumerate(thetas):
        assert_close(made[:, i], F.normalize(slerp(z, z_d.expand(3, -1), theta), dim=-1), rtol=0, atol=1e-5)
    # Half-way both are as near.
    assert_close((made[:, 2] * z).sum(-1), made[:, 2] @ z_d, rtol=0, atol=1e-5)


def test_the_difference_that_the_prior_makes(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    """Of a prior that gives z_t it is the paper's, of others it is not."""
    text = change(pipe, pictures[0], via="text").image_embeds
    assert_close(change(pipe, pictures[0], prior="none").image_embeds, text, rtol=0, atol=1e-5)
    assert (change(pipe, pictures[0]).image_embeds - text).abs().max() > 1e-3


def test_back_is_the_other_way(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    z = change(pipe, pictures[0], theta=0.0).image_embeds[0]
    there, back = (
        change(pipe, pictures[0], *ends, via="text", theta=0.001).image_embeds[0] - z
        for ends in ((RED, HOUSE), (HOUSE, RED))
    )
    z_t = pipe.clip.encode_text([RED, HOUSE]).embeds
    z_d = F.normalize(z_t[1] - z_t[0], dim=-1)
    assert there @ z_d > 0 > back @ z_d


def test_several_diffs_add(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    z = change(pipe, pictures[0], theta=0.0).image_embeds
    z_t = pipe.clip.encode_text([RED, HOUSE, GREEN, CAT]).embeds
    parts = F.normalize(torch.stack([z_t[1] - z_t[0], z_t[3] - z_t[2]]), dim=-1)
    made = change(pipe, pictures[0], [RED, GREEN], [HOUSE, CAT], via="text", theta=0.3).image_embeds
    expected = F.normalize(slerp(z, F.normalize(parts.sum(0), dim=-1)[None], 0.3), dim=-1)
    assert_close(made, expected, rtol=0, atol=1e-5)
    swapped = change(pipe, pictures[0], [GREEN, RED], [CAT, HOUSE], via="text", theta=0.3).image_embeds
    assert_close(swapped, made, rtol=0, atol=1e-6)
    twice = change(pipe, pictures[0], [RED, RED], [HOUSE, HOUSE], via="text", theta=0.3).image_embeds
    once = change(pipe, pictures[0], RED, HOUSE, via="text", theta=0.3).image_embeds
    assert_close(twice, once, rtol=0, atol=1e-6)


def test_x_t_stays(
    pipe: UnCLIPTextDiffPipeline, analytic: Callable[[Any], Any], pictures: list[Tensor]
) -> None:
    """A decoder that does not heed z_i gives the picture again, however far the diff goes."""
    made = change(analytic(pipe), pictures, theta=0.5, decoder_num_inference_steps=25).images
    assert_close(made, torch.stack(pictures), rtol=0, atol=2e-3)
    fresh = change(pipe, pictures, theta=0.5, noise="fresh", decoder_num_inference_steps=25).images
    assert (fresh - torch.stack(pictures)).abs().mean() > 0.2


# ---- redrawn -----------------------------------------------------------------------------------------------------


def test_redrawn_all_the_way_it_is_what_the_prior_makes_of_noised_z(
    pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]
) -> None:
    """z_i noised to the level of the step where `strength` of the steps are left, then denoised (SDEdit)."""
    pipe.register_modules(prior_scheduler=DDIMScheduler.from_config(pipe.prior_scheduler.config))
    options = {"prior_num_inference_steps": 10, "prior_guidance_scale": 1.0, "num_prior_candidates": 1}
    z = change(pipe, pictures[0], theta=0.0).image_embeds
    (seed,) = image_seeds(seeded(), 1, 1)
    noise = initial_noise(tuple(z.shape), [seed.generator("prior", 0)])
    prior, text = pipe.prior, pipe.clip.encode_text([HOUSE])
    for strength, left in ((0.7, 7), (0.2, 2), (1.0, 10), (0.01, 1)):
        made = change(pipe, pictures[0], None, strength=strength, **options).image_embeds
        x = noise
        if left < 10:
            x = noise_to_step(pipe.prior_scheduler, prior.normalize(z), noise, 10, 10 - left)
        x0 = denoise(
            denoiser_of(prior),
            pipe.prior_scheduler,
            x,
            cond=prior.read(cut(text, prior.config.max_tokens)).for_rows(1),
            num_inference_steps=10,
            start=10 - left,
        )
        assert_close(made, F.normalize(prior.denormalize(x0), dim=-1), rtol=0, atol=1e-5)
    half = change(pipe, pictures[0], None, theta=0.25, strength=0.01, **options).image_embeds
    assert_close(half, F.normalize(slerp(z, made, 0.5), dim=-1), rtol=0, atol=1e-5)


def test_redrawn_by_nothing_it_is_the_picture(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    own = change(pipe, pictures, theta=0.0)
    redrawn = change(pipe, pictures, None, theta=0.0)
    assert_close(redrawn.images, own.images, rtol=0, atol=1e-5)
    assert_close(redrawn.image_embeds, own.image_embeds, rtol=0, atol=1e-6)


def test_x_t_goes_from_its_own_to_a_drawn_one(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    """As theta goes from 0 to 0.5: the ends are those of "inverted" and of a drawn x_T under the same scheduler."""
    seen: list[Tensor] = []
    decode = pipe.decode
    pipe.decode = lambda *a, noise=None, **k: seen.append(noise) or decode(*a, noise=noise, **k)  # type: ignore[method-assign,func-returns-value]
    for noise in ("inverted", "slerp"):
        change(pipe, pictures[:2], theta=[0.0, 0.25, 0.5], noise=noise)
    own, going = (each.unflatten(0, (2, 3)) for each in seen)
    drawn = decoder_noise(pipe.decoder, image_seeds(seeded(), 2, 1))[0]
    assert_close(going[:, 0], own[:, 0], rtol=0, atol=1e-5)
    assert_close(going[:, 2], drawn, rtol=0, atol=1e-5)
    middle = slerp(own[:, 1].flatten(1), drawn.flatten(1), 0.5)
    assert_close(going[:, 1].flatten(1), middle, rtol=0, atol=1e-5)


# ---- frames and batches ------------------------------------------------------------------------------------------


def test_frames() -> None:
    assert check_thetas(0.4, None) == [0.4]
    assert check_thetas(0.4, 1) == [0.4]
    assert check_thetas(0.4, 3) == pytest.approx([0, 0.2, 0.4])
    assert check_thetas([0.1, 0.5], None) == [0.1, 0.5]
    assert check_thetas(0, 2) == [0, 0]


def test_frames_are_their_thetas(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    frames = change(pipe, pictures[:2], theta=0.4, num_frames=3)
    assert frames.images.shape == (6, 3, 16, 16)
    for i in range(2):
        for k, theta in enumerate((0.0, 0.2, 0.4)):
            alone = change(pipe, pictures[i], theta=theta)
            assert_close(frames.images[3 * i + k], alone.images[0], rtol=0, atol=1e-4)
            assert_close(frames.image_embeds[3 * i + k], alone.image_embeds[0], rtol=0, atol=1e-4)
    seeds = [seeded(4), seeded(5)]
    listed = change(pipe, pictures[:2], theta=[0.2, 0.4], noise="fresh", generator=seeds)
    alone = change(pipe, pictures[1], theta=0.4, noise="fresh", generator=seeded(5))
    assert_close(listed.image_embeds[3:], alone.image_embeds, rtol=0, atol=1e-4)
    assert_close(listed.images[3:], alone.images, rtol=0, atol=1e-4)


# ---- wrong ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["prior", "text"])
def test_captions_that_say_the_same(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor], via: str) -> None:
    with pytest.raises(UserError, match=f"'{RED}' and '{RED}' mean the same to this model"):
        change(pipe, pictures[0], RED, RED, via=via)
    with pytest.raises(UserError, match=f"'{CAT}' and '{CAT}' mean the same"):
        change(pipe, pictures[0], [RED, CAT], [HOUSE, CAT], via=via)
    with pytest.raises(UserError, match="the differences cancel out"):
        change(pipe, pictures[0], [RED, HOUSE], [HOUSE, RED], via=via)


def test_a_source_may_be_nothing(pipe: UnCLIPTextDiffPipeline, pictures: list[Tensor]) -> None:
    z = change(pipe, pictures[0], theta=0.0).image_embeds
    nothing, target = (pipe.clip.encode_text([each]).embeds for each in ("", RED))
    made = change(pipe, pictures[0], "", RED, via="text", theta=0.2).image_embeds
    expected = F.normalize(slerp(z, F.normalize(target - nothing, dim=-1), 0.2), dim=-1)
    assert_close(made, expected, rtol=0, atol=1e-5)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"theta": 0.6}, "theta must lie between 0 and 0.5, got 0.6"),
    ({"theta": -0.1}, "theta must lie between 0 and 0.5"),
    ({"theta": [0.1, 0.9]}, "theta must lie between 0 and 0.5, got 0.9"),
    ({"theta": []}, "a list of thetas, at least one, or one theta and num_frames"),
    ({"theta": [0.1], "num_frames": 3}, "a list of thetas, at least one, or one theta and num_frames"),
    ({"theta": "far"}, "theta must lie between"),
    ({"num_frames": 0}, "num_frames must be a whole number"),
    ({"via": "clip"}, "via must be one of prior, text, redraw, got 'clip'"),
    ({"noise": "own"}, "noise must be one of inverted, slerp, fresh, got 'own'"),
    ({"via": "redraw"}, "via 'redraw' begins with the picture itself: leave the source caption out"),
    (
        {"source_prompt": None, "via": "text"},
        "via 'text' takes the difference of two captions: give a source caption",
    ),
    ({"source_prompt": None, "target_prompt": [HOUSE, CAT]}, "there is one target caption, got 2"),
    ({"source_prompt": None, "target_prompt": ""}, "prompt is empty"),
    ({"source_prompt": None, "strength": 0}, "strength 0 leaves the picture as it is"),
    ({"source_prompt": None, "strength": 1.5}, "strength must lie between 0 and 1"),
    ({"strength": 0.5}, "strength is of redrawing, which takes no source caption: leave strength 0.5"),
    ({"source_prompt": None, "prior": "none"}, "which takes the diffusion prior: leave the other prior out"),
    ({"target_prompt": ""}, "prompt is empty"),
    ({"target_prompt": [HOUSE, CAT]}, "got 1 source and 2 target prompts: every diff has one of each"),
    ({"source_prompt": 3}, "source_prompt must be a string or a list of strings, got 3"),
    ({"source_prompt": [RED, 3], "target_prompt": [HOUSE, CAT]}, "source_prompt must be a string or a list"),
    ({"image": "nowhere.png"}, "no picture at nowhere.png"),
    ({"generator": [seeded(), seeded()]}, "2 generators for 1 pictures"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments(
    pipe: UnCLIPTextDiffPipeline,
    pictures: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    for name in ("encode_text", "encode_image"):
        monkeypatch.setattr(pipe.clip, name, lambda *_, **__: pytest.fail("a network ran"))
    given = {"image": pictures[0], "source_prompt": RED, "target_prompt": HOUSE}
    with pytest.raises(UserError, match=message):
        pipe(**{**given, **arguments})
