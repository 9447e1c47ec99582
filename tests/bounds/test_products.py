"""Boxes through dot products in float32: exact results and executions in every order, of cases made to break them."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp, ibp_margins
from robustsuite.bounds.products import float32_image, in_float32, linear
from robustsuite.bounds.region import Region
from robustsuite.bounds.rounding import EXACT, FLOAT32, UNIT_FLOAT32, Box, gamma


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(x, weight, bias=None):
    with torch.no_grad():
        return float32_image(FLOAT32, x, weight, bias, linear)


def serial(x, weight, bias):
    """``x W^T + b`` one product after another, ``[N,K]``."""
    out = torch.zeros(len(x), len(weight))
    for column in range(x.shape[1]):
        out = out + x[:, column, None] * weight[:, column]
    return out + bias


def executions(x, weight, bias, seed):
    """The same layer added up in several orders."""
    shuffled = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    by_size = (x[0] * weight[0]).argsort()
    for order in (torch.arange(x.shape[1]), shuffled, by_size, by_size.flip(0)):
        yield serial(x[:, order], weight[:, order], bias)
        yield F.linear(x[:, order], weight[:, order], bias)


def corners(lower, upper, weight):
    """Points of a box: its corners downhill and uphill for every output, its ends and random corners."""
    for row in weight:
        yield torch.where(row > 0, lower, upper)
        yield torch.where(row > 0, upper, lower)
    for seed in range(4):
        yield torch.where(drawn(seed, *lower.shape) > 0, lower, upper)
    yield from (lower, upper)


def inside(box, value):
    return bool(((box.lower.double() <= value) & (value <= box.upper.double())).all())


def cancelling(seed, terms, spread):
    """A layer of 3 outputs whose products nearly cancel, of sizes that differ by ``10^spread``, and a point."""
    scale = torch.logspace(-spread / 2, spread / 2, terms // 2)
    half, x = drawn(seed, 3, terms // 2) * scale, drawn(seed + 1, 2, terms // 2).abs() / scale.flip(0)
    return torch.cat([half, -half], 1), drawn(seed + 2, 3) * 1e-3, torch.cat([x, x * (1 + 2e-7)], 1)


@pytest.mark.parametrize("terms", [4, 60, 700, 3000])
@pytest.mark.parametrize("spread", [0, 6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
@pytest.mark.parametrize("width", [0.0, 1e-7, 0.1])
def test_cancelling_products_of_every_order_and_scale_stay_inside(terms, spread, scale, width):
    weight, bias, x = cancelling(terms, terms, spread)
    weight, bias = weight * scale, bias * scale
    lower, upper = x * (1 - width), x * (1 + width)
    box = image(Box(lower, upper), weight, bias)
    for point in corners(lower, upper, weight):
        assert inside(box, F.linear(point.double(), weight.double(), bias.double()))
    for point in (lower, upper):
        for executed in executions(point, weight, bias, terms):
            assert inside(box, executed.double())
    exact = ibp(trace(single(weight, bias), (terms,)), lower.double(), upper.double())
    size = F.linear(lower.double().abs().maximum(upper.double().abs()), weight.double().abs(), bias.double().abs())
    assert bool(((exact[0] - box.lower) / size <= 4 * gamma(terms + 16)).all())  # and by not much more
    assert bool(((box.upper - exact[1]) / size <= 4 * gamma(terms + 16)).all())


def single(weight, bias):
    layer = nn.Linear(*weight.T.shape)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("seed", range(5))
def test_exact_fractions_and_the_worst_executions_stay_inside(seed):
    """Every result ``exact (1 + d)`` that the model of arithmetic allows, d at its limit, from rational numbers."""
    weight, bias, x = cancelling(seed, 40, 8)
    box = image(Box(x, x), weight, bias)
    unit, n = Fraction(1, 2**24), 42
    limit = n * unit / (1 - n * unit)
    for i, point in enumerate(x.tolist()):
        for k, row in enumerate(weight.tolist()):
            terms = [*(Fraction(a) * Fraction(b) for a, b in zip(point, row, strict=True)), Fraction(float(bias[k]))]
            worst = limit * sum(map(abs, terms))
            assert Fraction(float(box.lower[i, k])) <= sum(terms) - worst
            assert sum(terms) + worst <= Fraction(float(box.upper[i, k]))


@pytest.mark.parametrize(("size", "weights"), [(1e-39, 1e38), (1e-44, 1e30), (1e-38, 1e-3), (1e-30, 1e-20)])
def test_numbers_below_the_normal_ones_stay_inside(size, weights):
    x, weight = drawn(0, 5, 30) * size, drawn(1, 4, 30) * weights
    box = image(Box(x, x), weight)
    exact = F.linear(x.double(), weight.double())
    assert inside(box, exact)
    for executed in executions(x, weight, torch.zeros(4), 0):
        assert inside(box, executed.double())
    assert inside(box, torch.zeros(5, 4).double()) or bool((exact.abs() > 1e-37).any())  # as if flushed


def test_sums_that_overflow_in_some_order_say_nothing():
    weight = torch.tensor([[3e38, 3e38, -3e38, -3e38], [1.0, 1.0, -1.0, -1.0]])
    x = torch.ones(1, 4)
    box = image(Box(x, x), weight)
    assert box.lower[0, 0] == -torch.inf
    assert box.upper[0, 0] == torch.inf
    assert float(box.upper[0, 1] - box.lower[0, 1]) < 1e-5
    for bad in (float("nan"), float("inf")):
        for lower, upper in [(bad, bad), (0.0, bad)]:
            box = image(Box(x * lower, x * upper), weight)
            assert bool((box.lower == -torch.inf).all())
            assert bool((box.upper == torch.inf).all())


def test_elements_that_are_zero_for_certain_cost_nothing():
    weight, x = drawn(0, 6, 4000), drawn(1, 2, 4000).abs()
    x[:, 5:] = 0
    sparse, dense = image(Box(x, x), weight), image(Box(x[:, :5], x[:, :5]), weight[:, :5])
    assert float((sparse.upper - sparse.lower).amax()) < 60 * float((dense.upper - dense.lower).amax())
    assert inside(sparse, F.linear(x.double(), weight.double()))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2, "padding": 3}])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
def test_convolutions_hold_what_all_corners_give(options, scale):
    layer = nn.Conv2d(4, 6, 3, **options).requires_grad_(False)
    layer.weight.mul_(scale)
    assert layer.bias is not None
    layer.bias.mul_(scale)
    graph = trace(nn.Sequential(layer, nn.Flatten()), (4, 7, 6))
    lower = drawn(0, 3, 4, 7, 6)
    upper = lower + 0.01 * drawn(1, 3, 4, 7, 6).abs()
    low, high = ibp(graph, lower, upper, guard=True)
    exact = ibp(graph, lower.double(), upper.double())
    assert bool(((low < exact[0]) & (exact[1] < high)).all())
    assert float((high - low).mean()) < 1.01 * float((exact[1] - exact[0]).mean())
    for seed in range(20):
        point = torch.where(drawn(seed, *lower.shape) > 0, lower, upper)
        for value in (layer(point).double(), layer.double()(point.double())):
            assert bool(((low <= value.flatten(1)) & (value.flatten(1) <= high)).all())
        layer.float()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_forty_layers(scale):
    layers = []
    for depth in range(40):
        weight = drawn(depth, 30, 30) * scale * (2 / 30) ** 0.5
        layers += [single(weight, 0.1 * drawn(depth + 100, 30)), nn.ReLU()]
    model = nn.Sequential(*layers, single(drawn(1, 3, 30), drawn(2, 3)))
    x, y = drawn(3, 20, 30).sigmoid(), torch.arange(20) % 3
    low, high = ibp(trace(model, (30,)), x, x, guard=True)
    for executed in (model(x).double(), model.double()(x.double())):
        assert bool(((low <= executed) & (executed <= high)).all())
    margins = ibp_margins(trace(model.float(), (30,)), x, x, y, guard=True)
    logits = model(x).double()
    assert bool(((margins <= logits.gather(1, y.view(-1, 1)) - logits) | margins.isnan()).all())


@pytest.mark.parametrize("function", [lambda x: x - 0.3, lambda x: (x + 1e3) - 1e3, lambda x: x * 1e-30 / -3e-30])
def test_sums_and_scales_in_float32_hold_the_exact_and_the_executed_result(function):
    class Model(nn.Module):
        def forward(self, x):
            return function(x).flatten(1)

    x = torch.cat([drawn(0, 50, 9).abs(), 1e-30 * drawn(1, 50, 9), torch.full((1, 9), 0.3)])
    graph = trace(Model(), (9,))
    low, high = ibp(graph, x, x, guard=True)
    for value in (function(x).double(), function(x.double())):
        assert bool(((low <= value) & (value <= high)).all())
    assert float((high - low).amax()) < 5e-3


def test_coarser_products_are_not_trusted():
    weight = drawn(0, 3, 5)
    assert in_float32(FLOAT32, weight, None)
    assert not in_float32(EXACT, weight, None)
    assert not in_float32(FLOAT32, weight.double(), None)
    assert not in_float32(FLOAT32, weight, weight[:, 0].double())
    with torch.autocast("cpu"):
        assert not in_float32(FLOAT32, weight, None)
    torch.set_float32_matmul_precision("medium")
    try:
        assert not in_float32(FLOAT32, weight, None)
        x = drawn(1, 2, 5)
        low, high = ibp(trace(single(weight, torch.zeros(3)), (5,)), x, x, guard=True)
    finally:
        torch.set_float32_matmul_precision("highest")
    value = F.linear(x.double(), weight.double())
    assert bool(((low <= value) & (value <= high)).all())


def test_backward_passes_are_charged_at_least_the_magnitude_of_every_layer():
    weight, bias, x = drawn(0, 7, 600), drawn(1, 7), drawn(2, 3, 600)
    graph = trace(nn.Sequential(single(weight, bias), nn.ReLU(), nn.Linear(7, 2)), (600,))
    point = Region(Box(x.double(), x.double()), x.double(), torch.zeros(3, dtype=torch.float64), "Linf")
    crown = Crown(graph, point, refine=False)
    constant = crown.constants[graph.nodes[0].name]
    assert constant is not None
    low, high = constant
    size = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    charged = (high.double() - low.double()) / 2
    # Of the execution, 600 terms and the bias, and of the coefficients, 7 terms each.
    assert bool((charged >= (602 + 7) * UNIT_FLOAT32 * size).all())
    assert bool((charged <= (602 + 7 + 40) * UNIT_FLOAT32 * size * (1 + 1e-3) + 60 * UNIT_FLOAT32 * bias.abs()).all())
