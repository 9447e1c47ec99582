"""Stability training against values worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step
from robustsuite.defenses.gaussian import Gaussian
from robustsuite.defenses.stability import Stability
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel

L2 = ThreatModel.parse("L2:0.5")


def test_golden_losses(toy: Step, doubled: Step, loss: Callable[..., float]):
    """CE 0.360645 clean and 1.053201 noisy; D 0.696075 and 1.339503, as a divergence 0.171808 and 0.364175."""
    for step in (toy, doubled):
        step.views["noisy"] = step.views["adv"]
        assert loss(Stability(), step) == pytest.approx(2.396223175, abs=1e-8)
        assert loss(Stability(divergence="kl"), step) == pytest.approx(0.896628729, abs=1e-8)
        assert loss(Stability(divergence="kl", labelled="noisy"), step) == pytest.approx(1.589184178, abs=1e-8)
        assert loss(Stability(lam=0), step) == pytest.approx(0.360645, abs=1e-6)
    assert Stability().terms(toy)["stability"].values.tolist() == pytest.approx([0.696074652, 1.339503156], abs=1e-8)


def test_the_gradient_flows_through_both_sides(make_step: Callable[..., Step], small: tuple):
    step = make_step(*small)
    step.views.update(Stability().views(step))
    clean, noisy = (step.logits(name) for name in ("clean", "noisy"))
    term = Stability().terms(step)["stability"].values.sum()
    assert all(bool(g.any()) for g in torch.autograd.grad(term, [clean, noisy]))


def test_reductions(quick: Callable, same: Callable):
    assert same(quick(Stability(lam=0), L2), quick(Standard(), L2))
    assert same(quick(Stability(0.3, lam=0, labelled="noisy"), L2), quick(Gaussian(0.3), L2))
    assert not same(quick(Stability(0.3, lam=1, labelled="noisy"), L2), quick(Gaussian(0.3), L2))


def test_it_trains(trains: Callable):
    trains(Stability(), 2 * 96, 2 * 96)


def test_bad_parameters(quick: Callable):
    wrong: list[dict[str, Any]] = [{"lam": -1}, {"divergence": "js"}, {"labelled": "both"}]
    for bad in wrong:
        with pytest.raises(UsageError, match="stability needs lam"):
            Stability(**bad)
    with pytest.raises(UsageError, match="made for L2"):
        quick(Stability())
