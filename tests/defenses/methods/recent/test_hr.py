"""HR: its solvers against general ones, the sheet's numbers, and the reduction to the base."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit, rel_entr, softmax
from torch import Tensor

from robustsuite.defenses import Step, Term, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.hr import HR, hd_weights, hr_weights, tilt
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense

LOSSES = torch.tensor([0.1, 0.5, 1, 2], dtype=torch.float64)


def value(losses: Tensor, weights: Tensor) -> float:
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9)
    return float((losses * weights).sum())


@pytest.mark.parametrize(
    ("poisoned", "radius", "expected"),
    [(0, 0, 0.9), (0.05, 0.1, 1.32573), (0.25, 0.1, 1.64541), (0, 0.1, 1.23399), (0.25, 0, 1.375)],
)
def test_published_values(poisoned: float, radius: float, expected: float):
    assert value(LOSSES, hd_weights(LOSSES, poisoned, radius)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("poisoned", "radius", "expected"),
    [
        (0, 0, 0.9), (0.05, 0, 0.995), (0.05, 0.1, 1.32899), (0.25, 0.1, 1.67169), (0.25, 0.5, 1.98068),
        (0.4, 0.1, 1.86706), (0.05, 0.5, 1.71145),
    ],
)  # fmt: skip
def test_published_values_of_the_other_order(poisoned: float, radius: float, expected: float):
    assert value(LOSSES, hr_weights(LOSSES, poisoned, radius)) == pytest.approx(expected, abs=1e-5)


def test_the_published_distribution():
    found = hd_weights(LOSSES[[2, 0, 3, 1]], 0.05, 0.1)
    assert found.tolist() == pytest.approx([0.2084, 0.1142, 0.4262 + 0.0853, 0.1660], abs=1e-4)


def by_slsqp(losses: Tensor, poisoned: float, radius: float, order: str) -> float:
    """The same problem as it is written, with a general solver: distributions as softmax, moved shares as sigmoid."""
    ell, n = losses.numpy(), len(losses)
    gains, uniform = np.append(ell, ell.max()), np.full(n, 1 / n)
    atoms = n + 1 if order == "hd" else n

    def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distribution that lies in the KL ball, and the mass that is moved from each example."""
        p = softmax(v[:atoms])
        return p, expit(v[atoms:]) * (uniform if order == "hd" else p)

    def gain(v: np.ndarray) -> float:
        p, s = split(v)
        return float(p @ gains) if order == "hd" else float((p - s) @ ell + ell.max() * s.sum())

    def room(v: np.ndarray) -> float:
        p, s = split(v)
        centre = np.append(uniform - s, s.sum()) if order == "hd" else uniform
        return radius - float(np.sum(rel_entr(centre, p)))

    limits = [
        {"type": "ineq", "fun": room},
        {"type": "ineq", "fun": lambda v: poisoned - split(v)[1].sum()},
    ]
    start = np.concatenate([np.zeros(n), [np.log(n * poisoned / 2)] * (atoms - n), np.full(n, logit(poisoned / 2))])
    found = minimize(
        lambda v: -gain(v), start, bounds=[(-15, 15)] * len(start), constraints=limits, method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )  # fmt: skip
    assert min(limit["fun"](found.x) for limit in limits) > -1e-6
    return gain(found.x)


@pytest.mark.parametrize("order", ["hd", "hr"])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_general_solver(order: str, seed: int):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(3, 8))
    losses = torch.from_numpy(generator.exponential(1.0, n))
    poisoned, radius = float(generator.uniform(0.02, 0.5)), float(generator.uniform(0.02, 0.6))
    solve = hd_weights if order == "hd" else hr_weights
    mine = value(losses, solve(losses, poisoned, radius))
    assert mine == pytest.approx(by_slsqp(losses, poisoned, radius, order), abs=2e-4)


@pytest.mark.parametrize("poisoned", [0.02, 0.2, 0.37, 0.5, 0.9])
@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_other_order_against_its_one_dimensional_dual(poisoned: float, radius: float, ties: bool):
    """min over lam of poisoned * lam + V(max(loss, max - lam)), V the KL ball alone: convex, with kinks at losses."""
    losses = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = (4 * losses).round() / 2 if ties else losses
    uniform, top = torch.full_like(losses, 1 / 12), losses.max()

    def dual_at(lam: float) -> float:
        clipped = losses.clamp(min=float(top) - lam)
        return float(poisoned * lam + (clipped * tilt(clipped, uniform, radius)).sum())

    smooth = minimize_scalar(dual_at, bounds=(0, float(top - losses.min())), method="bounded", options={"xatol": 1e-9})
    dual = min(float(smooth.fun), *(dual_at(float(top - kink)) for kink in losses))
    found = value(losses, hr_weights(losses, poisoned, radius))
    assert found <= dual + 1e-9  # weak duality
    assert found == pytest.approx(dual, abs=1e-7)


