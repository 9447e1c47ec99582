"""ADR: labels that averaged weights correct."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import Step, ce
from robustsuite.defenses.adr import ADR, annealed
from robustsuite.defenses.awp import AWP
from robustsuite.defenses.composed import compose
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense

BASE = ("pgd_at", PGDAT(steps=2))
FIXED = ADR(temperature=1, temperature_end=1, share=0.9, share_end=0.9)


def test_golden_labels_and_loss(toy: Step, doubled: Step):
    for step in (toy, doubled):
        step.aux = {"adr": step.module}
        q = FIXED.labels(step)
        p = step.x.softmax(1)
        assert torch.allclose(q, 0.9 * p + 0.1 * step.q)
        losses = ce(step.views["adv"], q)
        assert losses[:2].tolist() == pytest.approx([0.681963, 1.360697], abs=1e-5)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ((0.6, 0.3, 0.1), (0.36, 0.58, 0.06)),
        ((0.1, 0.85, 0.05), (0.09, 0.865, 0.045)),
        ((0.97, 0.02, 0.01), (0.0, 1.0, 0.0)),
    ],
)
def test_a_wrong_average_is_trusted_less(teacher: tuple, expected: tuple, toy: Step, says: Callable):
    probabilities = torch.tensor([teacher], dtype=torch.float64)
    toy.rebatch(x=toy.x[:1], y=torch.tensor([1]), q=torch.tensor([[0.0, 1, 0]]).double(), ids=torch.tensor([0]))
    toy.aux = {"adr": says(probabilities.log())}
    assert FIXED.labels(toy)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_schedules():
    assert [annealed(0.7, 0.95, t) for t in (0, 0.5, 1)] == pytest.approx([0.7, 0.825, 0.95])
    assert annealed(2.5, 2.0, 0.25) == pytest.approx(2.426777, abs=1e-6)


def test_the_temperature_divides_the_logits(toy: Step):
    toy.aux = {"adr": toy.module}
    method = ADR(temperature=4, temperature_end=2, share=0.5, share_end=0.5)
    toy.progress = 0.5
    p = (toy.x / 3).softmax(1)
    share = 0.5 - (p.amax(1) - p.gather(1, toy.y.view(-1, 1))[:, 0])
    assert torch.allclose(method.labels(toy), share[:, None] * p + (1 - share[:, None]) * toy.q)


def test_the_average_takes_statistics_with_it(quick: Callable, same: Callable):
    seen = []

    class Watched(ADR):
        def post_step(self, step: Step) -> None:
            before = {name: tensor.clone() for name, tensor in step.aux["adr"].state_dict().items()}
            super().post_step(step)
            seen.append((before, step.module.state_dict(), step.aux["adr"].state_dict()))
            for name, now in step.module.state_dict().items():
                expected = 0.75 * before[name] + 0.25 * now if now.is_floating_point() else now
                assert torch.allclose(step.aux["adr"].state_dict()[name], expected, atol=1e-7)

    quick(compose(BASE, ("adr", Watched(decay=0.75))), epochs=1)
    assert len(seen) == 3


def test_without_a_share_labels_stay(quick: Callable, same: Callable):
    assert same(quick(compose(BASE, ("adr", ADR(share=0, share_end=0)))), quick(compose(BASE)))
    assert not same(quick(compose(BASE, ("adr", ADR()))), quick(compose(BASE)))


def test_attack_and_loss_see_the_labels_but_not_the_divergence(toy: Step):
    toy.aux = {"adr": toy.module}
    asked = []
    toy.inner = lambda step, spec, x, q: asked.append(q) or x
    method = compose(("trades", TRADES(steps=1)), ("adr", FIXED))
    toy.q = method.labels(toy)
    assert toy.q_attack is toy.q
    toy.views.update(method.views(toy))
    terms = method.terms(toy)
    assert torch.allclose(terms["ce"].values, ce(toy.x, 0.9 * toy.x.softmax(1) + 0.1 * torch.eye(3)[:2].double()))
    assert terms["kl"].values.abs().max() < 1e-12


def test_with_trades_and_awp_and_killed(quick: Callable, survives: Callable):
    whole = compose(("trades", TRADES(steps=1)), ("awp", AWP(0.005)), ("adr", ADR()))
    assert set(quick(whole).history[0].terms) == {"ce", "kl"}
    assert survives(whole)


def test_the_contract_holds():
    assert [str(f) for f in check_defense(DEFENSES.get("adr")) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"share": 1.1}, {"share_end": -0.1}, {"decay": 1}])
def test_bad_parameters_are_refused(bad: dict):
    with pytest.raises(UsageError, match="adr needs"):
        ADR(**bad)
