"""The shortest way from a point of the box [0,1] to a hyperplane, without leaving the box, for Linf, L2 and L1."""

import torch
from torch import Tensor
from torch.linalg import vecdot

from robustsuite.threat import Norm

# By is_cuda: a GPU is not asked whether a round is the last. Whatever is left open, no step goes beyond the plane.
_NEWTON = {False: 60, True: 16}
_HALVINGS = 20
_TINY, _HUGE = 1e-30, 1e30


def displacement(norm: Norm, x: Tensor, w: Tensor, rise: Tensor) -> Tensor:
    """The d of smallest norm with ``<w, d> = rise`` and ``x + d`` in the box, ``[S,D]`` in the dtype of ``x``.

    ``x`` (in the box) and ``w`` are ``[S,D]``, ``rise`` is ``[S]``. Where the box does not reach the hyperplane, d
    goes as far towards it as it can; coordinates with w = 0 never move. Every coordinate goes in the direction of
    ``sign(rise) w`` by a part of its room; the parts hang on one number a row, found to rounding (L1: to 1e-6 of the
    largest weight) without a sort. Source: Croce and Hein 2020, arXiv:1907.02044, section 2.2 and appendix A.
    """
    largest = w.abs().amax(1, keepdim=True).clamp_(min=_TINY)
    direction = w.sign().mul_(rise.sign().view(-1, 1))
    weight, goal = w.abs().div_(largest), rise.abs().view(-1, 1) / largest
    room = torch.lerp(x, 1 - x, direction.clamp(min=0))  # lerp: exact at 0 and 1, and faster than where
    if norm == "L1":
        size = _heaviest_first(weight, room, goal)
    elif norm == "L2":
        size = (_level(weight, weight, room, goal) * weight).minimum(room)
    else:
        size = _level(weight, None, room, goal).minimum(room)
    return size.mul_(direction)


def _level(weight: Tensor, pace: Tensor | None, room: Tensor, goal: Tensor) -> Tensor:
    """The t with ``sum weight * min(t * pace, room) = goal``, ``[S,1]``; a huge one where there is none.

    Without ``pace`` all are 1.

    Newton's method from below: the sum is concave and piecewise linear in t, so that t only grows until the set of
    filled rooms stays the same. From then on it keeps its bits, however long other rows go on.
    """
    gain, filled_at = (weight, room) if pace is None else (weight * pace, room / pace.clamp(min=_TINY))
    full = weight * room
    everything = vecdot(full, torch.ones_like(full))  # added up in the order of the sums below
    t = goal / _column(gain.sum(1))
    for _ in range(_NEWTON[room.is_cuda]):
        open_ = filled_at.sub(t).sign_().clamp_(min=0)  # 1 or 0; comparing is slower
        slope = _column(vecdot(gain, open_))
        left = goal - (everything - vecdot(full, open_)).view(-1, 1)
        before, t = t, t.maximum(left / slope).clamp_(max=_HUGE)
        if not room.is_cuda and torch.equal(before, t):
            break
    return t


def _column(slope: Tensor) -> Tensor:
    return slope.clamp_(min=_TINY).view(-1, 1)


def _heaviest_first(weight: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """Rooms filled in order of weight until ``sum weight * size = goal``, ``[S,D]``.

    The weight at which the goal is met lies between `low` and `high`. Halving brings them so close together that the
    rooms between them may share what is left, in proportion.
    """
    full = weight * room
    low, high = torch.full_like(goal, -_TINY), torch.ones_like(goal)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = vecdot(full, _above(weight, middle)).view(-1, 1) >= goal
        low, high = middle.where(enough, low), high.where(enough, middle)
    heavy, some = _above(weight, high), _above(weight, low)
    some -= heavy
    left = goal - vecdot(full, heavy).view(-1, 1)
    share = (left / _column(vecdot(full, some))).clamp_(0, 1)
    return some.mul_(share).add_(heavy).mul_(room)


def _above(weight: Tensor, threshold: Tensor) -> Tensor:
    """1 where the weight exceeds the threshold, 0 elsewhere."""
    return weight.sub(threshold).sign_().clamp_(min=0)
