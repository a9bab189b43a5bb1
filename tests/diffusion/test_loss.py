"""Losses: the same number from every network, the papers' weights, and gradients where they belong."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unclip.diffusion import (
    PREDICTION_TYPES,
    Denoiser,
    DiscreteSchedule,
    HybridLoss,
    MinSNRLoss,
    SharpLoss,
    SimpleLoss,
    add_noise,
    from_x0,
    make_schedule,
    target,
    vlb_term,
)
from unclip.errors import UserError

T = {"linear": [20.0, 300.0, 700.0, 990.0], "flow": [0.1, 0.4, 0.6, 0.97]}
BATCH = [torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def guess(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Some wrong belief about x_0."""
    return torch.tanh(x)


def denoiser_of(schedule: str, prediction_type: str) -> Denoiser:
    """A network of the given type that stands for the same belief."""
    made = make_schedule(schedule)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return from_x0(prediction_type, torch.tanh(x), x, *made.alpha_sigma(t))

    return Denoiser(network, made, prediction_type)


@pytest.mark.parametrize(("schedule", "measured"), product(T, PREDICTION_TYPES))
@pytest.mark.parametrize("predicted", PREDICTION_TYPES)
def test_simple_loss_measures_in_its_space_whatever_the_network_says(
    schedule: str, measured: str, predicted: str
) -> None:
    x0, noise = BATCH
    t = torch.tensor(T[schedule])
    denoiser = denoiser_of(schedule, predicted)
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    x_t = add_noise(x0, noise, alpha, sigma)
    error = from_x0(measured, torch.tanh(x_t), x_t, alpha, sigma) - target(measured, x0, noise, alpha, sigma)
    loss = SimpleLoss(measured, min_sigma=1e-4)(denoiser, x0, t, noise)
    assert_close(loss["loss"], (error**2).mean(), rtol=1e-3, atol=1e-6)
    for quarter, expected in enumerate((error**2).flatten(1).mean(1)):
        assert_close(loss[f"loss_q{quarter}"], expected, rtol=1e-3, atol=1e-6)


def test_min_sigma_bounds_the_weight_of_jit() -> None:
    """A sample network under the flow loss: 1/sigma², but at most 1/.05²."""
    sigma = torch.tensor([0.0, 0.01, 0.05, 0.5])
    weight = SimpleLoss("flow").weight("sample", 1 - sigma, sigma)
    assert_close(weight, torch.tensor([400.0, 400.0, 400.0, 4.0]))
    assert_close(SimpleLoss("epsilon").weight("epsilon", 1 - sigma, sigma), torch.ones(4))  # nothing to bound


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_are_those_of_the_paper(prediction_type: str) -> None:
    alpha, sigma = make_schedule("linear").alpha_sigma(torch.tensor([0.0, 10.0, 300.0, 999.0]))
    snr = (alpha / sigma) ** 2
    papers = {"sample": snr.clamp(max=5), "epsilon": snr.clamp(max=5) / snr}
    papers |= {"v_prediction": snr.clamp(max=5) / (snr + 1)}
    papers |= {"flow": snr.clamp(max=5) / (1 + alpha / sigma) ** 2}
    assert_close(
        MinSNRLoss().weight(prediction_type, alpha, sigma), papers[prediction_type], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("predicted", PREDICTION_TYPES)
def test_min_snr_is_the_same_for_every_network(predicted: str) -> None:
    x0, noise = BATCH
    t = torch.tensor(T["linear"])
    alpha, sigma = make_schedule("linear").alpha_sigma(t)
    weight = ((alpha / sigma) ** 2).clamp(max=5)
    error = ((torch.tanh(add_noise(x0, noise, alpha, sigma)) - x0) ** 2).flatten(1).mean(1)
    loss = MinSNRLoss()(denoiser_of("linear", predicted), x0, t, noise)["loss"]
    assert_close(loss, (weight * error).mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "loss", [SimpleLoss("flow"), SimpleLoss("sample"), SimpleLoss("epsilon"), MinSNRLoss()]
)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_ends_of_the_line_are_finite(loss: SimpleLoss | MinSNRLoss, prediction_type: str) -> None:
    scale = torch.ones(1, requires_grad=True)
    denoiser = Denoiser(lambda x, t: x * scale, make_schedule("flow"), prediction_type)
    x0, noise = (batch[:2] for batch in BATCH)
    value = loss(denoiser, x0, torch.tensor([0.0, 1.0]), noise)["loss"]
    value.backward()
    assert bool(torch.isfinite(value))
    assert scale.grad is not None
    assert bool(torch.isfinite(scale.grad).all())


def test_the_exact_denoiser_minimises_every_loss(gaussian) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = gaussian.mean + gaussian.std * torch.randn(5000, 1, generator=generator)
    noise = torch.randn(5000, 1, generator=generator)
    t = make_schedule("linear").sample_t(5000, generator)
    exact = gaussian.denoiser("linear", "sample")
    for loss in (SimpleLoss("epsilon"), SimpleLoss("flow"), MinSNRLoss()):
        best = loss(exact, x0, t, noise)["loss"]
        for factor in (0.97, 1.03):
            off = Denoiser(lambda x, t, f=factor: f * exact.network(x, t), exact.schedule, "sample")
            assert loss(off, x0, t, noise)["loss"] > best


def test_only_the_loss_has_a_gradient_and_absent_quarters_are_left_out() -> None:
    scale = torch.ones(1, requires_grad=True)
    denoiser = Denoiser(lambda x, t: x * scale, make_schedule("linear"), "epsilon")
    x0, noise = (batch[:2] for batch in BATCH)
    parts = SimpleLoss()(denoiser, x0, torch.tensor([0.0, 999.0]), noise)
    assert set(parts) == {"loss", "loss_q0", "loss_q3"}
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


# --------------------------------------------------------------------------------------------------- hybrid


def two_heads() -> tuple[Denoiser, Tensor, Tensor]:
    """A network whose mean and variance have one parameter each."""
    mean, variance = torch.tensor([0.9], requires_grad=True), torch.tensor([0.1], requires_grad=True)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x * mean, torch.zeros_like(x) + variance], dim=1)

    return Denoiser(network, make_schedule("cosine"), "epsilon", learned_variance=True), mean, variance


