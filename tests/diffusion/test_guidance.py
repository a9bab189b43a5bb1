"""Guidance: the rules of diffusers on x_0, one forward for both branches, none in vain."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import Denoiser, Guided, classifier_free, denoise, from_x0, initial_noise, make_schedule
from unclip.errors import UserError

STEPS = 10
LEVEL = (torch.tensor(0.6), torch.tensor(0.8))


class Network:
    """Predicts eps from x and a label [B, 1]; remembers the batch size of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(x * label + label)


class NetworkWithVariance(Network):
    def __call__(self, x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        return torch.cat([super().__call__(x, t, label=label), label.expand_as(x)], dim=1)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def denoiser(network: Network) -> Denoiser:
    return Denoiser(network, make_schedule("cosine"), "epsilon")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


COND = {"label": torch.tensor([[0.5], [1.0], [1.5]])}
UNCOND = {"label": torch.zeros(1, 1)}


@pytest.mark.parametrize("space", ["epsilon", "sample", "v_prediction", "flow"])
def test_classifier_free_guidance_is_the_same_in_every_space(
    space: str, denoiser: Denoiser, x: Tensor
) -> None:
    conditional = denoiser(x, *LEVEL, COND).mean
    unconditional = denoiser(x, *LEVEL, {"label": torch.zeros(3, 1)}).mean
    guided = Guided(denoiser, classifier_free(3.0), UNCOND, space)(x, *LEVEL, COND).mean
    assert_close(guided, unconditional + 3 * (conditional - unconditional))
    # The formula of 2207.12598 on eps itself:
    eps = [from_x0("epsilon", mean, x, *LEVEL) for mean in (conditional, unconditional, guided)]
    assert_close(eps[2], eps[1] + 3 * (eps[0] - eps[1]))


def test_both_branches_are_one_forward(network: Network, denoiser: Denoiser, x: Tensor) -> None:
    Guided(denoiser, classifier_free(3.0), UNCOND)(x, *LEVEL, COND)
    assert network.batches == [6]


def test_scale_one_is_the_conditional_branch_alone(network: Network, denoiser: Denoiser, x: Tensor) -> None:
    expected = denoiser(x, *LEVEL, COND).mean
    network.batches.clear()
    assert_close(
        Guided(denoiser, classifier_free(1.0), UNCOND)(x, *LEVEL, COND).mean, expected, rtol=0, atol=0
    )
    assert network.batches == [3]


def test_an_interval_guides_its_steps_alone(network: Network, denoiser: Denoiser, x: Tensor) -> None:
    guided = Guided(denoiser, classifier_free(3.0, start=0.2, stop=0.5), UNCOND)
    scheduler = diffusers.DDIMScheduler()
    whole = denoise(guided, scheduler, x, cond=COND, num_inference_steps=STEPS)
    assert network.batches == [3] * 2 + [6] * 3 + [3] * 5
    # Steps keep their number when the way is walked in parts.
    network.batches.clear()
    half = denoise(guided, scheduler, x, cond=COND, num_inference_steps=STEPS, end=4)
    parts = denoise(guided, scheduler, half, cond=COND, num_inference_steps=STEPS, start=4)
    assert network.batches == [3] * 2 + [6] * 3 + [3] * 5
    assert_close(parts, whole)


@pytest.mark.parametrize(
    "guider",
    [
        ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.7),
        AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5),
        ClassifierFreeZeroStarGuidance(guidance_scale=4.0),
    ],
)
@pytest.mark.parametrize("start", [0, 3])
def test_the_rules_of_diffusers_sample(guider: Any, start: int, denoiser: Denoiser, x: Tensor) -> None:
    """Also twice in a row, on other batches: nothing of one run is remembered in the next."""
    guided = Guided(denoiser, guider, UNCOND)
    options = {"num_inference_steps": STEPS, "start": start}
    one = denoise(guided, diffusers.UniPCMultistepScheduler(), x, cond=COND, **options)
    assert bool(torch.isfinite(one).all())
    first = {"label": COND["label"][:1]}
    alone = denoise(guided, diffusers.UniPCMultistepScheduler(), x[:1], cond=first, **options)
    assert_close(alone, one[:1], rtol=1e-4, atol=1e-5)


