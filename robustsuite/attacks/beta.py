"""BETA: the best of all targeted perturbations, found with RMSprop on the margins themselves."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper, rows, settle
from robustsuite.attacks.losses import gap, ranked
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import inside, within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

_DECAY = 0.9  # of RMSprop's second moment
_TINY = 1e-12  # keeps pixels without a gradient from dividing by zero


class _Schedule(NamedTuple):
    """Evaluation 0, 1, ..., as tensors ``[budget]`` on the device."""

    place: Tensor  # int64, whose turn it is in the order of the targets
    moves: Tensor  # int64, moves that this target has made
    live: Tensor  # int64, targets still in the race behind the evaluation
    prunes: Tensor  # bool, whether the race is cut behind it


def rounds(targets: int, steps: int, prune_every: int) -> list[int]:
    """How many targets are live in each round; the last round judges the last iterates."""
    live, found = targets, []
    for number in range(steps + 1):
        if 0 < number < steps and number % prune_every == 0:
            live = (live + 1) // 2
        found.append(live)
    return found


@lru_cache(maxsize=32)
def _schedule(targets: int, steps: int, prune_every: int, device: torch.device) -> _Schedule:
    live = rounds(targets, steps, prune_every)
    after = [*live[1:], live[-1]]
    turns = [(number, place) for number, count in enumerate(live) for place in range(count)]
    ends = [place == live[number] - 1 for number, place in turns]
    columns = (
        [place for _, place in turns],
        [number for number, _ in turns],
        [live[number] for number, _ in turns],
        [end and after[number] < live[number] for (number, _), end in zip(turns, ends, strict=True)],
    )
    return _Schedule(*(torch.tensor(column, device=device) for column in columns))


@dataclass
class BETAState(State):
    """All perturbations of a slot: two images a target (one for L2), of which a step touches one target's alone."""

    classes: Tensor  # int64 [S,T], the targets by clean logit
    points: Tensor  # [S,T,C,H,W], their iterates
    moment: Tensor  # [S,T,C,H,W] or [S,T,1,1,1], RMSprop's second moment
    reached: Tensor  # [S,T], the largest margin of each target
    order: Tensor  # int64 [S,T], indices of the targets, those in the race first


@register_attack(
    "beta",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Robey et al. 2024, arXiv:2306.11035",
)
@dataclass(frozen=True)
class BETA(Stepper):
    """Best targeted attack: ``z_t - z_y`` is raised for every target at once, without a surrogate loss.

    The ``n_targets`` classes with the largest clean logits (all, where there are fewer) make ``steps`` moves each, in
    turn, from random points of the ball; every ``prune_every`` moves the half that has reached larger margins stays.
    ``alpha`` is the step size in eps. RMSprop divides the gradient by the root of its running second moment (with
    bias correction), pixel by pixel for Linf; for L2, where that would not lead to the optimum even of a linear
    model, by that of the whole gradient.
    """

    steps: int = 30
    n_targets: int = 9
    prune_every: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.steps, self.n_targets, self.prune_every) < 1 or self.alpha <= 0:
            raise UsageError(
                "beta needs steps, n_targets and prune_every >= 1 and alpha > 0, got "
                f"{self.steps}, {self.n_targets}, {self.prune_every} and {self.alpha}."
            )

    @property
    def budget(self) -> int:
        """With enough classes for all targets."""
        return sum(rounds(self.n_targets, self.steps, self.prune_every))

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> BETAState:
        """Slots with a random point of the ball for each target."""
        threat, targets = within(threat, x[0].numel()), min(self.n_targets, logits.shape[1] - 1)
        order = ranked(logits, y)[:, :targets].contiguous()
        draws = [lane * targets + number for number in range(targets)]
        points = torch.stack([inside(x, threat, noise.child("start"), draw) for draw in draws], 1)
        moment = torch.zeros_like(points) if threat.norm == "Linf" else torch.zeros_like(points[:, :, :1, :1, :1])
        return BETAState(
            **fresh(x, y, lane, noise, points[:, 0].clone()),
            classes=order,
            points=points,
            moment=moment.contiguous(),
            reached=torch.full_like(order, float("-inf"), dtype=x.dtype),
            order=torch.arange(targets, device=x.device).expand_as(order).contiguous(),
        )

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> BETAState:
        """Evaluate the target whose turn it is and move it; the next one's point becomes `x_adv`."""
        assert isinstance(state, BETAState)
        threat, targets = within(threat, state.x[0].numel()), state.classes.shape[1]
        schedule = _schedule(targets, self.steps, self.prune_every, state.x.device)
        budget = len(schedule.place)
        now = state.it.clamp(max=budget - 1)
        slot = torch.arange(len(now), device=now.device)
        turn = state.order[slot, schedule.place[now]]
        target = state.classes[slot, turn]
        lead, logits, grad = model.loss_gradient(state.x_adv, lambda z: gap(z, state.y, target))
        move = settle(state, logits, budget)
        before = state.reached[slot, turn]
        state.reached[slot, turn] = torch.where(move, lead.maximum(before), before)
        moment, direction = self._direction(state.moment[slot, turn], grad.nan_to_num(0), schedule.moves[now], threat)
        moved = state.x + threat.project(state.x, state.x_adv - state.x + self.alpha * threat.radius * direction)
        state.moment[slot, turn] = pick(move, moment, state.moment[slot, turn])
        state.points[slot, turn] = pick(move, moved, state.points[slot, turn])
        self._prune(state, schedule.live[now], move & schedule.prunes[now])
        following = state.order[slot, schedule.place[(now + 1).clamp(max=budget - 1)]]
        state.x_adv = pick(move, state.points[slot, following], state.x_adv)
        return state

    @staticmethod
    def _direction(moment: Tensor, grad: Tensor, moves: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """RMSprop's new second moment and its direction, of length about 1 in the threat's norm."""
        square = grad.square()
        if threat.norm == "L2":
            square = square.flatten(1).sum(1).view_as(moment)
        moment = torch.lerp(square, moment, _DECAY)
        corrected = moment / rows(1 - _DECAY ** (moves + 1), moment)
        return moment, grad / (corrected.sqrt() + _TINY)

    @staticmethod
    def _prune(state: BETAState, live: Tensor, due: Tensor) -> None:
        """Put the targets in the race in order of the margin reached; the schedule then lets the first half go on."""
        behind = torch.arange(state.order.shape[1], device=live.device) >= live.view(-1, 1)
        reached = state.reached.gather(1, state.order).masked_fill(behind, float("-inf"))
        better = state.order.gather(1, reached.argsort(dim=1, descending=True, stable=True))
        state.order = torch.where(due.view(-1, 1), better, state.order)
