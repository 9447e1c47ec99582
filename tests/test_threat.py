"""Geometry against independent solutions: bisection in float64, random feasible points, linear programs by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustsuite.errors import UsageError
from robustsuite.threat import NORMS, Eps, ThreatModel


def threat_of(norm: str, radius: float) -> ThreatModel:
    return ThreatModel(norm, Eps.parse(radius))


def case(seed: int, pixels: int, scale: float, *, edges: bool, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Points of the box and perturbations; with ``edges`` many pixels sit on a bound and many values tie."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, 1, pixels, generator=generator)
    delta = torch.randn(rows, 1, 1, pixels, generator=generator) * scale
    if edges:
        x, delta = (x * 3).floor().clamp(0, 2) / 2, (delta * 4).round() / 4
    return x, delta


cases = st.builds(
    case,
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.3, 2.0, 50.0]),
    edges=st.booleans(),
)
radii = st.floats(0.001, 5.0)


def bisected(x: Tensor, delta: Tensor, norm: str, radius: float) -> Tensor:
    """The projection from its optimality conditions, the multiplier found by bisection in float64."""
    out = []
    for row_x, row in zip(x.double().flatten(1), delta.double().flatten(1), strict=True):
        size, room = row.abs(), torch.where(row < 0, row_x, 1 - row_x)
        if norm == "L2":  # min(size / (1 + mu), room)
            shrink, spent = lambda mu: (size / (1 + mu)).minimum(room), lambda v: v.norm().item()  # noqa: B023
            high = size.norm().item() / radius + 1
        else:  # min(max(size - mu, 0), room)
            shrink, spent = lambda mu: (size - mu).clamp(min=0).minimum(room), lambda v: v.sum().item()  # noqa: B023
            high = size.max().item() + 1
        low = 0.0
        if spent(shrink(0.0)) <= radius:
            high = 0.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(shrink(middle)) > radius else (low, middle)
        out.append(shrink(high) * row.sign())
    return torch.stack(out).view(delta.shape)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@settings(max_examples=150, deadline=None)
@given(data=cases, radius=radii)
def test_projection_is_the_optimum(norm, data, radius):
    x, delta = data
    expected = bisected(x, delta, norm, radius)
    found = threat_of(norm, radius).project(x, delta)
    # float32 room and result: a few units in the last place of the largest value
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(data=cases, radius=radii)
def test_linf_projection_clamps_each_pixel(data, radius):
    x, delta = data
    expected = delta.double().clamp(-radius, radius).maximum(-x.double()).minimum(1 - x.double())
    assert torch.allclose(threat_of("Linf", radius).project(x, delta).double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(data=cases, radius=radii)
def test_projection_stays_put_and_inside(norm, data, radius):
    x, delta = data
    threat = threat_of(norm, radius)
    once = threat.project(x, delta)
    assert torch.allclose(threat.project(x, once), once, rtol=1e-6, atol=1e-6)
    assert threat.contains(x, x + once).all()
    assert (threat.norms(once) <= radius * (1 + 1e-6)).all()
    moved = x.double() + once.double()
    assert moved.min() >= -1e-7
    assert moved.max() <= 1 + 1e-7


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(data=cases, radius=radii, seed=st.integers(0, 2**31))
def test_no_random_feasible_point_is_nearer(norm, data, radius, seed):
    x, delta = data
    threat = threat_of(norm, radius)
    best = (threat.project(x, delta).double() - delta.double()).flatten(1).norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        # scaled towards 0 the candidate stays in the box, and enters the ball
        other = torch.rand(x.shape, generator=generator).double() - x.double()
        other = other * (radius / threat.norms(other)).clamp(max=1).view(-1, 1, 1, 1)
        assert (best <= (other - delta.double()).flatten(1).norm(dim=1) + 1e-5).all()


def test_projection_keeps_what_is_feasible_and_zero_eps_gives_zero():
    x, delta = case(0, 20, 0.01, edges=False)
    delta = torch.clamp(x + delta, 0, 1) - x
    for norm in NORMS:
        assert torch.allclose(threat_of(norm, 10.0).project(x, delta), delta, atol=1e-7)
        assert threat_of(norm, 0.0).project(x, delta).abs().max() == 0


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_projector_projects_as_project_does(norm):
    threat, (x, delta) = ThreatModel.parse(f"{norm}:0.3"), torch.rand(2, 7, 1, 4, 4, generator=torch.Generator())
    x[0], delta = x[0].round(), 4 * delta - 2
    assert torch.equal(threat.projector(x)(delta), threat.project(x, delta))


def test_projection_takes_no_gradient():
    x, delta = case(0, 5, 1.0, edges=False)
    assert not threat_of("L2", 0.1).project(x, delta.requires_grad_()).requires_grad


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(data=cases)
def test_ascent_is_the_dual_maximiser(norm, data):
    """<g, ascent(g)> is the dual norm of g, and ascent has norm 1."""
    _, grad = data
    threat = threat_of(norm, 1.0)
    direction = threat.ascent(grad)
    flat = grad.double().flatten(1)
    dual = {"Linf": flat.abs().sum(1), "L2": flat.norm(dim=1), "L1": flat.abs().amax(1)}[norm]
    gained = (flat * direction.double().flatten(1)).sum(1)
    assert torch.allclose(gained, dual, rtol=1e-5, atol=1e-9)
    nonzero = dual > 0
    assert torch.allclose(threat.norms(direction)[nonzero], torch.ones_like(dual)[nonzero], rtol=1e-5)
    assert threat.norms(direction)[~nonzero].sum() == 0


@pytest.mark.parametrize("norm", NORMS)
def test_contains_refuses_what_leaves_ball_or_box(norm):
    threat = threat_of(norm, 0.25)
    x = torch.full((1, 1, 2, 2), 0.5)
    step = torch.zeros_like(x)
    step[0, 0, 0, 0] = 0.25
    assert threat.contains(x, x + step).all()
    assert not threat.contains(x, x + step * 1.0001).any()
    assert not threat.contains(torch.ones_like(x), torch.ones_like(x) + 1e-6).any()
    assert not threat.contains(torch.zeros_like(x), torch.zeros_like(x) - 1e-6).any()
    assert not threat.contains(x, x + step * math.nan).any()


def test_distance_is_taken_in_float64():
    x = torch.full((1, 1, 1, 3), 0.1)
    x_adv = torch.full((1, 1, 1, 3), 0.4)
    exact = x_adv.double() - x.double()
    assert threat_of("L2", 1).distance(x, x_adv).item() == exact.norm().item()
    assert threat_of("L1", 1).distance(x, x_adv).item() == exact.sum().item()
    assert threat_of("Linf", 1).distance(x, x_adv).item() == exact.max().item()


@pytest.mark.parametrize(
    ("written", "fraction", "printed"),
    [
        ("8/255", Fraction(8, 255), "8/255"),
        ("4/255", Fraction(4, 255), "4/255"),
        ("3/255", Fraction(3, 255), "3/255"),
        ("0.3", Fraction(3, 10), "0.3"),
        ("1e-3", Fraction(1, 1000), "0.001"),
        (" 8 / 255 ", Fraction(8, 255), "8/255"),
        ("12", Fraction(12), "12"),
        (0.5, Fraction(1, 2), "0.5"),
        (0.1, Fraction(1, 10), "0.1"),
        (Fraction(2, 255), Fraction(2, 255), "2/255"),
        ("1/3", Fraction(1, 3), None),
        (0, Fraction(0), "0"),
    ],
)
def test_eps_reads_and_prints(written, fraction, printed):
    eps = Eps.parse(written)
    assert eps.fraction == fraction
    assert float(eps) == float(fraction)
    assert Eps.parse(str(eps)) == eps
    if printed is not None:
        assert str(eps) == printed


def test_eight_by_255_is_not_a_rounded_decimal():
    assert Eps.parse("8/255") != Eps.parse("0.031")
    assert Eps.parse("8/255") != Eps.parse("0.03137254901960784")


@given(st.fractions(min_value=0, max_value=100, max_denominator=10**6))
def test_eps_round_trips(fraction):
    assert Eps.parse(str(Eps(fraction))).fraction == fraction


@pytest.mark.parametrize("bad", ["", "abc", "-0.1", "1/0", "nan", "inf", "8/", float("nan"), float("inf"), None])
def test_a_bad_eps_is_a_usage_error(bad):
    with pytest.raises(UsageError, match="eps"):
        Eps.parse(bad)


@pytest.mark.parametrize(
    ("text", "norm", "printed"),
    [
        ("Linf:8/255", "Linf", "Linf:8/255"),
        ("linf:0.3", "Linf", "Linf:0.3"),
        ("L2:0.5", "L2", "L2:0.5"),
        ("2:1", "L2", "L2:1"),
        ("l1:12", "L1", "L1:12"),
    ],
)
def test_threat_models_read_and_print(text, norm, printed):
    threat = ThreatModel.parse(text)
    assert threat.norm == norm
    assert str(threat) == printed
    assert ThreatModel.parse(str(threat)) == threat


@pytest.mark.parametrize("bad", ["", "Linf", "Linf:", "L3:0.1", "8/255", "L2:-1", "Linf:8/255:2"])
def test_a_bad_threat_model_is_a_usage_error(bad):
    with pytest.raises(UsageError):
        ThreatModel.parse(bad)