def test_adaptive_projected_guidance_acts_on_x0(denoiser: Denoiser, x: Tensor) -> None:
    conditional = denoiser(x, *LEVEL, COND).mean
    unconditional = denoiser(x, *LEVEL, {"label": torch.zeros(3, 1)}).mean
    guider = AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_rescale=0.3, eta=0.0)
    expected = normalized_guidance(conditional, unconditional, 4.0, eta=0.0, norm_threshold=0.3)
    guided = Guided(denoiser, guider, UNCOND)
    guided.begin_step(1, STEPS, torch.tensor(900))
    assert_close(guided(x, *LEVEL, COND).mean, expected)


def test_zero_star_starts_with_a_zero_velocity(denoiser: Denoiser, x: Tensor) -> None:
    """On the flow line the first step then leaves x where it is (2503.18886 §4.2)."""
    guided = Guided(denoiser, ClassifierFreeZeroStarGuidance(guidance_scale=4.0), UNCOND)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    after = denoise(guided, scheduler, x, cond=COND, num_inference_steps=STEPS, end=1)
    assert_close(after, x, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_is_that_of_the_conditional_branch(x: Tensor) -> None:
    denoiser = Denoiser(NetworkWithVariance(), make_schedule("cosine"), "epsilon", learned_variance=True)
    plain = denoiser(x, *LEVEL, COND)
    guided = Guided(denoiser, classifier_free(3.0), UNCOND)(x, *LEVEL, COND)
    assert_close(guided.log_var, plain.log_var)
    assert_close(guided.variance_fraction, plain.variance_fraction)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    x_0 = denoise(
        Guided(denoiser, classifier_free(3.0), UNCOND), scheduler, x, cond=COND, num_inference_steps=5
    )
    assert x_0.shape == x.shape


def test_captions_of_other_length_are_filled_up_and_the_rest_is_shared() -> None:
    seen: dict[str, Tensor] = {}

    def network(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        seen.update(cond)
        return x

    cond = {
        "tokens": torch.ones(2, 3, 5),
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        "shared": torch.tensor([1.0, 2.0]),
    }
    uncond = {"tokens": torch.full((1, 1, 5), 2.0), "mask": torch.tensor([[True]])}
    denoiser = Denoiser(network, make_schedule("flow"), "flow")
    Guided(denoiser, classifier_free(2.0), uncond)(initial_noise((2, 3)), *LEVEL, cond)
    empty = torch.tensor([[2.0], [0.0], [0.0]]).expand(2, 3, 5)
    assert_close(seen["tokens"], torch.cat([cond["tokens"], empty]))
    assert_close(seen["mask"], torch.cat([cond["mask"], torch.tensor([[True, False, False]] * 2)]))
    assert_close(seen["shared"], torch.tensor([1.0, 2.0, 1.0, 2.0]))


def test_what_cannot_be_guided_is_said(denoiser: Denoiser, x: Tensor) -> None:
    for guider in (
        SkipLayerGuidance(skip_layer_guidance_layers=[0]),
        AutoGuidance(auto_guidance_layers=[0], dropout=0.1),
    ):
        with pytest.raises(UserError, match=f"{type(guider).__name__} needs more"):
            Guided(denoiser, guider, UNCOND)
    with pytest.raises(UserError, match=r"replaces \['labels'\]"):
        Guided(denoiser, classifier_free(2.0), {"labels": torch.zeros(1, 1)})(x, *LEVEL, COND)
    with pytest.raises(UserError, match="condition 'label': cannot join"):
        Guided(denoiser, classifier_free(2.0), {"label": torch.zeros(2, 1)})(x, *LEVEL, COND)
