"""The box-constrained projection onto a hyperplane against a linear programme and, for L2, a bisection."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from robustsuite.attacks.hyperplane import displacement
from robustsuite.threat import ThreatModel

NORMS = ("Linf", "L2", "L1")
PIXELS = 12


def problem(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, a third of their pixels on the box; weights, some of them zero; the furthest rises, up and down."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, PIXELS, generator=generator).double() * 2 - 0.5).clamp(0, 1)
    w = torch.randn(rows, PIXELS, generator=generator).double() ** 3
    w[:, ::5] = 0
    share = torch.rand(rows, generator=generator).double() * 0.98 + 0.01
    up = torch.arange(rows) % 2 == 0
    reach = torch.where(up.view(-1, 1), torch.where(w > 0, 1 - x, -x), torch.where(w > 0, -x, 1 - x)) * w
    return x, w, reach.sum(1), share


def least(norm: str, x: np.ndarray, w: np.ndarray, rise: float) -> float:
    """The smallest norm of a d with <w, d> = rise in the box."""
    n = len(x)
    if norm == "L2":
        room = np.where(np.sign(w) * np.sign(rise) > 0, 1 - x, x)
        low, high = 0.0, 1e12
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if np.abs(w) @ np.minimum(t * np.abs(w), room) < abs(rise) else (low, t)
        return float(np.linalg.norm(np.minimum(high * np.abs(w), room)))
    box = list(zip(-x, 1 - x, strict=True))
    if norm == "Linf":  # over (d, s): s, with -s <= d <= s
        eye, ones = np.eye(n), -np.ones((n, 1))
        above = np.vstack([np.hstack([eye, ones]), np.hstack([-eye, ones])])
        cost, equal, bounds = np.r_[np.zeros(n), 1], np.r_[w, 0], [*box, (0, None)]
        found = linprog(cost, A_ub=above, b_ub=np.zeros(2 * n), A_eq=equal[None], b_eq=[rise], bounds=bounds)
    else:  # over the two parts of d = up - down
        bounds = [(0, b) for _, b in box] + [(0, -a) for a, _ in box]
        found = linprog(np.ones(2 * n), A_eq=np.r_[w, -w][None], b_eq=[rise], bounds=bounds)
    assert found.status == 0
    return found.fun


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_displacement_reaches_the_plane_and_is_the_shortest(norm, dtype):
    x, w, reach, share = problem(60)
    rise = reach * share
    d = displacement(norm, x.to(dtype), w.to(dtype), rise.to(dtype))
    assert d.dtype == dtype
    slack = 1e-12 if dtype == torch.float64 else 1e-6
    assert (x + d >= -slack).all()
    assert (x + d <= 1 + slack).all()
    assert torch.allclose((w * d).sum(1), rise, rtol=10 * slack, atol=10 * slack)
    assert (d[w == 0] == 0).all()
    sizes = ThreatModel.parse(f"{norm}:1").norms(d)
    for i, size in enumerate(sizes.tolist()):
        assert size == pytest.approx(least(norm, x[i].numpy(), w[i].numpy(), rise[i].item()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_towards_a_plane_out_of_reach_every_pixel_goes_all_the_way(norm):
    x, w, reach, _ = problem(20)
    furthest = torch.where(w * reach.view(-1, 1) > 0, 1 - x, -x).masked_fill(w == 0, 0)
    for factor in (1 + 1e-9, 1.5, 1e6, float("inf")):
        d = displacement(norm, x, w, reach * factor)
        assert torch.allclose(d, furthest, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_without_weights_or_without_rise_nothing_moves(norm):
    x, w, reach, _ = problem(4)
    assert (displacement(norm, x, w * 0, reach) == 0).all()
    assert (displacement(norm, x, w, reach * 0).abs() <= 1e-15).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1e8, 1e25])
def test_the_scale_of_the_weights_does_not_matter(norm, scale):
    x, w, reach, share = (t.float() for t in problem(10))
    wanted = displacement(norm, x, w, reach * share)
    assert torch.allclose(displacement(norm, x, w * scale, reach * share * scale), wanted, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_weights_share_the_way(norm):
    """A tie in L1 has many solutions; the one found depends on no order."""
    x, w = torch.full((1, 8), 0.5), torch.tensor([[1.0, -1.0] * 4])
    d = displacement(norm, x, w, torch.tensor([2.0]))
    assert torch.allclose(d, 0.25 * w, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_see_each_other(norm):
    x, w, reach, share = (t.float() for t in problem(30))
    rise = reach * share
    alone = displacement(norm, x, w, rise)
    hard = reach * 0.999  # needs more rounds than most
    mixed = displacement(norm, x, w, torch.where(torch.arange(30) % 3 == 0, rise, hard))
    assert torch.equal(alone[::3], mixed[::3])


@pytest.mark.reference
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_longer_than_that_of_the_reference(norm):
    package = pytest.importorskip("pyautoattack.fab_projections")
    x, w, reach, share = (t.float() for t in problem(200))
    rise = reach * share
    other = getattr(package, f"projection_{norm.lower()}")(x.clone(), w.clone(), rise + (w * x).sum(1))
    threat = ThreatModel.parse(f"{norm}:1")
    reaches = ((w * other).sum(1) - rise).abs() <= 1e-4 * rise.abs()  # it falls short where many pixels are stuck
    assert reaches.float().mean() > 0.8
    ours, theirs = threat.norms(displacement(norm, x, w, rise)), threat.norms(other)
    assert (ours <= theirs * (1 + 1e-3))[reaches].all()