def test_hybrid_is_simple_plus_the_bound() -> None:
    x0, noise = BATCH[0].clamp(-1, 1), BATCH[1]
    t = torch.tensor([0.0, 1.0, 500.0, 999.0])
    denoiser, *_ = two_heads()
    plain = Denoiser(lambda x, t: x * 0.9, denoiser.schedule, "epsilon")
    hybrid = HybridLoss()(denoiser, x0, t, noise)
    simple = SimpleLoss("epsilon")(plain, x0, t, noise)
    x_t = add_noise(x0, noise, *denoiser.schedule.alpha_sigma(t))
    vlb = 1000 * vlb_term(denoiser.schedule, denoiser.at(x_t, t), x0, x_t, t).mean()
    assert_close(hybrid["simple"], simple["loss"])
    assert_close(hybrid["vlb"], vlb.detach())
    assert_close(hybrid["loss"], simple["loss"] + 0.001 * vlb)
    assert {"loss_q0", "loss_q2", "loss_q3"} < set(hybrid)


def test_the_bound_trains_the_variance_alone() -> None:
    x0, noise = BATCH[0].clamp(-1, 1), BATCH[1]
    t = torch.tensor([0.0, 1.0, 500.0, 999.0])
    gradients = {}
    for weight in (0.0, 0.001):
        denoiser, mean, variance = two_heads()
        HybridLoss(weight)(denoiser, x0, t, noise)["loss"].backward()
        gradients[weight] = (mean.grad, variance.grad)
    assert_close(gradients[0.0][0], gradients[0.001][0])
    assert_close(gradients[0.0][1], torch.zeros(1))
    assert gradients[0.001][1] is not None
    assert bool(gradients[0.001][1].isfinite() & (gradients[0.001][1] != 0))


def test_sharp_loss_is_simple_plus_the_absolute_error() -> None:
    x0, noise = BATCH
    t = torch.tensor(T["linear"])
    denoiser = denoiser_of("linear", "sample")
    simple = SimpleLoss("flow")(denoiser, x0, t, noise)
    sharp = SharpLoss("flow", l1_weight=2.0)(denoiser, x0, t, noise)
    absolute = (torch.tanh(add_noise(x0, noise, *make_schedule("linear").alpha_sigma(t))) - x0).abs().mean()
    assert_close(sharp["l1"], absolute)
    assert_close(sharp["loss"], simple["loss"] + 2 * absolute)
    assert_close(SharpLoss("flow")(denoiser, x0, t, noise)["loss"], simple["loss"])
    with pytest.raises(UserError, match="predicts the sample, got epsilon"):
        SharpLoss()(denoiser_of("linear", "epsilon"), x0, t, noise)
    with pytest.raises(UserError, match="l1_weight must not be negative"):
        SharpLoss(l1_weight=-1)


def test_impossible_losses_are_refused() -> None:
    x0, noise = BATCH
    with pytest.raises(UserError, match="learned_variance=True"):
        HybridLoss()(denoiser_of("linear", "epsilon"), x0, torch.zeros(4), noise)
    skewed = Denoiser(lambda *_: None, DiscreteSchedule.cosine(skew=2), "epsilon", learned_variance=True)
    with pytest.raises(UserError, match=r"uniform training times.*skew=2"):
        HybridLoss()(skewed, x0, torch.zeros(4), noise)
    with pytest.raises(UserError, match="unknown prediction type"):
        SimpleLoss("velocity")
    with pytest.raises(UserError, match="min_sigma must be positive"):
        SimpleLoss(min_sigma=0)
    with pytest.raises(UserError, match="gamma"):
        MinSNRLoss(gamma=-1)
    with pytest.raises(UserError, match="vlb_weight"):
        HybridLoss(vlb_weight=-1)
