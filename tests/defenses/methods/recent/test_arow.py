"""ARoW and CoW: golden numbers, whom they regularise, and training on smoothed labels as what is left."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.arow import ARoW
from robustsuite.defenses.composed import compose
from robustsuite.defenses.cow import CoW
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense

P, ADVERSARIAL, KL = (0.843795, 0.576117), (0.574097, 0.211942), (0.171808, 0.364175)


def test_golden_losses(toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        step.q = ARoW().labels(step)
        assert loss(ARoW(), step) == pytest.approx(1.854556, abs=1e-5)
        expected = 0.593979 + 7 * sum(p * k for p, k in zip(P, KL, strict=True)) / 2
        assert loss(CoW(), step) == pytest.approx(expected, abs=2e-5)


def test_golden_loss_with_classical_smoothing(toy: Step, loss: Callable[..., float]):
    toy.q = LabelSmoothing(0.2, classical=True).labels(toy)
    assert loss(ARoW(smoothing=0), toy) == pytest.approx(1.971223, abs=1e-5)
    assert torch.equal(ARoW(smoothing=0).labels(toy), toy.q)


@pytest.mark.parametrize(("size", "expected"), [(60.0, 0.0), (-60.0, 1.0)])
def test_robust_examples_are_left_alone_and_lost_ones_count_in_full(size: float, expected: float, toy: Step):
    toy.views["adv"] = size * toy.q
    ratio = ARoW().terms(toy)["kl"].values / CoW().terms(toy)["kl"].values
    assert torch.allclose(ratio, expected / torch.tensor(P).double(), atol=1e-5)


@pytest.mark.parametrize("method", [ARoW, CoW])
def test_the_gradient_goes_through_the_weight_or_not(method: type[ARoW], toy: Step):
    """Against finite differences of the value, and of the value with its weight held fixed."""
    clean, adversarial = toy.views["clean"].clone(), toy.views["adv"].clone()
    weights = 1 - torch.tensor(ADVERSARIAL).double() if method is ARoW else torch.tensor(P).double()

    def at(z: torch.Tensor, z_adv: torch.Tensor, through: bool) -> torch.Tensor:
        toy.views.update(clean=z, adv=z_adv)
        toy.forget_logits()
        values = method(through=through).terms(toy)["kl"].values
        if not through:
            own = method().terms(toy)["kl"].values
            values = values / own * own  # the value is the same
        return values.sum()

    grads = {}
    for through in (True, False):
        leaves = clean.clone().requires_grad_(True), adversarial.clone().requires_grad_(True)
        grads[through] = torch.autograd.grad(at(*leaves, through), leaves)
    nudge = torch.zeros_like(clean)
    nudge[1, 2] = 1e-5
    slope = (at(clean, adversarial + nudge, True) - at(clean, adversarial - nudge, True)) / 2e-5
    assert grads[True][1][1, 2].item() == pytest.approx(slope.item(), abs=1e-6)
    fixed = weights[1] * (adversarial[1].softmax(0) - clean[1].softmax(0))  # of KL(p || p') in z'
    assert grads[False][1][1].tolist() == pytest.approx(fixed.tolist(), abs=1e-5)
    changed = grads[True][1 if method is ARoW else 0] - grads[False][1 if method is ARoW else 0]
    assert float(changed.abs().max()) > 1e-3


def test_the_inner_problem(toy: Step):
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    ARoW(steps=3).views(toy)
    CoW(steps=4, attack="ce").views(toy)
    assert asked == [InnerSpec("kl", 3, 0.25, init="gauss"), InnerSpec("ce", 4, 0.25)]


@pytest.mark.parametrize("method", [ARoW, CoW])
def test_without_divergence_it_is_training_on_smoothed_labels(method: type[ARoW], quick: Callable, same: Callable):
    smoothed = compose(("standard", Standard()), ("label_smoothing", LabelSmoothing(0.2)))
    assert same(quick(method(beta=0)), quick(smoothed))
    assert same(quick(method(beta=0, smoothing=0)), quick(Standard()))


def test_the_attack_sees_hard_labels(quick: Callable, same: Callable):
    steps = {"steps": 2, "attack": "ce"}
    by_hand = compose(("arow", ARoW(smoothing=0, **steps)), ("label_smoothing", LabelSmoothing(0.2, scope="loss")))
    assert same(quick(ARoW(**steps)), quick(by_hand))


@pytest.mark.parametrize("method", [ARoW(steps=2), CoW(steps=2), ARoW(steps=2, through=False)])
def test_they_train(method: ARoW, quick: Callable):
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]


@pytest.mark.parametrize("name", ["arow", "cow"])
def test_contract(name: str):
    assert [str(f) for f in check_defense(DEFENSES.get(name)) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"beta": -1}, {"smoothing": 1.0}, {"attack": "cw"}])
def test_bad_parameters(bad: dict):
    for method in (ARoW, CoW):
        with pytest.raises(UsageError, match="needed: beta >= 0"):
            method(**bad)
