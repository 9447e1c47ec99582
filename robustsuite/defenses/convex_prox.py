"""Proximal maps that convex training by splitting is made of."""

import torch
from torch import Tensor

from robustsuite.defenses.convex_program import Loss, losses

_HALVINGS, _INNER = 32, 22


def shrink_rows(z: Tensor, by: float) -> Tensor:
    """Every row made shorter by ``by``, those that are no longer than that 0: the map of ``by sum_i |z_i|``."""
    size = z.norm(dim=-1, keepdim=True)
    return z * (1 - by / size.clamp(min=by * 1e-9 + 1e-300)).clamp(min=0)


def under(size: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest ``size``, ``bound`` with ``|size| <= bound``, entry by entry."""
    both = ((size.abs() + bound) / 2).clamp(min=0)
    fine = size.abs() <= bound
    return size.where(fine, both.where(bound > -size.abs(), 0) * size.sign()), bound.where(fine, both)


def ordered(upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest ``upper``, ``lower`` with ``upper >= lower``, entry by entry."""
    lift = ((lower - upper) / 2).clamp(min=0)
    return upper + lift, lower - lift


def lower_loss(loss: Loss, q: Tensor, rows: Tensor, half: Tensor, y: Tensor, rate: float) -> Tensor:
    """For each k the g that minimises ``rate loss_k(g) + |g - q_k|^2 / 2``, ``[n,d]`` as ``q`` and ``rows``.

    ``loss_k(g)`` is the worst loss of the linear function g on the cell with centre ``rows_k`` and ``half`` (`losses`).
    With the slope of the loss known, g is a soft threshold; the slope is found by halving an interval.
    """
    if loss == "squared":
        return _lower_squared(q, rows, half, y, rate)
    toward = rows * y.unsqueeze(1)

    def moved(slope: Tensor) -> Tensor:
        return _soft(q + rate * slope * toward, rate * slope * half)

    begun, gain = (toward * q).sum(1, keepdim=True), rate * rows.square().sum(1, keepdim=True)
    wide = bool(half.any())

    def margins(slope: Tensor) -> Tensor:
        if not wide:
            return begun + slope * gain
        g = moved(slope)
        return (toward * g - half * g.abs()).sum(1, keepdim=True)

    low, high = torch.zeros_like(begun), torch.ones_like(begun)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        margin = margins(middle)
        steeper = margin < 1 if loss == "hinge" else (-margin).sigmoid() > middle
        low, high = middle.where(steeper, low), high.where(steeper, middle)
    return moved(high)


def _lower_squared(q: Tensor, rows: Tensor, half: Tensor, y: Tensor, rate: float) -> Tensor:
    """Two slopes: that of ``r^2 / 2``, r itself, and that of ``|f - y|``, between -1 and 1."""
    if not bool(half.any()):
        off = ((rows * q).sum(1) - y) / (1 / rate + rows.square().sum(1))
        return q - off.unsqueeze(1) * rows

    def moved(slope: Tensor) -> Tensor:
        low, high, threshold = -slope, slope, rate * slope * half
        for _ in range(_INNER):
            middle = (low + high) / 2
            above = ((rows * _soft(q - rate * middle * rows, threshold)).sum(1) > y).unsqueeze(1)
            low, high = middle.where(above, low), high.where(above, middle)
        return _soft(q - rate * (low + high) / 2 * rows, threshold)

    def size(g: Tensor) -> Tensor:
        worst = losses("squared", y, (rows * g).sum(1), (half * g.abs()).sum(1))
        return (2 * worst).sqrt().unsqueeze(1)

    low, high = torch.zeros_like(q[:, :1]), size(q)
    for _ in range(_INNER):
        middle = (low + high) / 2
        steeper = size(moved(middle)) > middle
        low, high = middle.where(steeper, low), high.where(steeper, middle)
    return moved((low + high) / 2)


def _soft(z: Tensor, by: Tensor) -> Tensor:
    return z - z.clamp(-by, by)
