"""Exact minima over small ReLU networks: one linear program for every activation pattern."""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn


def linear(model):
    """Weights and biases of the linear layers of a plain chain with ReLUs between them, float64."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    return [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in layers]


def patterns(model, lower, upper):
    """Every pattern of signs that some point of the box has: (pre-activations, f) as affine maps, and constraints.

    Yields ``(maps, A, b)``: ``maps`` holds ``(W, c)`` of every linear layer's result on the region ``A x <= b``.
    """
    layers = linear(model)

    def extend(depth, weight, offset, maps, a, b):
        w, c = layers[depth]
        here = w @ weight, w @ offset + c
        if depth == len(layers) - 1:
            yield [*maps, here], a, b
            return
        for signs in itertools.product((1.0, -1.0), repeat=len(c)):
            sign = np.array(signs)
            more_a, more_b = np.vstack([a, -sign[:, None] * here[0]]), np.concatenate([b, sign * here[1]])
            if linprog(np.zeros(len(lower)), more_a, more_b, bounds=list(zip(lower, upper, strict=True))).status == 0:
                on = sign > 0
                yield from extend(depth + 1, here[0] * on[:, None], here[1] * on, [*maps, here], more_a, more_b)

    size = len(lower)
    yield from extend(0, np.eye(size), np.zeros(size), [], np.zeros((0, size)), np.zeros(0))


def extremes(model, lower, upper, y):
    """Smallest ``f = logit_y - logit_other`` over a box, and the ranges of all pre-activations where ``f <= 0``.

    The ranges: one ``[2, units]`` for each hidden layer; ``[inf, -inf]`` where there is no such point.
    """
    sides = list(zip(lower.tolist(), upper.tolist(), strict=True))
    least, ranges = np.inf, [np.full((2, len(c)), [[np.inf], [-np.inf]]) for _, c in linear(model)[:-1]]
    for maps, a, b in patterns(model, lower.numpy(), upper.numpy()):
        row = maps[-1][0][y] - maps[-1][0][1 - y]
        constant = maps[-1][1][y] - maps[-1][1][1 - y]
        found = linprog(row, a, b, bounds=sides)
        if found.status != 0:
            continue
        least = min(least, found.fun + constant)
        if found.fun + constant > 0:
            continue
        below_a, below_b = np.vstack([a, row]), np.append(b, -constant)
        for (w, c), both in zip(maps[:-1], ranges, strict=True):
            for j in range(len(c)):
                for end, sign in ((0, 1.0), (1, -1.0)):
                    value = linprog(sign * w[j], below_a, below_b, bounds=sides)
                    if value.status == 0:
                        pick = min if end == 0 else max
                        both[end, j] = pick(both[end, j], sign * value.fun + c[j])
    return least, [torch.from_numpy(both) for both in ranges]
