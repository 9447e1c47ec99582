"""GAIRAT and MAIL: published weights, and nothing changed before they begin."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.gairat import GAIRAT
from robustsuite.defenses.mail import MAIL, probabilistic_margin
from robustsuite.defenses.mart import MART
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.step import Term
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise


def term(values: torch.Tensor) -> dict[str, Term]:
    return {"ce_adv": Term(values)}


@pytest.mark.parametrize(("shift", "raw"), [(-1.0, (0.999665, 0.119203, 6.144e-6)), (0.0, (0.999955, 0.5, 4.54e-5))])
def test_gairat_weights_by_the_sheet(shift: float, raw: tuple[float, ...], toy: Step):
    toy.trace.update(kappa=torch.tensor([0, 5, 10]), iterates=10)
    weights = GAIRAT(shift, start=0).weights(toy, term(torch.ones(3)))["ce_adv"]
    expected = torch.tensor(raw, dtype=torch.float64)
    assert weights.tolist() == pytest.approx((expected * 3 / expected.sum()).tolist(), abs=1e-5)
    assert float(weights.mean()) == pytest.approx(1)
    if shift == -1:
        assert weights.tolist() == pytest.approx([2.680369, 0.319615, 0.000016], abs=1e-5)


def test_gairat_counts_the_iterates_that_are_right(toy: Step):
    """A line on which the attack walks at a known speed: the count is the number of steps to the boundary."""
    toy.module = torch.nn.Linear(1, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        toy.module.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    toy.module.bias = torch.nn.Parameter(torch.tensor([-0.5, 0.5], dtype=torch.float64))
    toy.rebatch(
        x=torch.tensor([[0.525], [0.56], [0.9]], dtype=torch.float64),
        y=torch.zeros(3, dtype=torch.int64),
        q=torch.tensor([[1.0, 0]] * 3, dtype=torch.float64),
        ids=torch.arange(3),
    )
    toy.inner = maximise
    method = GAIRAT(start=0)
    toy.adjust = method.inner
    toy.maximise(InnerSpec("ce", 8, 0.1, init="zero"))  # 0.01 a step
    assert toy.trace["kappa"].tolist() == [3, 7, 8]
    assert toy.trace["iterates"] == 8
    away = InnerSpec("ce", 8, 0.1, descend=True)
    assert method.inner(toy, away) is away


def test_gairat_needs_an_attack(quick):
    with pytest.raises(UsageError, match="runs none"):
        GAIRAT(start=0).weights(_Bare(), term(torch.ones(2)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weighs the terms ce_adv"):
        quick(compose(("standard", Standard()), ("gairat", GAIRAT(start=0))))


class _Bare:
    def __init__(self) -> None:
        self.trace: dict[str, object] = {}
        self.progress = 1.0


def test_golden_margins_and_weights(toy: Step):
    adversarial = toy.views["adv"]
    assert probabilistic_margin(adversarial, toy.y).tolist() == pytest.approx([-0.225890, 0.364175], abs=1e-5)
    for method, expected in [
        (MAIL(slope=1, bias=-1.5, factor=3, start=0), (0.453342, 0.729263)),
        (MAIL(start=0), (0.000703, 0.204525)),
    ]:
        weights = method.weights(toy, term(ce(adversarial, toy.q)))["ce_adv"]
        assert weights.tolist() == pytest.approx(expected, abs=1e-5)
    normalised = MAIL(start=0, normalise=True).weights(toy, term(ce(adversarial, toy.q)))["ce_adv"]
    assert normalised.tolist() == pytest.approx([2 * 0.000703 / 0.205228, 2 * 0.204525 / 0.205228], abs=1e-4)


@pytest.mark.parametrize(("base", "weighed"), [(PGDAT(), "ce_adv"), (TRADES(), "kl"), (MART(), "bce")])
def test_mail_weighs_the_adversarial_term_alone(base, weighed: str, toy: Step):
    toy.progress = 1.0
    assert set(MAIL().weights(toy, base.terms(toy))) == {weighed}


@pytest.mark.parametrize("modifier", [("gairat", GAIRAT(start=1.0)), ("mail", MAIL(start=1.0))])
def test_before_they_begin_it_is_the_base(modifier, quick: Callable, same: Callable):
    base = ("pgd_at", PGDAT(steps=2))
    assert same(quick(compose(base, modifier)), quick(compose(base)))


@pytest.mark.parametrize(
    "modifier", [("gairat", GAIRAT(start=0.5)), ("mail", MAIL(start=0.5)), ("mail", MAIL(2, 0, 3, True, 0.5))]
)
@pytest.mark.parametrize("base", [("pgd_at", PGDAT(steps=3)), ("trades", TRADES(steps=3)), ("mart", MART(steps=3))])
def test_with_every_base_they_train_and_change_it(base, modifier, quick: Callable, same: Callable):
    wide = ThreatModel.parse("Linf:0.3")  # so that some iterates are fooled and some are not
    assert not same(quick(compose(base, modifier), wide), quick(compose(base), wide))


@pytest.mark.parametrize("bad", [{"start": 2}, {"start": -1}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match=r"start in \[0,1\]"):
        GAIRAT(**bad)
    with pytest.raises(UsageError, match=r"start in \[0,1\]"):
        MAIL(**bad)
    with pytest.raises(UsageError, match="factor > 0"):
        MAIL(factor=0)
