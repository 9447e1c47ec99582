"""APGD's moves for Linf and L2: steepest ascent with momentum, and a step that is halved at checkpoints."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustsuite.attacks.apgd_rule import APGDState, Rule
from robustsuite.attacks.base import State, rows
from robustsuite.attacks.slots import Fresh, pick
from robustsuite.attacks.starts import on_surface
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel

_MOMENTUM = 0.75


def checkpoints(steps: int) -> dict[int, int]:
    """After how many moves the step size is reviewed, and how many moves each review looks back on.

    The first period is 22 % of the steps, and each next one is 3 % shorter, down to 6 %.
    """
    period = max(int(0.22 * steps), 1)
    shortest, decrement = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, at = {}, period
    while at <= steps:
        found[at] = period
        period = max(period - decrement, shortest)
        at += period
    return found


@lru_cache(maxsize=32)
def _review_table(steps: int, device: torch.device) -> Tensor:
    """`checkpoints` as int64 ``[steps + 1]``, indexed by the moves made: the period, or 0 between reviews."""
    found = checkpoints(steps)
    return torch.tensor([found.get(moves, 0) for moves in range(steps + 1)], device=device)


@dataclass
class MomentumState(APGDState):
    """Besides the best point: the iterate before, and how the loss has risen since the last review."""

    x_prev: Tensor  # [S,C,H,W], the iterate before x_adv
    last: Tensor  # [S], loss of the iterate before
    reviewed: Tensor  # [S], `best` at the last review
    rises: Tensor  # int64 [S], rises of the loss since the last review
    halved: Tensor  # bool [S], whether the last review halved the step


@dataclass(frozen=True)
class Momentum(Rule):
    """AutoAttack's APGD for Linf and L2, move for move. Source: Croce and Hein 2020, algorithm 1.

    The projection of L2 is AutoAttack's too: radially onto the ball, then onto the box. Unlike the joint projection it
    loses some of the budget where the box is active, but it costs four operations instead of a search, published
    results rest on it, and the loss vanishes with the step size: no pixel is pulled back to the ball once the step is
    small. For Linf both are the same.
    """

    steps: int
    rho: float
    quirk: bool

    @property
    def budget(self) -> int:
        """The start and every move."""
        return self.steps + 1

    def start(self, x: Tensor, threat: ThreatModel, noise: ExampleNoise, draw: Tensor) -> Tensor:
        """Random points of the sphere."""
        return on_surface(x, threat, noise, draw)

    def state(self, slots: Fresh, target: Tensor, threat: ThreatModel) -> MomentumState:
        """A step of twice the radius; the first review looks as if one before had halved it (with the quirk)."""
        start = slots["x_adv"]
        low = start.new_full((start.shape[0],), float("-inf"))
        return MomentumState(
            **slots,
            target=target,
            x_best=start.clone(),
            grad_best=torch.zeros_like(start),
            best=low,
            eta=torch.full_like(low, 2 * threat.radius),
            moves=torch.zeros_like(target),
            x_prev=start.clone(),
            last=low.clone(),
            reviewed=low.clone(),
            rises=torch.zeros_like(target),
            halved=torch.full_like(target, self.quirk, dtype=torch.bool),
        )

    def advance(self, state: State, loss: Tensor, grad: Tensor, move: Tensor, threat: ThreatModel) -> None:
        """Book the loss, review the step size where that is due, move."""
        assert isinstance(state, MomentumState)
        self._book(state, loss, grad, move)
        x, grad = self._review(state, grad, move)
        self._move(state, x, grad, move, threat)

    def _book(self, state: MomentumState, loss: Tensor, grad: Tensor, move: Tensor) -> None:
        """Keep the best point and count the rises."""
        start = state.moves == 0
        state.rises += move & ~start & (loss > state.last)
        compared = loss.masked_fill(start, 0) if self.quirk else loss
        state.last = compared.where(move, state.last)
        better = move & (loss > state.best)
        state.keep(better, loss, grad)
        state.reviewed = state.best.where(move & start, state.reviewed)

    def _review(self, state: MomentumState, grad: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step where the loss rose too seldom or stands still; such slots go on from their best point."""
        period = _review_table(self.steps, grad.device)[state.moves]
        due = move & (period > 0)
        halve = due & ((state.rises <= period * self.rho) | (~state.halved & (state.reviewed >= state.best)))
        state.eta = torch.where(halve, state.eta / 2, state.eta)
        state.halved = halve.where(due, state.halved)
        state.reviewed = state.best.where(due, state.reviewed)
        state.rises.masked_fill_(due, 0)
        return pick(halve, state.x_best, state.x_adv), pick(halve, state.grad_best, grad)

    def _move(self, state: MomentumState, x_adv: Tensor, grad: Tensor, move: Tensor, threat: ThreatModel) -> None:
        """``x <- P(x + a (z - x) + (1 - a) (x - x_prev))`` with ``z = P(x + eta ascent)``; a = 1 on the first move."""
        share = torch.where(state.moves == 0, 1.0, _MOMENTUM)
        share, eta = rows(share, grad), rows(state.eta, grad)
        clip = _Clip(state.x, threat)
        jump = clip(x_adv + eta * threat.ascent(grad)).sub_(x_adv).mul_(share)
        drift = (x_adv - state.x_prev).mul_(1 - share)
        moved = clip(jump.add_(x_adv).add_(drift))
        state.x_prev = pick(move, x_adv, state.x_prev)
        state.x_adv = pick(move, moved, state.x_adv)
        state.moves += move


class _Clip:
    """AutoAttack's projection of points (not of perturbations) around ``x``; see `Momentum`."""

    def __init__(self, x: Tensor, threat: ThreatModel) -> None:
        self.x, self.radius = x, threat.radius
        self.bounds = None
        if threat.norm == "Linf":
            self.bounds = (x - threat.radius).clamp_(min=0), (x + threat.radius).clamp_(max=1)

    def __call__(self, point: Tensor) -> Tensor:
        if self.bounds is not None:
            return point.clamp_(*self.bounds)
        delta = point - self.x
        shrink = self.radius / delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        return delta.mul_(rows(shrink.clamp_(max=1), delta)).add_(self.x).clamp_(0, 1)
