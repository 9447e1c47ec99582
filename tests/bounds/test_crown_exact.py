"""Backward bounds of dense networks: exact minima and relaxations by linear programs, and the textbook formula."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import trace
from robustsuite.bounds.margins import margin_rows
from robustsuite.bounds.region import region

_MADE = runpy.run_path(str(Path(__file__).with_name("crown_networks.py")))
bounds, mlp = _MADE["bounds"], _MADE["mlp"]


def pieces(model, low, high, row):
    """Exact minimum of ``row . logits`` of a network with one hidden layer: a linear program for every pattern."""
    w, b = model[0].weight.double().numpy(), model[0].bias.double().numpy()
    v, c = model[2].weight.double().numpy(), model[2].bias.double().numpy()
    best = np.inf
    for pattern in itertools.product((0, 1), repeat=len(b)):
        on = np.array(pattern)
        side = np.where(on, -1.0, 1.0)  # w x + b >= 0 where on, <= 0 elsewhere
        found = linprog(
            row @ v @ (on[:, None] * w), side[:, None] * w, -side * b, bounds=list(zip(low, high, strict=True))
        )
        if found.status == 0:
            best = min(best, found.fun + row @ (v @ (on * b) + c))
    return best


def triangles(model, low, high, row):
    """Minimum of ``row . logits`` over the triangle relaxation of the hidden layer: the best that any slopes can do."""
    w, b = model[0].weight.double().numpy(), model[0].bias.double().numpy()
    v, c = model[2].weight.double().numpy(), model[2].bias.double().numpy()
    centre, reach = (low + high) / 2, (high - low) / 2
    lo, up = w @ centre + b - abs(w) @ reach, w @ centre + b + abs(w) @ reach
    n, h = w.shape[1], len(b)
    a, rhs, eye = [], [], np.eye(h)
    for i in range(h):
        if lo[i] >= 0:  # z = w x + b, as two inequalities
            a += [np.r_[w[i], -eye[i]], np.r_[-w[i], eye[i]]]
            rhs += [-b[i], b[i]]
        elif up[i] > 0:
            slope = up[i] / (up[i] - lo[i])
            a += [np.r_[w[i], -eye[i]], np.r_[-slope * w[i], eye[i]]]
            rhs += [-b[i], slope * (b[i] - lo[i])]
    ends = [*zip(low, high, strict=True), *[(0, None if up[i] > 0 else 0) for i in range(h)]]
    found = linprog(np.r_[np.zeros(n), row @ v], np.array(a), np.array(rhs), bounds=ends)
    assert found.status == 0
    return found.fun + row @ c


@pytest.mark.parametrize("seed", range(6))
def test_one_hidden_layer_against_exact_minima_and_the_triangle_relaxation(seed):
    model = mlp([2, 7, 2], seed)
    x, y = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed)), torch.tensor([0])
    row, unstable = np.array([1.0, -1.0]), 0
    for eps in (0.002, 0.05, 0.3, 1.0):
        ball = region(x, eps, "Linf")
        low, high = (end[0].numpy() for end in (ball.box.lower, ball.box.upper))
        exact, relaxed = pieces(model, low, high, row), triangles(model, low, high, row)
        plain = float(bounds(model, x, y, eps, dtype=torch.float64)[0, 1])
        crown = Crown(trace(model, (2,)), ball, dtype=torch.float64)
        hidden = crown.values[crown.graph.nodes[0].name]
        loose = bool(((hidden.lower < 0) & (hidden.upper > 0)).any())
        unstable += loose
        assert plain <= relaxed + 1e-9
        assert relaxed <= exact + 1e-9
        if not loose:
            assert plain == pytest.approx(exact, abs=1e-5)
        # The search's step is 0.1 and falls: what is left is a matter of its length.
        searched = crown.best(crown.graph.output.name, margin_rows(y, 2, crown.dtype)[0], 300)
        assert plain - 1e-12 <= float(searched) <= relaxed + 1e-9
        assert float(searched) == pytest.approx(relaxed, abs=2e-3 * max(1.0, abs(relaxed)))
    assert unstable > 0


def plain_crown(model, x, y, eps, k):
    """Textbook CROWN of one image and one margin in NumPy: all rows of all layers, no intersection with intervals."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    weights = [m.weight.double().numpy() for m in layers]
    biases = [m.bias.double().numpy() for m in layers]
    ball = region(x, eps, "Linf")
    centre = ((ball.box.lower + ball.box.upper) / 2)[0].numpy()
    reach = ((ball.box.upper - ball.box.lower) / 2)[0].numpy()
    boxes = []

    def down(a, depth):
        """Lower bounds of ``a . (what linear layer ``depth`` gives)``."""
        constant = a @ biases[depth]
        a = a @ weights[depth]
        for i in reversed(range(depth)):
            lo, up = boxes[i]
            mixed = (lo < 0) & (up > 0)
            chord = np.where(mixed, up / np.where(mixed, up - lo, 1), lo >= 0)
            below = np.where(mixed, up > -lo, lo >= 0)
            constant = constant + np.minimum(a, 0) @ np.where(mixed, -chord * lo, 0)
            a = np.where(a > 0, a * below, a * chord)
            constant, a = constant + a @ biases[i], a @ weights[i]
        return constant + a @ centre - abs(a) @ reach

    for depth in range(len(layers) - 1):
        eye = np.eye(len(biases[depth]))
        boxes.append((down(eye, depth), -down(-eye, depth)))
    classes = len(biases[-1])
    return float(down(np.eye(classes)[[int(y)]] - np.eye(classes)[[k]], len(layers) - 1)[0])


@pytest.mark.parametrize("eps", [0.005, 0.02, 0.06])
def test_the_textbook_formula_on_dense_layers(eps):
    model = mlp([12, 30, 25, 20, 4], seed=5)
    x, y = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 1])
    found = bounds(model, x, y, eps, guard=False, dtype=torch.float64)
    sharper = 0
    for i, k in itertools.product(range(3), range(4)):
        if k != y[i]:
            textbook = plain_crown(model, x[i : i + 1], y[i], eps, k)
            sharper += found[i, k] > textbook + 1e-6
            assert float(found[i, k]) >= textbook - 0.02 * abs(textbook)
            if eps < 0.05:  # where intervals cut nothing off CROWN's boxes, it is the same number
                assert float(found[i, k]) == pytest.approx(textbook, abs=1e-9)
    assert sharper == 0 or eps > 0.05
