"""ARC: how the points are found that fool as many members of a randomised ensemble as they can, each by its weight."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

_DUAL = {"Linf": 1, "L2": 2}
_BEYOND = 0.05  # of eps, by which a step goes beyond a boundary
_TINY = 1e-10


class Member(Protocol):
    """What is asked of a member; a `Classifier` is one."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]``."""
        ...

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The same, and the gradient at ``x`` of the sum of ``losses(logits)``."""
        ...


def expected_accuracy(members: Sequence[Member], weights: Sequence[float], x: Tensor, y: Tensor) -> Tensor:
    """The probability that a query is answered with the label, float64 ``[N]``."""
    right = torch.stack([(member.logits(x).argmax(1) == y).double() for member in members])
    return torch.tensor(weights, dtype=torch.float64, device=x.device) @ right


def arc(
    members: Sequence[Member],
    weights: Sequence[float],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    alpha: float,
    classes: int,
    order: Noise | None = None,
) -> Tensor:
    """``x_adv`` in ball (Linf or L2) and box, whose expected accuracy is nowhere above that of ``x``.

    Each of ``steps`` rounds builds a move of size ``alpha`` (in units of eps): member after member, by falling weight
    (or, with ``order``, drawn by the weights anew each round), it is turned just over the nearest boundary between the
    member's leading class and the next ``classes``, were the member linear, and each turn is kept where it does not
    raise the expected accuracy. Examples do not see each other. Source: Dbouk, Shanbhag 2022, arXiv:2206.06737,
    algorithm 1.
    """
    size, reached, found = alpha * threat.radius, expected_accuracy(members, weights, x, y), x
    for step in range(steps):
        move, best = torch.zeros_like(x), reached
        for place, index in enumerate(_order(weights, order, step)):
            normal, distance = _nearest(members[index], found + move, classes, threat)
            turned = move + _lengths(place, normal, move, distance, size, threat) * threat.ascent(normal)
            turned = turned * _rows(size / (threat.norms(turned).to(x) + _TINY), x)
            accuracy = expected_accuracy(members, weights, _moved(x, found, turned, threat), y)
            move = turned.where(_rows(accuracy <= best, x), move)
            best = best.minimum(accuracy)
        tried = _moved(x, found, move, threat)
        accuracy = expected_accuracy(members, weights, tried, y)
        found = tried.where(_rows(accuracy <= reached, x), found)
        reached = reached.minimum(accuracy)
    return found


def _nearest(member: Member, x: Tensor, classes: int, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Across the nearest boundary: its normal of dual norm 1, shaped like ``x``, and the distance to it, ``[N]``."""
    near, normal, rank = x.new_full((len(x),), float("inf")), torch.zeros_like(x), 1
    while rank <= classes:

        def lead(z: Tensor, rank: int = rank) -> Tensor:
            top = z.topk(rank + 1, dim=1).values
            return top[:, 0] - top[:, rank]

        logits, slope = member.gradient(x, lead)
        length = slope.flatten(1).norm(p=_DUAL[threat.norm], dim=1) + _TINY
        distance = lead(logits) / length
        normal = (-slope / _rows(length, x)).where(_rows(distance < near, x), normal)
        near = near.minimum(distance)
        classes, rank = min(classes, logits.shape[1] - 1), rank + 1
    return normal, near


def _lengths(place: int, normal: Tensor, move: Tensor, distance: Tensor, size: float, threat: ThreatModel) -> Tensor:
    """How far to go so that, scaled back to ``size``, the move still is beyond the boundary, if that is in reach."""
    plain = torch.full_like(distance, size)
    if place:
        along = (normal * move).flatten(1).sum(1)
        needed = size / (size - distance + _TINY) * (distance - along).abs() + _BEYOND * threat.radius
        plain = needed.where(distance < size, plain)
    return _rows(plain, move)


def _moved(x: Tensor, found: Tensor, move: Tensor, threat: ThreatModel) -> Tensor:
    return (x + threat.project(x, found + move - x)).clamp(0, 1)


def _order(weights: Sequence[float], order: Noise | None, step: int) -> list[int]:
    """By falling weight; or drawn one after the other without putting back, in proportion to the weights."""
    keys = -torch.tensor(weights, dtype=torch.float64)
    if order is not None:
        drawn = order.at(torch.zeros(1, dtype=torch.int64)).uniform((len(weights),), draw=step)[0].double()
        keys = (drawn + 2.0**-25).log() / keys.clamp(max=-1e-12)
    return keys.argsort(stable=True).tolist()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
