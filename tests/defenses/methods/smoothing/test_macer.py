"""MACER against values worked out by hand, and against the radius that smoothing certifies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import norm

from robustsuite.defenses import Step
from robustsuite.defenses.gaussian import Gaussian
from robustsuite.defenses.macer import MACER, hinge
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel

L2 = ThreatModel.parse("L2:0.5")
TWO: dict[str, Any] = {"m": 2, "beta": 2.0}


def test_golden_losses(noisy: Callable[..., Step], loss: Callable[..., float]):
    """-log P_y 0.343976 and 0.792973; xi 2.111509 and 0.423610, hence 0.736061 and 0.947049 for the radius."""
    assert loss(MACER(**TWO), noisy()) == pytest.approx(10.667135470, abs=1e-8)
    assert loss(MACER(**TWO), noisy(times=2)) == pytest.approx(10.667135470, abs=1e-8)
    assert loss(MACER(**TWO, lam=0), noisy()) == pytest.approx((0.343976111 + 0.792972585) / 2, abs=1e-8)
    assert MACER(**TWO).terms(noisy())["radius"].values.tolist() == pytest.approx([0.736061375, 0.947048812], abs=1e-8)


def test_only_right_votes_within_gamma_count(noisy: Callable[..., Step], loss: Callable[..., float]):
    assert loss(MACER(**TWO), noisy(y=(0, 2))) == pytest.approx(5.111434542, abs=1e-8)
    assert MACER(**TWO, gamma=2.0).terms(noisy())["radius"].values[0] == 0
    assert MACER(**TWO, gamma=2.0).terms(noisy())["radius"].values[1] > 0


def test_gamma_minus_the_hinge_is_the_certified_radius():
    """Of two classes with probabilities p and 1 - p the radius is sigma z(p)."""
    p = torch.tensor([0.6, 0.9, 0.99], dtype=torch.float64)
    values = hinge(torch.stack([p, 1 - p], 1), torch.zeros(3, dtype=torch.int64), 8.0)
    assert torch.allclose(0.5 / 2 * (8 - values), 0.5 * torch.from_numpy(norm.ppf(p.numpy())))


def test_the_slope_of_a_quantile_is_one_over_the_density():
    p = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(hinge(p, torch.tensor([1]), 8.0).sum(), p)
    slopes = 1 / norm.pdf(norm.ppf([0.2, 0.7]))
    assert grad[0].tolist() == pytest.approx([slopes[0], -slopes[1], 0])


def test_the_hinge_pushes_the_two_classes_apart_and_certainty_gives_no_nan():
    p = torch.tensor([[0.7, 0.2, 0.1], [1, 0, 0], [0.2, 0.7, 0.1], [0.5, 0.5, 0]], requires_grad=True)
    values = hinge(p, torch.zeros(4, dtype=torch.int64), 8.0)
    (grad,) = torch.autograd.grad(values.sum(), p)
    assert values[1] == 0
    assert values[2] == 0
    assert torch.isfinite(grad).all()
    assert grad[0, 0] < 0 < grad[0, 1]
    assert grad[0, 2] == 0
    assert grad[1].abs().sum() == grad[2].abs().sum() == 0


def test_the_second_term_can_wait(noisy: Callable[..., Step]):
    step = noisy()
    step.progress = 0.3
    assert set(MACER(**TWO, defer=0.5).terms(step)) == {"ce_noisy"}
    step.progress = 0.5
    assert set(MACER(**TWO, defer=0.5).terms(step)) == {"ce_noisy", "radius"}


def test_reductions(quick: Callable, same: Callable):
    assert same(quick(MACER(0.3, m=1, lam=0), L2), quick(Gaussian(0.3), L2))
    assert same(quick(MACER(0.3, m=1, defer=1.0), L2), quick(Gaussian(0.3), L2))
    assert not same(quick(MACER(0.3, m=1), L2), quick(Gaussian(0.3), L2))


def test_it_trains(trains: Callable):
    trains(MACER(m=4), 4 * 96, 4 * 96)


def test_bad_parameters():
    wrong: list[dict[str, Any]] = [{"lam": -1}, {"beta": 0}, {"gamma": 0}, {"defer": 1.5}]
    for bad in wrong:
        with pytest.raises(UsageError, match="macer needs lam"):
            MACER(**bad)