def test_the_ball_alone_is_spent_and_its_distribution_has_the_closed_form():
    uniform = torch.full_like(LOSSES, 0.25)
    for radius in (1e-6, 0.1, 3.0, 40.0):
        p = tilt(LOSSES, uniform, radius)
        assert float((uniform * (uniform / p).log()).sum()) == pytest.approx(radius, rel=1e-6)
        inverse = uniform / p  # proportional to eta - loss: differences as those of the losses
        assert float((inverse[0] - inverse[1]) / (inverse[1] - inverse[2])) == pytest.approx(0.4 / 0.5, rel=1e-5)
    assert torch.equal(tilt(torch.ones(4).double(), uniform, 1.0), uniform)


@pytest.mark.parametrize("solve", [hd_weights, hr_weights])
def test_limits(solve: Callable[..., Tensor]):
    assert value(LOSSES, solve(LOSSES, 0.999, 0.0)) == pytest.approx(2, abs=0.01)
    assert value(LOSSES, solve(LOSSES, 0.0, 500.0)) == pytest.approx(2, abs=1e-6)
    assert value(LOSSES[:1], solve(LOSSES[:1], 0.3, 0.2)) == pytest.approx(0.1)
    order = torch.tensor([3, 1, 0, 2])
    assert torch.allclose(solve(LOSSES[order], 0.3, 0.2), solve(LOSSES, 0.3, 0.2)[order])
    doubled = LOSSES.repeat(2)
    assert value(doubled, solve(doubled, 0.3, 0.2)) == pytest.approx(value(LOSSES, solve(LOSSES, 0.3, 0.2)), abs=1e-9)
    shifted, scaled = solve(LOSSES - 5, 0.3, 0.2), solve(1e-6 * LOSSES, 0.3, 0.2)
    assert torch.allclose(shifted, solve(LOSSES, 0.3, 0.2), atol=1e-9)
    assert torch.allclose(scaled, solve(LOSSES, 0.3, 0.2), atol=1e-9)


def test_neither_order_is_always_worse():
    losses = torch.tensor([0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1, 1.5], dtype=torch.float64)
    assert value(LOSSES, hr_weights(LOSSES, 0.25, 0.1)) > value(LOSSES, hd_weights(LOSSES, 0.25, 0.1)) + 0.02
    assert value(losses, hr_weights(losses, 0.5, 0.01)) < value(losses, hd_weights(losses, 0.5, 0.01)) - 0.01


@pytest.mark.parametrize("solve", [hd_weights, hr_weights])
def test_a_large_batch_takes_no_time(solve: Callable[..., Tensor]):
    losses = torch.rand(2048, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = time.perf_counter()
    found = solve(losses, 0.05, 0.1)
    assert time.perf_counter() - start < 1
    assert value(losses, found) > float(losses.mean())


@pytest.mark.parametrize(
    ("poisoned", "radius", "expected"),
    [(0.05, 0.1, 1.307884), (0, 0.1, 1.265332), (0.05, 0, 1.103025), (0, 0, 1.053201)],
)
def test_golden_losses(poisoned: float, radius: float, expected: float, toy: Step, loss: Callable[..., float]):
    method = compose(("pgd_at", PGDAT()), ("hr", HR(poisoned, radius)))
    assert loss(method, toy) == pytest.approx(expected, abs=1e-5)


def test_every_term_of_an_example_has_its_weight(toy: Step):
    """TRADES' two terms are one loss; the envelope theorem then gives the derivative of the worst value."""
    base = TRADES(beta=6)
    terms = base.terms(toy)
    weights = HR().weights(toy, terms)
    total = sum(term.weight * term.values for term in terms.values())
    assert torch.equal(weights["ce"], weights["kl"])
    assert torch.allclose(weights["ce"] / 2, hd_weights(total, 0.05, 0.1))
    leaf = total.clone().requires_grad_(True)
    (leaf * hd_weights(leaf.detach(), 0.05, 0.1)).sum().backward()
    for i in range(2):
        nudge = torch.zeros(2, dtype=torch.float64)
        nudge[i] = 1e-5
        slope = (value(total + nudge, hd_weights(total + nudge, 0.05, 0.1))
                 - value(total - nudge, hd_weights(total - nudge, 0.05, 0.1))) / 2e-5  # fmt: skip
        assert float(leaf.grad[i]) == pytest.approx(slope, abs=1e-5)
    assert not HR().weights(toy, {"one": Term(ce(toy.logits("adv").requires_grad_(True), toy.q))})["one"].requires_grad


def test_without_budgets_it_is_the_base(quick: Callable, same: Callable):
    base = ("pgd_at", PGDAT(steps=2))
    assert same(quick(compose(base, ("hr", HR(0, 0)))), quick(compose(base)))
    assert not same(quick(compose(base, ("hr", HR(order="hr")))), quick(compose(base, ("hr", HR()))))


@pytest.mark.parametrize("base", [("pgd_at", PGDAT(steps=2)), ("standard", Standard())])
@pytest.mark.parametrize("order", ["hd", "hr"])
def test_it_trains(base, order, quick: Callable):
    trained = quick(compose(base, ("hr", HR(order=order))), epochs=4)
    losses = [sum(entry.terms.values()) for entry in trained.history]
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("order", ["hd", "hr"])
def test_contract(order: str):
    assert [str(f) for f in check_defense(DEFENSES.get("hr"), {"order": order}) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"poisoned": 1.0}, {"poisoned": -0.1}, {"radius": -1}, {"order": "dh"}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="hr needs"):
        HR(**bad)
