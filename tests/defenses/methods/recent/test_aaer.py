"""AAER: the sheet's numbers, whose gradient flows where, and what is left where no example is abnormal."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, ce, reduce_terms
from robustsuite.defenses.aaer import AAER, abnormality
from robustsuite.defenses.composed import Composed, compose
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.fgsm_rs import FGSMRS
from robustsuite.defenses.n_fgsm import NFGSM
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise

RS = ("fgsm_rs", FGSMRS(bn_mode="train"))


def test_the_numbers_of_the_sheet():
    """Abnormal are the second and the fourth: 0.5 (2.5 0.1 + 1.5 (2 - 0.5)) = 1.25."""
    drop = torch.tensor([0.2, 0.5, 1, 0.3]) - torch.tensor([0.6, 0.4, 1.5, 0.2])
    variation = torch.tensor([0.4, 3.0, 0.6, 1.0], requires_grad=True)
    values = abnormality(drop, variation, 2.5, 1.5)
    assert values.mean().item() == pytest.approx(1.25)
    assert values[[0, 2]].tolist() == [0, 0]
    values.mean().backward()
    assert variation.grad is not None
    assert variation.grad.tolist() == pytest.approx([0, 0.5 * 1.5 / 2, 0, 0.5 * 1.5 / 2])
    milder = abnormality(drop, torch.tensor([4.0, 1, 4, 1]), 2.5, 1.5)
    assert milder.mean().item() == pytest.approx(0.125)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nothing_where_all_are_alike(sign: float):
    assert abnormality(sign * torch.ones(3), torch.rand(3), 2.5, 1.5).tolist() == [0, 0, 0]


def play(method: Composed, data: Any, module: nn.Module) -> Step:
    q = nn.functional.one_hot(data.y, data.num_classes).float()
    step = Step(
        module, data.x, data.y, q, ThreatModel.parse("Linf:0.1"), 0.0, data.num_classes,
        Noise(0, "train/step0").at(data.ids), maximise, adjust=method.inner,
    )  # fmt: skip
    step.views.update(method.views(step))
    return step


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


@pytest.fixture
def crooked() -> nn.Module:
    """A network so curved that one step lowers the loss of some examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), Sine(), nn.Linear(16, 3))
    with torch.no_grad():
        module[1].weight.mul_(15)
    return module


@pytest.mark.parametrize("base", [FGSMRS(), NFGSM(), FGSMAT()])
def test_the_term_against_two_forward_passes(base: FGSMAT, digits: Dataset, crooked: nn.Module):
    method = compose(("base", base), ("aaer", AAER(lam1=2)))
    step = play(method, digits, crooked)
    begun = play(compose(("base", FGSMAT())), digits, crooked).maximise(replace(base.spec(), steps=0))
    before, after = crooked(begun), crooked(step.views["adv"])
    fell = ce(before, step.q) - ce(after, step.q)
    abnormal = fell > 0
    assert 0 < int(abnormal.sum()) < len(fell)
    change = (before - after).square().sum(1)
    excess = (change[abnormal].mean() - change[~abnormal].mean()).clamp(min=0)
    expected = 2 * abnormal.float().mean() * (2.5 * fell[abnormal].mean() + 1.5 * excess)
    found = reduce_terms(method.terms(step), {}, len(step.y))["aaer"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert step.passes.forward == 2 * len(step.y)


@pytest.mark.parametrize("flows", [False, True])
def test_the_cross_entropies_have_a_gradient_only_when_asked(flows: bool, digits: Dataset, crooked: nn.Module):
    method = compose(RS, ("aaer", AAER(lam2=1, lam3=0, ce_term_grad=flows)))
    step = play(method, digits, crooked)
    values = method.terms(step)["aaer"].values
    assert float(values.detach().max()) > 0
    grads = torch.autograd.grad(values.mean(), list(crooked.parameters()))
    assert any(bool(g.any()) for g in grads) == flows


def test_a_doubled_batch_has_the_same_term(digits: Dataset, crooked: nn.Module):
    method = compose(RS, ("aaer", AAER()))
    parts = {"y": digits.y.repeat(2), "ids": digits.ids.repeat(2), "num_classes": 3}
    both = SimpleNamespace(x=digits.x.repeat(2, 1, 1, 1), **parts)
    once, twice = (method.terms(play(method, d, crooked))["aaer"].values.mean().item() for d in (digits, both))
    assert once > 0
    assert once == pytest.approx(twice, rel=1e-5)


def test_no_abnormal_example_is_fgsm(quick: Callable, same: Callable, digits: Dataset):
    """A linear model has none: one step along the gradient raises every loss."""
    plain = quick(compose(RS))
    assert same(quick(compose(RS, ("aaer", AAER(lam1=0)))), plain)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    method = compose(RS, ("aaer", AAER()))
    assert method.terms(play(method, digits, module))["aaer"].values.tolist() == [0.0] * 48


def test_the_ramp(digits: Dataset, crooked: nn.Module):
    method = compose(RS, ("aaer", AAER(lam1=2, ramp=20)))
    step = play(method, digits, crooked)
    for epoch, weight in ((1, 0.1), (10, 1.0), (20, 2.0), (30, 2.0)):
        step.epoch = epoch
        assert method.terms(step)["aaer"].weight == pytest.approx(weight)


@pytest.mark.parametrize("base", [RS, ("n_fgsm", NFGSM())])
def test_it_trains_and_goes_on(base: tuple, quick: Callable, survives: Callable):
    method = compose(base, ("aaer", AAER()))
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert (trained.forward, trained.backward) == (2 * 4 * 48, 2 * 4 * 48)
    assert survives(method)


def test_bad_parameters(quick: Callable):
    for bad in ({"lam1": -1}, {"lam2": -1}, {"lam3": -1}, {"ramp": -1}, {"bn_mode": "off"}):
        with pytest.raises(UsageError, match="aaer needs"):
            AAER(**bad)
    with pytest.raises(UsageError, match="one-step attack"):
        quick(compose(("pgd_at", PGDAT(steps=2)), ("aaer", AAER())))
