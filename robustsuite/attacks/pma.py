"""PMA: ascent on the probability margin, after a phase that has only one of its two probabilities in view."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper, rows, settle
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import inside, within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel


@register_attack(
    "pma",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Xie et al. 2025, arXiv:2411.15210",
)
@dataclass(frozen=True)
class PMA(Stepper):
    """Probability margin attack: steepest ascent on ``max p_other - p_y`` with two cosine schedules of the step.

    The first half of the ``steps`` lowers ``p_y`` (even restarts) or raises the largest other probability (odd ones),
    the second half widens the margin. Each half starts with steps of 2 eps and ends near 0; starts are random points
    of the ball. The paper's first step, which raises ``p_y``, is left out. `slopes` says how gradients survive float32.
    """

    steps: int = 100
    restarts: int = 2

    def __post_init__(self) -> None:
        if self.steps < 2 or self.restarts < 1:
            raise UsageError(f"pma needs steps >= 2 and restarts >= 1, got {self.steps} and {self.restarts}.")

    @property
    def budget(self) -> int:
        """One evaluation an iterate, and one to judge the last."""
        return self.steps + 1

    def lanes(self, num_classes: int) -> int:
        """The restarts."""
        return self.restarts

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> State:
        """Slots at random points of the ball."""
        threat = within(threat, x[0].numel())
        return State(**fresh(x, y, lane, noise, inside(x, threat, noise.child("start"), lane)))

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        """Evaluate `x_adv`, then one ascent step and the projection."""
        threat = within(threat, state.x[0].numel())
        half = self.steps // 2
        second = state.it >= half

        def losses(logits: Tensor) -> Tensor:
            slope = slopes(logits.detach(), state.y)
            early = torch.where(rows(state.lane % 2 == 0, logits), slope.label, slope.other)
            return (torch.where(rows(second, logits), slope.margin, early) * logits).sum(1)

        elapsed = torch.where(second, (state.it - half) / (self.steps - half), state.it / half)
        alpha = threat.radius * (1 + torch.cos(torch.pi * elapsed))
        logits, grad = model.gradient(state.x_adv, losses)
        move = settle(state, logits, self.budget)
        delta = threat.ascent(grad.nan_to_num(0)).mul_(rows(alpha, grad)).add_(state.x_adv).sub_(state.x)
        state.x_adv = pick(move, state.x + threat.project(state.x, delta), state.x_adv)
        return state


@dataclass(frozen=True)
class Slopes:
    """Gradients with respect to the logits ``[S,K]``, each up to a positive factor a row."""

    label: Tensor  # of -p_y
    other: Tensor  # of the largest other probability p_t
    margin: Tensor  # of p_t - p_y


def slopes(logits: Tensor, y: Tensor) -> Slopes:
    """Where the probabilities point, without the factors that make their gradients vanish in float32.

    With q the softmax over the classes other than y (so that ``p_i = (1 - p_y) q_i``): the gradient of -p_y is
    ``p_y (1 - p_y) (q - e_y)``, that of p_t is ``p_t (e_t - p)``, and that of the margin is ``1 - p_y`` times
    ``q_t e_t + (p_y - p_t) q - p_y (1 + q_t) e_y``. Steps follow signs or normalised gradients, which a positive
    factor does not change, so the factors that saturate are dropped. What remains is of order 1 as long as the label
    wins.
    """
    label = torch.zeros_like(logits).scatter_(1, y.view(-1, 1), 1)
    others = logits.scatter(1, y.view(-1, 1), float("-inf"))
    q, p = others.softmax(1), logits.softmax(1)
    target = others.argmax(1, keepdim=True)
    hot = torch.zeros_like(logits).scatter_(1, target, 1)
    p_y, p_t, q_t = p.gather(1, y.view(-1, 1)), p.gather(1, target), q.gather(1, target)
    margin = q_t * hot + (p_y - p_t) * q - p_y * (1 + q_t) * label
    return Slopes(label=q - label, other=hot - p, margin=margin)
