"""Activation patterns of a ReLU neuron on the training images, sampled by random hyperplanes."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from robustsuite.defenses.convex_program import Cells
from robustsuite.noise import Noise

_DRAWS = 20  # at most, for each pattern that is asked for
_ROOM = 1e-7


def sample_patterns(cells: Cells, count: int, noise: Noise) -> Tensor:
    """At most ``count`` different patterns ``1[rows a >= 0]`` with ``a`` ~ N(0, I), float64 ``[n,P]`` of 0 and 1.

    The first is that of a neuron which is always on (a linear network), and none is that of one which is always off.
    For cells with a width every second hyperplane is laid through images that are moved to random corners, as in the
    paper; and of the patterns only those are taken that a neuron can keep on all cells (`holds`), as a solution could
    have 0 alone for the others. Fewer come back where 20 draws for each find no more. Source: Bai, Gautam, Sojoudi
    2023, arXiv:2201.01965, algorithms 1 and 2.
    """
    rows, n = cells.rows, len(cells.centre)
    wide = bool(cells.half.any())
    always = torch.ones(n, dtype=torch.bool)
    seen, found = {_key(always), _key(~always)}, [always]
    for draw, plane in _planes(rows.shape[1], count, noise):
        if len(found) >= count:
            break
        at = rows
        if wide and draw % 2:
            corner = noise.child("corners").at(torch.arange(n)).signs((cells.half.shape[1],), draw=draw)
            at = torch.cat([cells.centre + corner.double() * cells.half, rows[:, -1:]], 1)
        on = at @ plane >= 0
        if _key(on) in seen:
            continue
        seen.add(_key(on))
        if not wide or holds(cells, on):
            found.append(on)
    return torch.stack(found[:count], 1).double()


def holds(cells: Cells, on: Tensor) -> bool:
    """Whether a hyperplane has the whole cells where ``on`` (bool ``[n]``) on its one side, the others on the other.

    A linear program in the plane, bounds of its entries' sizes, and the room that it leaves to the nearest cell.
    """
    rows, half = cells.rows.numpy(), cells.half.numpy()
    n, d = half.shape
    side = np.where(on.numpy(), 1.0, -1.0)[:, None]
    one, none = np.eye(d), np.zeros((d, 1))
    apart = np.hstack([-side * rows, half, np.ones((n, 1))])
    sizes = np.vstack([np.hstack([sign * one, none, -one, none]) for sign in (1, -1)])
    goal = np.append(np.zeros(2 * d + 1), -1.0)
    bounds = [(-1, 1)] * d + [(-d, d)] + [(0, 1)] * d + [(0, None)]
    found = linprog(goal, A_ub=np.vstack([apart, sizes]), b_ub=np.zeros(n + 2 * d), bounds=bounds)
    return found.x is not None and -found.fun > _ROOM


def _planes(size: int, count: int, noise: Noise) -> Iterator[tuple[int, Tensor]]:
    """All draws one by one, made ``count`` at a time."""
    for start in range(0, _DRAWS * count, count):
        draws = torch.arange(start, start + count)
        yield from zip(draws.tolist(), noise.child("hyperplanes").at(draws).normal((size,)).double(), strict=True)


def _key(on: Tensor) -> bytes:
    return on.numpy().tobytes()
