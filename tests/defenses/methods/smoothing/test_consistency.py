"""Consistency regularisation against values worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step, kl
from robustsuite.defenses.consistency import Consistency
from robustsuite.defenses.gaussian import Gaussian
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel

L2 = ThreatModel.parse("L2:0.5")


def test_golden_losses(toy: Step, doubled: Step, loss: Callable[..., float]):
    """KL 0.050051 and 0.094657, H 0.750985 and 1.062758, beside a mean cross-entropy of 0.706923."""
    for step in (toy, doubled):
        step.views["noisy"], step.views["noisy1"] = step.views["clean"], step.views["adv"]
        assert loss(Consistency(), step) == pytest.approx(2.607437192, abs=1e-8)
        assert loss(Consistency(lam=10, eta=0), step) == pytest.approx(1.430462289, abs=1e-8)
        assert loss(Consistency(lam=0, eta=0), step) == pytest.approx(0.706923092, abs=1e-8)
    terms = Consistency().terms(toy)
    assert terms["consistency"].values.tolist() == pytest.approx([0.050050588, 0.094657251], abs=1e-8)
    assert terms["entropy"].values.tolist() == pytest.approx([0.750984580, 1.062758241], abs=1e-8)


def test_more_draws_against_the_definition(make_step: Callable[..., Step], small: tuple):
    method = Consistency(m=4, lam=1, eta=1)
    step = make_step(*small)
    step.views.update(method.views(step))
    logits = [step.logits(name) for name in method.joint]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    terms = method.terms(step)
    apart = torch.stack([kl(mean.log(), z) for z in logits]).mean(0)
    assert torch.allclose(terms["consistency"].values, apart)
    # what the code calls its special case: both coefficients alike give the mean cross-entropy to the mean
    cross = torch.stack([-(mean * z.log_softmax(1)).sum(1) for z in logits]).mean(0)
    assert torch.allclose(terms["consistency"].values + terms["entropy"].values, cross)


def test_one_draw_agrees_with_itself(noisy: Callable[..., Step]):
    assert Consistency(m=1).terms(noisy())["consistency"].values.abs().max() == 0


def test_reductions(quick: Callable, same: Callable):
    assert same(quick(Consistency(0.3, m=1, lam=0, eta=0), L2), quick(Gaussian(0.3), L2))
    assert same(quick(Consistency(0.3, m=2, lam=0, eta=0), L2), quick(Gaussian(0.3, m=2), L2))
    assert not same(quick(Consistency(0.3, m=2, eta=0), L2), quick(Gaussian(0.3, m=2), L2))


def test_it_trains(trains: Callable):
    trains(Consistency(), 2 * 96, 2 * 96)


def test_bad_parameters():
    wrong: list[dict[str, Any]] = [{"lam": -1}, {"eta": -0.5}]
    for bad in wrong:
        with pytest.raises(UsageError, match="consistency needs lam and eta"):
            Consistency(**bad)
