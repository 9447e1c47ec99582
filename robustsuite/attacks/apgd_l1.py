"""APGD's moves for L1: ascent along few pixels, how few being learnt from the best perturbation so far."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from robustsuite.attacks.apgd_rule import APGDState, Rule
from robustsuite.attacks.base import State, rows, settle
from robustsuite.attacks.l1_ball import largest, project
from robustsuite.attacks.slots import Fresh, pick
from robustsuite.attacks.starts import on_surface
from robustsuite.noise import ExampleNoise
from robustsuite.threat import Eps, ThreatModel

_WIDER = (3, 2, 1)  # radii of the phases, in eps
_FIRST_SHARE = 0.2  # of the pixels, that the first steps move
_SPARSER = 1.5  # a step moves the pixels of the best perturbation, divided by this
_SHRUNK = 0.95  # a perturbation with fewer than this share of the pixels it had at the last review has become sparser
_SHORTER, _SHORTEST = 1.5, 10  # where it has not, the step is divided by the one, down to eps over the other
_TOUCH = 1e-6  # a pixel this near to 0 or 1 is held by the box: x + (1 - x) need not be 1


class _Schedule(NamedTuple):
    """What happens behind evaluation 0, 1, ..., as tensors ``[budget]`` on the device."""

    radius: Tensor  # float32, of the phase, in eps
    target: Tensor  # float32, radius in eps of the point to be evaluated next
    due: Tensor  # bool, whether the step is reviewed
    ends: Tensor  # bool, whether the phase ends


def phases(steps: int, largereps: bool) -> list[tuple[int, int]]:
    """Radius in eps and moves of each phase; AutoAttack's three have .3, .3 and .4 of the moves."""
    if not largereps:
        return [(1, steps)]
    early = math.ceil(0.3 * steps)
    return list(zip(_WIDER, (early, early, steps - 2 * early), strict=True))


@lru_cache(maxsize=32)
def _schedule(steps: int, largereps: bool, device: torch.device) -> _Schedule:
    radius: list[int] = []
    target: list[int] = []
    due: list[bool] = []
    ends: list[bool] = []
    parts = phases(steps, largereps)
    for number, (wide, moves) in enumerate(parts):
        period, last = max(int(0.04 * moves), 1), number == len(parts) - 1
        radius += [wide] * (moves + 1)
        target += [wide] * moves + [wide if last else parts[number + 1][0]]
        due += [made > 0 and made % period == 0 for made in range(moves + 1)]
        ends += [False] * moves + [not last]
    floats = (torch.tensor(column, dtype=torch.float32, device=device) for column in (radius, target))
    return _Schedule(*floats, *(torch.tensor(column, device=device) for column in (due, ends)))


@dataclass
class SparseState(APGDState):
    """Besides the best point: how sparse the steps are."""

    share: Tensor  # float32 [S], share of the pixels that a step moves
    support: Tensor  # float32 [S], pixels that the best perturbation moved at the last review


