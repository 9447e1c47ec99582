"""APGD: projected gradient ascent with momentum and a step size that adapts itself (part of AutoAttack)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper, rows, settle
from robustsuite.attacks.losses import LOSSES, dlr_targeted
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import on_surface, within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

_MOMENTUM = 0.75
_PAPER = "Croce and Hein 2020, arXiv:2003.01690"


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
class APGDState(State):
    """What APGD remembers of a slot. Its schedule counts `moves`, which a refused candidate does not shift."""

    target: Tensor  # int64 [S], class to reach (untargeted losses ignore it)
    x_prev: Tensor  # [S,C,H,W], the iterate before x_adv
    x_best: Tensor  # [S,C,H,W], where the loss was largest
    grad_best: Tensor  # [S,C,H,W], the gradient there
    best: Tensor  # [S], that loss
    last: Tensor  # [S], loss of the iterate before
    reviewed: Tensor  # [S], `best` at the last review
    rises: Tensor  # int64 [S], rises of the loss since the last review
    halved: Tensor  # bool [S], whether the last review halved the step
    eta: Tensor  # [S], step size
    moves: Tensor  # int64 [S]


@dataclass(frozen=True)
class APGD(Stepper):
    """Auto-PGD for Linf and L2, move for move that of AutoAttack.

    The projection of L2 is AutoAttack's too: radially onto the ball, then onto the box. Unlike the joint projection it
    loses some of the budget where the box is active, but it costs four operations instead of a search, published
    results rest on it, and the loss vanishes with the step size: no pixel is pulled back to the ball once the step is
    small. For Linf both are the same.

    ``steps`` moves make ``steps + 1`` evaluations. ``rho``: share of rises below which the step is halved.
    ``first_checkpoint_quirk`` (AutoAttack's code): at the first review the first rise is counted from 0 instead of
    from the loss of the start, and a best loss that did not improve is no reason to halve; False follows the paper.
    Source: Croce and Hein 2020, algorithm 1.
    """

    loss: ClassVar[str] = "ce"

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    first_checkpoint_quirk: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"apgd needs steps >= 1 and restarts >= 1, got {self.steps} and {self.restarts}.")

    @property
    def budget(self) -> int:
        """The start and every move."""
        return self.steps + 1

    def lanes(self, num_classes: int) -> int:
        """The restarts."""
        return self.restarts

    def targets(self, logits: Tensor, y: Tensor, lane: Tensor) -> Tensor:
        """The class that each slot aims at, int64 ``[S]``; an untargeted loss has none, and y stands in."""
        return y.clone()

    def losses(self, logits: Tensor, state: APGDState) -> Tensor:
        """The loss of each slot, ``[S]``."""
        return LOSSES[self.loss](logits, state.y)

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> APGDState:
        """Slots at random points of the sphere."""
        threat = within(threat, x[0].numel())
        start = on_surface(x, threat, noise.child("start"), lane)
        low = x.new_full((x.shape[0],), float("-inf"))
        return APGDState(
            **fresh(x, y, lane, noise, start),
            target=self.targets(logits, y, lane),
            x_prev=start.clone(),
            x_best=start.clone(),
            grad_best=torch.zeros_like(x),
            best=low,
            last=low.clone(),
            reviewed=low.clone(),
            rises=torch.zeros_like(y),
            halved=torch.full_like(y, self.first_checkpoint_quirk, dtype=torch.bool),
            eta=torch.full_like(low, 2 * threat.radius),
            moves=torch.zeros_like(y),
        )

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> APGDState:
        """Evaluate `x_adv`, book its loss, review the step size where that is due, move."""
        threat = within(threat, state.x[0].numel())
        assert isinstance(state, APGDState)
        values: list[Tensor] = []

        def losses(logits: Tensor) -> Tensor:
            values.append(self.losses(logits, state))
            return values[0]

        logits, grad = model.gradient(state.x_adv, losses)
        move = settle(state, logits, self.budget)
        grad = grad.nan_to_num(0)
        self._book(state, values[0].detach(), grad, move)
        x, grad = self._review(state, grad, move)
        self._move(state, x, grad, move, threat)
        return state

    def _book(self, state: APGDState, loss: Tensor, grad: Tensor, move: Tensor) -> None:
        """Keep the best point and count the rises."""
        start = state.moves == 0
        state.rises += move & ~start & (loss > state.last)
        compared = loss.masked_fill(start, 0) if self.first_checkpoint_quirk else loss
        state.last = compared.where(move, state.last)
        better = move & (loss > state.best)
        state.best = loss.where(better, state.best)
        state.x_best = pick(better, state.x_adv, state.x_best)
        state.grad_best = pick(better, grad, state.grad_best)
        state.reviewed = state.best.where(move & start, state.reviewed)

    def _review(self, state: APGDState, grad: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step where the loss rose too seldom or stands still; such slots go on from their best point."""
        period = _review_table(self.steps, grad.device)[state.moves]
        due = move & (period > 0)
        halve = due & ((state.rises <= period * self.rho) | (~state.halved & (state.reviewed >= state.best)))
        state.eta = torch.where(halve, state.eta / 2, state.eta)
        state.halved = halve.where(due, state.halved)
        state.reviewed = state.best.where(due, state.reviewed)
        state.rises.masked_fill_(due, 0)
        return pick(halve, state.x_best, state.x_adv), pick(halve, state.grad_best, grad)

    def _move(self, state: APGDState, x_adv: Tensor, grad: Tensor, move: Tensor, threat: ThreatModel) -> None:
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
    """AutoAttack's projection of points (not of perturbations) around ``x``; see `APGD`."""

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


@register_attack(
    "apgd-ce",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper=_PAPER,
)
@dataclass(frozen=True)
class APGDCE(APGD):
    """Auto-PGD on the cross-entropy."""

    loss: ClassVar[str] = "ce"


@register_attack(
    "apgd-dlr",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper=_PAPER,
)
@dataclass(frozen=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio (the plain margin where there are two classes)."""

    loss: ClassVar[str] = "dlr"


@register_attack(
    "apgd-margin",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper=_PAPER,
)
@dataclass(frozen=True)
class APGDMargin(APGD):
    """Auto-PGD on the margin."""

    loss: ClassVar[str] = "margin"


@register_attack(
    "apgd-t",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper=_PAPER,
)
@dataclass(frozen=True)
class APGDT(APGD):
    """Auto-PGD on the targeted DLR loss, one try for each of the likeliest other classes (all, where there are few).

    ``n_targets`` classes, by clean logit. ``restarts`` repeats the whole list.
    """

    n_targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_targets < 1:
            raise UsageError(f"apgd-t needs n_targets >= 1, got {self.n_targets}.")

    def lanes(self, num_classes: int) -> int:
        """A lane for each target and restart; the targets of one restart come first."""
        return min(self.n_targets, num_classes - 1) * self.restarts

    def targets(self, logits: Tensor, y: Tensor, lane: Tensor) -> Tensor:
        """The class with the (lane + 1)-th largest clean logit among the others."""
        others = logits.scatter(1, y.view(-1, 1), float("-inf"))
        order = others.argsort(dim=1, descending=True, stable=True)
        rank = lane % min(self.n_targets, logits.shape[1] - 1)
        return order.gather(1, rank.view(-1, 1)).squeeze(1)

    def losses(self, logits: Tensor, state: APGDState) -> Tensor:
        """Targeted DLR; any misclassification counts as success, not the target's alone."""
        return dlr_targeted(logits, state.y, state.target)
