"""Modifiers of the inner maximisation: friendly early stop, and a growing radius."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.eps_ramp import EpsRamp
from robustsuite.defenses.fat import FAT
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.n_fgsm import NFGSM
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel


def line(make_step: Callable) -> Step:
    """Three examples at 0.525, 0.56 and 0.9 on a line whose second class begins below 0.5."""
    layer = nn.Linear(1, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.bias.copy_(torch.tensor([-0.5, 0.5]))
    x = torch.tensor([[0.525], [0.56], [0.9]], dtype=torch.float64)
    return make_step(layer, x, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("tau", [0, 1, 2, 8])
def test_an_example_stops_tau_steps_after_it_has_crossed(tau: int, make_step: Callable):
    step = line(make_step)
    step.adjust = FAT(tau, dynamic=False).inner
    adv = step.maximise(InnerSpec("ce", 8, 0.1, init="zero"))  # 0.01 a step
    crossed = torch.tensor([3, 7, 8])  # the first step after which it is wrong, or all
    taken = (crossed + tau).clamp(max=8)
    assert torch.allclose(adv.flatten(), step.x.flatten() - 0.01 * taken)


@pytest.mark.parametrize(("tau", "reached"), [(0, 0.53), (1, 0.51), (2, 0.51)])
def test_a_right_point_moves_on_however_little_patience_is_left(tau: int, reached: float, make_step: Callable):
    """A network that is wrong between 0.526 and 0.534 alone: steps of 0.01 from 0.55 land there once."""

    class Stretch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = (x - 0.53).abs() - 0.004
            return torch.cat([right - x, -right - x], 1)

    step = make_step(Stretch(), torch.tensor([[0.55]], dtype=torch.float64), torch.tensor([0]))
    step.adjust = FAT(tau, dynamic=False).inner
    downwards = InnerSpec(lambda logits: logits.sum(1), 4, 0.1, init="zero")
    assert float(step.maximise(downwards)) == pytest.approx(reached)


def test_what_descends_is_left_alone(toy: Step):
    inverse = InnerSpec(descend=True)
    assert FAT().inner(toy, inverse) is inverse


def test_tau_grows_as_in_their_code(toy: Step):
    found = []
    for progress in (0.0, 49 / 120, 50 / 120, 89 / 120, 90 / 120, 1.0):
        toy.progress = progress
        found.append((FAT().inner(toy, InnerSpec()).patience, FAT(1, False).inner(toy, InnerSpec()).patience))
    assert found == [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)]


@pytest.mark.parametrize("base", [("pgd_at", PGDAT(steps=3)), ("trades", TRADES(steps=3))])
def test_with_patience_for_all_steps_fat_changes_nothing(base, quick: Callable, same: Callable):
    plain = quick(compose(base))
    assert same(quick(compose(base, ("fat", FAT(3, dynamic=False)))), plain)
    friendly = quick(compose(base, ("fat", FAT())))
    assert not same(friendly, plain)
    assert (friendly.forward, friendly.backward) == (plain.forward, plain.backward)


def test_friendly_examples_have_the_smaller_loss(quick: Callable):
    plain, friendly = (
        quick(compose(("pgd_at", PGDAT(steps=5)), *more), threat=ThreatModel.parse("Linf:0.3"), epochs=3)
        for more in ((), (("fat", FAT(0, False)),))
    )
    assert friendly.history[0].terms["ce_adv"] < plain.history[0].terms["ce_adv"]


@pytest.mark.parametrize(
    ("ramp", "progress", "expected"),
    [
        (EpsRamp(), 0.0, 0.0),
        (EpsRamp(), 0.25, 0.25),
        (EpsRamp(), 1.0, 1.0),
        (EpsRamp(share=0.5), 0.25, 0.5),
        (EpsRamp(share=0.5), 0.75, 1.0),
        (EpsRamp(share=0), 0.0, 1.0),
        (EpsRamp(start=0.5), 0.5, 0.75),
    ],
)
def test_the_factor(ramp: EpsRamp, progress: float, expected: float, toy: Step):
    toy.progress = progress
    assert ramp.factor(progress) == pytest.approx(expected)
    spec = ramp.inner(toy, InnerSpec(alpha=0.25, eps=2.0))
    assert (spec.eps, spec.alpha) == pytest.approx((2 * expected, 0.25 * expected))
    fixed = EpsRamp(ramp.share, ramp.start, scale_steps=False).inner(toy, InnerSpec(alpha=0.25))
    assert (fixed.eps, fixed.alpha) == pytest.approx((expected, 0.25))


@pytest.mark.parametrize(("method", "reach"), [(PGDAT(), 1.0), (FGSMAT(), 1.0), (NFGSM(), 3.0)])
@pytest.mark.parametrize("progress", [0.0, 1 / 3, 1.0])
def test_views_lie_in_the_smaller_ball(method, reach: float, progress: float, make_step: Callable, linear):
    module, x, y, _ = linear
    step = make_step(module, x, y, progress=progress)
    step.adjust = EpsRamp().inner
    largest = float((method.views(step)["adv"] - x).abs().max())
    assert largest <= 0.1 * reach * progress + 1e-6
    assert largest >= 0.9 * 0.1 * reach * progress


def test_a_full_ramp_changes_nothing(quick: Callable, same: Callable):
    base = ("pgd_at", PGDAT(steps=2))
    for still in (EpsRamp(share=0), EpsRamp(start=1)):
        assert same(quick(compose(base, ("eps_ramp", still))), quick(compose(base)))
    assert not same(quick(compose(base, ("eps_ramp", EpsRamp()))), quick(compose(base)))


def test_bad_parameters():
    with pytest.raises(UsageError, match="tau >= 0"):
        FAT(tau=-1)
    for share, start in ((2, 0), (0.5, -0.1)):
        with pytest.raises(UsageError, match=r"share and start in \[0,1\]"):
            EpsRamp(share, start)