@dataclass(frozen=True)
class Sparse(Rule):
    """AutoAttack's APGD for L1: no momentum, and the exact projection onto ball and box together.

    A step goes to equal parts to the pixels with the largest gradient. Unlike in AutoAttack a pixel that the box holds
    is passed over: where such pixels have the largest gradients, its steps lead nowhere. Reviews come after every 4 %
    of the moves: the next steps move 1/1.5 of the pixels that the best perturbation moves, and where that has become
    sparser the slot goes back to it with the full step eps, while elsewhere the step is divided by 1.5.

    With ``largereps`` the ball is 3 eps, then 2 eps, then eps wide; a phase starts at the projection of the best
    point of the one before. The points of the first two lie outside of the ball, so that fooling is ignored there.
    Source: Croce and Hein 2021, arXiv:2103.01208, algorithms 1 and 2; where they differ, their code.
    """

    steps: int
    largereps: bool

    @property
    def budget(self) -> int:
        """The moves, and the start of every phase."""
        return sum(moves + 1 for _, moves in phases(self.steps, self.largereps))

    def start(self, x: Tensor, threat: ThreatModel, noise: ExampleNoise, draw: Tensor) -> Tensor:
        """Random points on the surface of the first phase's ball."""
        wide = phases(self.steps, self.largereps)[0][0]
        return on_surface(x, ThreatModel("L1", Eps(wide * threat.eps.fraction)), noise, draw)

    def state(self, slots: Fresh, target: Tensor, threat: ThreatModel) -> SparseState:
        """The full step, on a fifth of the pixels; with ``largereps``, on as many as the start says."""
        x, start = slots["x"], slots["x_adv"]
        pixels = x[0].numel()
        full = x.new_full((x.shape[0],), float(pixels))
        support = _support(x, start) if self.largereps else full
        return SparseState(
            **slots,
            target=target,
            x_best=start.clone(),
            grad_best=torch.zeros_like(start),
            best=torch.full_like(full, float("-inf")),
            eta=torch.full_like(full, threat.radius * phases(self.steps, self.largereps)[0][0]),
            moves=torch.zeros_like(target),
            share=support / pixels / _SPARSER if self.largereps else torch.full_like(full, _FIRST_SHARE),
            support=support,
        )

    def settle(self, state: State, logits: Tensor) -> Tensor:
        """Book one evaluation, deaf to what fools outside of the ball."""
        outside = sum(moves + 1 for wide, moves in phases(self.steps, self.largereps) if wide > 1)
        if outside:
            state.muted = state.muted.where(state.done, state.muted.clamp(min=outside - 1))
        return settle(state, logits, self.budget)

    def advance(self, state: State, loss: Tensor, grad: Tensor, move: Tensor, threat: ThreatModel) -> None:
        """Book the loss, review step and sparsity where that is due, move; at the end of a phase, enter the next."""
        assert isinstance(state, SparseState)
        schedule = _schedule(self.steps, self.largereps, grad.device)
        radius, target, due, ends = (column[state.moves] for column in schedule)
        grad = grad * torch.where(grad > 0, state.x_adv < 1 - _TOUCH, state.x_adv > _TOUCH)
        state.keep(move & (loss > state.best), loss, grad)
        x_adv, grad = self._review(state, grad, move & due, radius * threat.radius)
        delta = _step(state, grad).add_(x_adv).sub_(state.x)
        if self.largereps:
            delta = pick(ends, state.x_best - state.x, delta)
        moved = project(state.x, delta, target * threat.radius).add_(state.x).clamp_(0, 1)
        state.x_adv = pick(move, moved, state.x_adv)
        state.moves += move
        if self.largereps:
            self._enter(state, move & ends, target * threat.radius)

    def _review(self, state: SparseState, grad: Tensor, due: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt sparsity and step; slots whose best perturbation became sparser go on from it."""
        support = _support(state.x, state.x_best)
        shrunk = due & (support / state.support < _SHRUNK)
        shorter = (state.eta / _SHORTER).maximum(radius / _SHORTEST)
        state.eta = radius.where(shrunk, shorter).where(due, state.eta)
        state.share = (support / state.x[0].numel() / _SPARSER).where(due, state.share)
        state.support = support.where(due, state.support)
        return pick(shrunk, state.x_best, state.x_adv), pick(shrunk, state.grad_best, grad)

    def _enter(self, state: SparseState, enter: Tensor, radius: Tensor) -> None:
        """Slots that stand at the start of a phase forget the best point of the former."""
        support = _support(state.x, state.x_adv)
        state.best = state.best.masked_fill(enter, float("-inf"))
        state.eta = radius.where(enter, state.eta)
        state.share = (support / state.x[0].numel() / _SPARSER).where(enter, state.share)
        state.support = support.where(enter, state.support)


def _support(x: Tensor, x_adv: Tensor) -> Tensor:
    """How many pixels differ, float32 ``[S]``."""
    return (x_adv != x).flatten(1).sum(1).float()


def _step(state: SparseState, grad: Tensor) -> Tensor:
    """The step: the sign of the gradient where it is largest, with L1 norm eta (ties all count)."""
    size = grad.abs().flatten(1)
    pixels = size.shape[1]
    below = ((1 - state.share) * pixels).clamp(0, pixels - 1).long()
    chosen = size >= largest(size, pixels - below)
    signs = grad.sign() * chosen.view_as(grad)
    length = signs.abs().flatten(1).sum(1).clamp(min=1)
    return signs.mul_(rows(state.eta / length, signs))
