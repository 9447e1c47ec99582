"""BAT: golden numbers, the bridge, and TRADES as its one piece."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.bat import BAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense


@pytest.mark.parametrize(("pieces", "expected"), [(1, 1.968595), (2, 1.181298)])
def test_golden_losses(pieces: int, expected: float, toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        for k in range(1, pieces):
            step.views[f"bridge{k}"] = step.x + k / pieces * (step.views["adv"] - step.x)
        assert loss(BAT(pieces=pieces), step) == pytest.approx(expected, abs=1e-5)


def test_the_jumps_add_up_to_less_than_the_leap(toy: Step):
    toy.views["bridge1"] = (toy.views["clean"] + toy.views["adv"]) / 2
    short, leap = (BAT(pieces=m).terms(toy)["kl"].values for m in (2, 1))
    assert short[0].item() == pytest.approx(0.091463, abs=1e-5)
    assert bool((short < leap).all())


def test_the_bridge_divides_the_way_evenly(toy: Step):
    toy.rebatch(x=torch.tensor([[0.2, 0.5, 1.0], [0.0, 0.3, 0.6]], dtype=torch.float64))
    adversarial = toy.x + torch.tensor([[0.1, -0.1, 0], [0.1, 0.1, -0.1]])
    toy.inner = lambda step, spec, x, q: adversarial
    views = BAT(pieces=4).views(toy)
    assert list(views) == ["bridge1", "bridge2", "bridge3", "adv"]
    for k, view in enumerate(views.values(), 1):
        assert torch.allclose(view, toy.x + k / 4 * (adversarial - toy.x))


def test_the_inner_problem(toy: Step):
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    BAT(steps=3).views(toy)
    BAT(steps=4, attack="kl").views(toy)
    assert asked == [InnerSpec("ce", 3, 0.25), InnerSpec("kl", 4, 0.25, init="gauss")]


def test_one_piece_is_trades_and_no_divergence_is_standard_training(quick: Callable, same: Callable):
    assert same(quick(BAT(pieces=1, attack="kl", steps=2)), quick(TRADES(steps=2)))
    assert same(quick(BAT(beta=0)), quick(Standard()))
    assert not same(quick(BAT(pieces=2, attack="kl", steps=2)), quick(TRADES(steps=2)))


def test_it_trains_at_its_cost(quick: Callable):
    trained = quick(BAT(steps=2, pieces=3), epochs=4)
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]
    assert trained.backward == 4 * 48 * (2 + 3 + 1)


def test_contract():
    assert [str(f) for f in check_defense(DEFENSES.get("bat")) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"beta": -1}, {"pieces": 0}, {"attack": "cw"}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="bat needs"):
        BAT(**bad)
