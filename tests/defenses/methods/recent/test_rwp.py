"""RWP: the mask, the ascent by hand, AWP with one norm, and what the condition leaves out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step, Term
from robustsuite.defenses.composed import compose
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.rwp import ASCENDING, RWP
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError

BASE = ("pgd_at", PGDAT(steps=2))


def test_the_mask_of_the_sheet(toy: Step):
    terms = {"ce_adv": Term(torch.tensor([0.3, 1.6, 1.7, 3.0]))}
    assert RWP().weights(toy, terms) == {}
    toy.trace[ASCENDING] = 1.0
    assert RWP(c=1.7).weights(toy, terms)["ce_adv"].tolist() == [1, 1, 0, 0]
    assert toy.trace[ASCENDING] == 0.5


def test_of_trades_it_is_the_whole_loss(toy: Step):
    """0.169846 + 6 0.171808 = 1.2007 and 0.551445 + 6 0.364175 = 2.7365."""
    toy.trace[ASCENDING] = 1.0
    weights = RWP(c=1.7).weights(toy, TRADES().terms(toy))
    assert {name: mask.tolist() for name, mask in weights.items()} == {"ce": [1, 0], "kl": [1, 0]}


class Examples(nn.Module):
    """Four examples whose losses are smooth in a matrix and a vector; the vector must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.5, -0.3], [0.2, 0.9]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

    def losses(self, w: Tensor | None = None) -> Tensor:
        x = torch.tensor([[1.0, 2], [0, 1], [-1, 1], [3, -2]], dtype=torch.float64)
        return (x @ (self.w if w is None else w) + self.b).exp().sum(1)


def closure_of(method: RWP, step: Step, module: Examples) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        values = module.losses()
        return (values * method.weights(step, {"ce_adv": Term(values)}).get("ce_adv", 1)).mean()

    return closure


@pytest.mark.parametrize("c", [3.5, 6.0, math.inf])
def test_the_ascent_by_hand(c: float, toy: Step):
    toy.module = module = Examples()
    method = RWP(c=c, gamma=0.2, ascents=3)
    offsets = method.perturb(toy, closure_of(method, toy, module))
    assert offsets is not None
    start = module.w.detach()
    total, offset = torch.zeros_like(start), torch.zeros_like(start)
    for _ in range(3):
        w = (start + offset).requires_grad_(True)
        losses = module.losses(w)
        (grad,) = torch.autograd.grad((losses * (losses < c)).mean(), w)
        total = total + grad
        offset = 0.2 * start.norm() / total.norm() * total
    assert torch.allclose(offsets[0], offset, atol=1e-12)
    assert offsets[1].tolist() == [0, 0]
    assert ASCENDING not in toy.trace


def test_one_ascent_on_all_is_awp_with_one_norm(toy: Step):
    toy.module = module = Examples()
    method = RWP(c=math.inf, ascents=1)
    offsets = method.perturb(toy, closure_of(method, toy, module))
    (grad,) = torch.autograd.grad(module.losses().mean(), module.w)
    assert offsets is not None
    assert torch.allclose(offsets[0], 0.01 * module.w.norm() * grad / grad.norm())


def test_it_ends_when_no_loss_is_below(toy: Step):
    toy.module = module = Examples()
    calls = []
    lowest = float(module.losses().detach().min())
    method = RWP(c=lowest * 1.01, gamma=0.2)
    closure = closure_of(method, toy, module)
    assert method.perturb(toy, lambda: calls.append(1) or closure()) is not None
    assert 1 < len(calls) < 10
    assert RWP(c=lowest).perturb(toy, closure_of(RWP(c=lowest), toy, module)) is None
    assert torch.equal(module.w, Examples().w)


def test_what_leaves_the_base(quick: Callable, same: Callable):
    plain = quick(compose(BASE))
    for none in (RWP(c=0), RWP(gamma=0), RWP(warmup=1)):
        assert same(quick(compose(BASE, ("rwp", none))), plain)
    assert not same(quick(compose(BASE, ("rwp", RWP()))), plain)


@pytest.mark.parametrize("base", [BASE, ("trades", TRADES(steps=2))])
def test_it_trains_with_both(base: Any, quick: Callable, survives: Callable):
    method = compose(base, ("rwp", RWP(ascents=3)))
    trained = quick(method)
    assert all(math.isfinite(value) for value in trained.history[-1].terms.values())
    assert trained.last_state["1.num_batches_tracked"] == 2 * 3 * (2 if base[0] == "trades" else 1)
    assert survives(method)


@pytest.mark.parametrize("bad", [{"c": -1}, {"c": math.nan}, {"gamma": -1}, {"ascents": 0}, {"warmup": 2}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="rwp needs"):
        RWP(**bad)
