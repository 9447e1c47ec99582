"""Backward bounds: closed forms, and what more work gives. Exact minima are in test_crown_exact.py."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.bounds.margins import crown_margins
from robustsuite.bounds.region import region

NORMS = ("Linf", "L2", "L1")
SHAPE = (2, 8, 8)
CASES = [
    (["bn", "stride"], "relu"),
    (["dilation", "fork"], "relu"),
    (["residual", "shortcut", "dropout"], "leaky"),
    (["shortcut", "fork", "residual", "pool"], "relu"),
]
WAYS = [{"refine": False}, {}, {"dtype": torch.float64}]
_MADE = runpy.run_path(str(Path(__file__).with_name("crown_networks.py")))
bounds, network = _MADE["bounds"], _MADE["network"]


def margin(logits, y):
    """``logit_y - logit_k`` in float64."""
    logits = logits.double()
    return logits.gather(1, y.view(-1, 1)) - logits


# --- closed forms


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", WAYS)
def test_a_linear_network_is_bounded_by_its_exact_minimum(norm, options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 6), nn.Linear(6, 4)
    )
    x, y, eps = 0.3 + 0.4 * torch.rand(5, *SHAPE), torch.arange(5) % 4, 0.2  # far from the image box
    with torch.no_grad():
        exact = model.double()
        origin = exact(torch.zeros(1, *SHAPE).double())
        basis = exact(torch.eye(128).double().view(128, *SHAPE)) - origin
        weight = basis.gather(1, y.view(1, -1).expand(128, -1)).T.unsqueeze(1) - basis.T
        length = weight.norm(p={"Linf": 1, "L2": 2, "L1": float("inf")}[norm], dim=2)
        middle = margin(exact(x.double()), y)
    found = bounds(model.float(), x, y, eps, norm, **options)
    assert bool((found <= middle - eps * length).scatter(1, y.view(-1, 1), True).all())
    torch.testing.assert_close(found, middle - eps * length, rtol=1e-4, atol=2e-4)
    found = bounds(model, x, y, eps, norm, guard=False, **options | {"dtype": torch.float64})
    reach = eps * (1 + 1e-6) + 1e-7  # what `ThreatModel.contains` lets pass
    torch.testing.assert_close(
        found, middle - reach * length, rtol=1e-9, atol=1e-9
    )  # lengths are rounded up by as much


def test_a_linear_network_in_the_corner_of_the_image_box():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 1.0, -2.0, 0.5, 0.0, -1.0], [0.0] * 6]))
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5]]).view(1, 1, 1, 6)
    for norm, eps, exact in (
        ("Linf", 0.25, -2 + 0.5 - 0.5 + 0 - 0.125 - 0.25),  # the first three coordinates cannot get any worse
        ("L2", 10.0, -2 - 1.0),  # all of the box
        ("L1", 0.1, -2 + 0.45 - 0.6),  # the box around the ball; the ball alone gives -2.3, and -2.1 is exact
    ):
        found = bounds(model, x, torch.tensor([0]), eps, norm)[0, 1]
        assert float(found) == pytest.approx(exact, abs=1e-4), norm


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["relu", "leaky"])
def test_at_radius_zero_the_bounds_are_the_outputs(norm, kind):
    model = network(["bn", "stride", "fork", "residual"], kind)
    x = torch.rand(6, *SHAPE)
    y = torch.arange(6) % 3
    answer = margin(model(x), y)
    for options in WAYS:
        found = bounds(model, x, y, 0.0, norm, **options)
        assert bool((found <= answer).all())
        torch.testing.assert_close(found, answer, rtol=0, atol=5e-3)  # the slack of the ball is part of it


# --- order


@pytest.mark.parametrize("norm", NORMS)
def test_more_work_never_gives_looser_boxes_or_margins(norm):
    for case, (blocks, kind) in enumerate(CASES):
        model = network(blocks, kind, 50 + case)
        graph = trace(model, SHAPE)
        x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(case))
        y = torch.tensor([0, 1, 2])
        ball = region(x, {"Linf": 0.05, "L2": 0.4, "L1": 3.0}[norm], norm)
        coarse, fine = Crown(graph, ball, refine=False), Crown(graph, ball)
        for name in (step.name for step in graph.nodes):
            box = fine.values[name]
            rounding = 1e-6 * coarse.values[name].magnitude
            assert bool((box.lower >= coarse.values[name].lower - rounding).all())
            assert bool((box.upper <= coarse.values[name].upper + rounding).all())
            assert bool((box.lower <= box.upper).all())
        intervals = ibp_margins(graph, ball.box.lower, ball.box.upper, y, guard=True)
        found = [crown_margins(coarse, y), crown_margins(fine, y)]
        assert float((found[1] - intervals).mean()) > 0
        assert float((found[1] - found[0]).mean()) > 0
        for crown, plain in zip((coarse, fine), found, strict=True):
            searched = crown_margins(crown, y, 10)
            assert bool((searched >= plain).all())
            assert float((searched - plain).amax()) > 0


def test_bounds_fall_with_the_radius():
    model = network(["bn", "residual"], "relu", seed=3)
    graph = trace(model, SHAPE)
    x, y = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.arange(4) % 3
    before = None
    for eps in (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0):
        crown = Crown(graph, region(x, eps, "Linf"))
        now = crown_margins(crown, y)
        if before is not None:
            assert bool((now <= before + 1e-6).all())
        before = now


def test_each_example_is_bounded_as_if_alone():
    model = network(["residual", "fork"], "relu", seed=4)
    x, y = torch.rand(5, *SHAPE), torch.arange(5) % 3
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.2], dtype=torch.float64)
    together = bounds(model, x, y, eps, final=4, guard=False, dtype=torch.float64)
    small = bounds(model, x, y, eps, final=4, guard=False, dtype=torch.float64, budget=1)
    torch.testing.assert_close(small, together, rtol=1e-9, atol=1e-9)
    for i in range(5):
        alone = bounds(model, x[i : i + 1], y[i : i + 1], float(eps[i]), final=4, guard=False, dtype=torch.float64)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)
