"""MaxSup: the sheet's batch, its kinship with label smoothing, its schedule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.maxsup import MaxSup
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError

LOGITS = torch.tensor([[2.0, 0, -1], [0, 1, 3]], dtype=torch.float64)


@pytest.fixture
def sheet(toy: Step) -> Step:
    """The second example is misclassified."""
    toy.views.clear()
    toy.rebatch(x=LOGITS)
    return toy


def test_the_sheets_numbers(sheet: Step, loss: Callable):
    terms = MaxSup().terms(sheet)
    assert terms["maxsup"].values.tolist() == pytest.approx([5 / 3, 5 / 3])
    assert float(ce(LOGITS, sheet.q).mean()) == pytest.approx(1.169846, abs=1e-5)
    method = compose(("standard", Standard()), ("maxsup", MaxSup()))
    assert loss(method, sheet) == pytest.approx(1.336513, abs=1e-5)


def test_where_the_network_is_right_it_is_label_smoothing(sheet: Step):
    smooth = LabelSmoothing(0.1).labels(sheet)
    added = ce(LOGITS, smooth) - ce(LOGITS, sheet.q)
    mine = 0.1 * MaxSup().terms(sheet)["maxsup"].values
    assert float(added[0]) == pytest.approx(float(mine[0]))
    assert float(added[1]) < float(mine[1])


def test_golden_on_tb(toy: Step, doubled: Step, loss: Callable):
    for step in (toy, doubled):
        method = compose(("pgd_at", PGDAT()), ("maxsup", MaxSup()))
        assert loss(method, step) == pytest.approx(1.053201 + 0.1 * (5 / 6 + 2 / 3) / 2, abs=1e-5)
        clean = compose(("trades", TRADES()), ("maxsup", MaxSup(view="clean")))
        assert loss(clean, step) == pytest.approx(1.968595 + 0.1 * (5 / 3 + 2 / 3) / 2, abs=1e-5)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.1), (0.5, 0.15), (1.0, 0.2)])
def test_the_weight_grows(progress: float, weight: float, sheet: Step):
    sheet.progress = progress
    assert MaxSup().terms(sheet)["maxsup"].weight == pytest.approx(weight)
    assert MaxSup(alpha_end=0.1).terms(sheet)["maxsup"].weight == pytest.approx(0.1)


@pytest.mark.parametrize("base", [("standard", Standard()), ("pgd_at", PGDAT(steps=1)), ("trades", TRADES(steps=1))])
def test_without_alpha_it_is_the_base(base: Any, quick: Callable, same: Callable):
    plain = quick(compose(base))
    assert same(quick(compose(base, ("maxsup", MaxSup(0, 0)))), plain)
    suppressed = quick(compose(base, ("maxsup", MaxSup())))
    assert not same(suppressed, plain)
    assert suppressed.forward == plain.forward


def test_it_trains_to_smaller_logits(quick: Callable):
    plain, held = (quick(compose(("standard", Standard()), *more), epochs=8) for more in ((), (("m", MaxSup(1, 1)),)))
    spread = [t.last_state["5.weight"].norm() for t in (plain, held)]
    assert spread[1] < spread[0]
    assert held.history[-1].terms["ce"] < held.history[0].terms["ce"]


def test_bad_parameters_and_views(sheet: Step):
    with pytest.raises(UsageError, match="alpha and alpha_end"):
        MaxSup(alpha=-1)
    with pytest.raises(UsageError, match="no view 'noisy'"):
        MaxSup(view="noisy").terms(sheet)
