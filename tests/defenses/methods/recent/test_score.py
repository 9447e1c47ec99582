"""SCORE: golden numbers, distances that are metrics, and the farthest distribution."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.losses import kl
from robustsuite.defenses.score import SCORE, squared
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.training.inner import maximise


def test_golden_losses(toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        assert loss(SCORE(beta=4), step) == pytest.approx(0.942399, abs=1e-5)
        assert loss(SCORE(beta=3), step) == pytest.approx(0.745389, abs=1e-5)
        assert loss(SCORE(beta=0), step) == pytest.approx((0.039205 + 0.269515) / 2, abs=1e-5)
    terms = SCORE().terms(toy)
    assert terms["squared"].values.tolist() == pytest.approx([0.039205, 0.269515], abs=1e-5)
    assert terms["distance"].values.tolist() == pytest.approx([0.128772, 0.265247], abs=1e-5)


def test_what_is_clipped_passes(toy: Step):
    assert SCORE(clip=0.2).terms(toy)["distance"].values.tolist() == pytest.approx([0, 0.065247], abs=1e-5)


def test_the_labels_themselves_have_no_loss(toy: Step, loss: Callable[..., float]):
    toy.views["clean"] = toy.views["adv"] = torch.tensor([[80.0, 0, 0], [0, 80, 0]], dtype=torch.float64)
    assert loss(SCORE(), toy) == pytest.approx(0, abs=1e-12)


def test_its_label_smoothing_is_the_classical_one(toy: Step):
    share = 0.1
    q = LabelSmoothing(share, classical=True).labels(toy)
    assert torch.allclose(q, (1 - 3 * share / 2) * toy.q + share / 2)


def test_distances_obey_the_triangle_where_divergences_do_not():
    a, b, c = (torch.tensor([[z, 0.0]], dtype=torch.float64) for z in (-3.0, 0.0, 3.0))
    p = [z.softmax(1) for z in (a, b, c)]
    assert squared(p[0], p[2]).sqrt() <= squared(p[0], p[1]).sqrt() + squared(p[1], p[2]).sqrt() + 1e-12
    assert kl(a, c) > kl(a, b) + kl(b, c)


def test_the_attack_goes_farthest(toy: Step):
    """Two classes, linear: the distance grows with the change of one logit difference, so a corner is best."""
    weight = torch.tensor([[1.0, 2, -1, 0.5], [0, 0, 0, 0]])
    layer = nn.Linear(4, 2, bias=False)
    layer.weight = nn.Parameter(weight)
    toy.module = nn.Sequential(nn.Dropout(0.9), layer).train()
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    toy.rebatch(x=x, y=y, q=nn.functional.one_hot(y, 2).float())
    toy.inner = maximise
    adversarial = SCORE().views(toy)["adv"]
    p = (x @ weight.T).softmax(1)
    corners = torch.cartesian_prod(*[torch.tensor([-0.1, 0.1])] * 4)
    every = torch.stack([squared(((x + c) @ weight.T).softmax(1), p) for c in corners])
    found = squared((adversarial @ weight.T).softmax(1), p)
    assert bool((found > every.sort(0).values[-2] - 1e-6).all())  # one of the two ends of the line
    assert toy.module.training
    assert toy.module[0].training


def test_it_trains_at_its_cost(quick: Callable):
    trained = quick(SCORE(steps=2), epochs=4)
    assert trained.history[-1].terms["squared"] < trained.history[0].terms["squared"]
    assert (trained.forward, trained.backward) == (4 * 48 * 5, 4 * 48 * 4)
    assert quick(SCORE(beta=0)).backward == 2 * 48
    quick(compose(("score", SCORE(steps=1)), ("label_smoothing", LabelSmoothing(0.1, classical=True))))


def test_contract():
    assert [str(f) for f in check_defense(DEFENSES.get("score")) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"beta": -1}, {"clip": -0.1}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="score needs"):
        SCORE(**bad)
