"""ADV-COMP-SUM: the family of losses, the change of the margins, and cross-entropy as its member."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step
from robustsuite.defenses.adv_comp_sum import AdvCompSum, comp_sum, margin_change
from robustsuite.defenses.composed import compose
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.training.inner import maximise


def test_golden_loss(toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        assert loss(AdvCompSum(nu=1), step) == pytest.approx(2.380067, abs=1e-5)
        assert loss(AdvCompSum(nu=0), step) == pytest.approx(0.360645, abs=1e-5)
    change = AdvCompSum().terms(toy)["margin_change"]
    assert change.values.tolist() == pytest.approx([1.802776, 2.236068], abs=1e-5)
    assert change.weight == 0.3


@pytest.mark.parametrize(
    ("tau", "rho", "expected"),
    [(0, 1, 0.185122), (1, 1, 0.169846), (1.5, 1, 0.162834), (2, 1, 0.156205), (1, 0.5, 0.020581)],
)
def test_the_family_by_the_sheet(tau: float, rho: float, expected: float, toy: Step):
    toy.x = toy.views["clean"]
    assert AdvCompSum(tau, rho, 0).terms(toy)["comp_sum"].values[0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.999999, 1.0, 1.7, 2.0, 3.0])
def test_the_family_by_its_definition(tau: float):
    logits = 3 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(20) % 5
    u = (logits - logits.gather(1, y[:, None])).exp().sum(1) - 1
    expected = u.log1p() if tau == 1 else ((1 + u).pow(1 - tau) - 1) / (1 - tau)
    found = comp_sum(logits, nn.functional.one_hot(y, 5).double(), tau)
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_unlikely_classes_do_not_overflow(tau: float):
    logits = torch.tensor([[300.0, 0, -300]], requires_grad=True)
    loss = comp_sum(logits, torch.tensor([[1.0, 0, 0]]), tau)
    loss.sum().backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_of_two_classes_the_change_is_that_of_one_number():
    clean, far = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.5]])
    for y in (0, 1):
        assert margin_change(clean, far, torch.tensor([y])).item() == pytest.approx(3.5)
    same = clean.clone().requires_grad_(True)
    margin_change(clean, same, torch.tensor([0])).sum().backward()
    assert same.grad is not None
    assert not bool(same.grad.any())  # and no NaN


def test_the_attack_goes_farthest(toy: Step):
    """Of a linear network with two classes, D changes by at most eps times the L1 norm of the weights' difference."""
    layer = nn.Linear(4, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2, -1, 0.5], [0, -2, 1, 1]]))
    toy.module = nn.Sequential(nn.Dropout(0.9), layer).train()
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    toy.rebatch(x=x, y=y, q=nn.functional.one_hot(y, 2).float())
    toy.inner = maximise
    adversarial = AdvCompSum().views(toy)["adv"]
    found = margin_change(layer(x), layer(adversarial), y)
    assert found.tolist() == pytest.approx([0.1 * 7.5] * 2, rel=1e-5)
    assert toy.module.training
    assert toy.module[0].training


def test_cross_entropy_is_a_member(quick: Callable, same: Callable):
    assert same(quick(AdvCompSum(nu=0)), quick(Standard()))
    smoothing = ("label_smoothing", LabelSmoothing(0.1))
    pair = [quick(compose(base, smoothing)) for base in (("adv_comp_sum", AdvCompSum(nu=0)), ("standard", Standard()))]
    assert same(*pair)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_it_trains(tau: float, quick: Callable):
    trained = quick(AdvCompSum(tau=tau, steps=2), epochs=4, lr=0.05)
    assert trained.history[-1].terms["comp_sum"] < trained.history[0].terms["comp_sum"]


def test_contract():
    assert [str(f) for f in check_defense(DEFENSES.get("adv_comp_sum")) if not f.ok] == []


def test_it_says_that_it_is_reconstructed_and_refuses_nonsense():
    assert DEFENSES.get("adv_comp_sum").facts["fidelity"] == "reconstructed"
    for bad in ({"tau": -1}, {"rho": 0}, {"nu": -0.1}):
        with pytest.raises(UsageError, match="adv_comp_sum needs"):
            AdvCompSum(**bad)
