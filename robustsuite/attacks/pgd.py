"""PGD: projected gradient ascent with a fixed step size, for evaluation and as the inner maximiser of training."""

from dataclasses import dataclass

from torch import Tensor

from robustsuite.attacks.base import State, Stepper, settle
from robustsuite.attacks.losses import LOSSES, check_loss
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import inside, within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import Eps, ThreatModel

_EUCLIDEAN = ThreatModel("L2", Eps.parse(1))


@register_attack(
    "pgd",
    norms=("Linf", "L2", "L1"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Madry et al. 2018, arXiv:1706.06083",
)
@dataclass(frozen=True)
class PGD(Stepper):
    """Projected gradient ascent along the steepest direction of the norm, with exact joint projection.

    L1 goes along the gradient itself: the steepest direction is a single pixel, and such steps circle between pixels
    that the box has nearly stopped.

    ``alpha`` is the step size in input units; without it, ``rel_alpha * eps / steps``. ``restarts`` are independent
    random starts (`starts.inside`), tried in order. ``loss``: ce, margin or dlr. ``stop_when_fooled=False`` makes
    exactly ``steps`` evaluations whatever they show and leaves the final iterate in `x_adv`: the inner maximisation
    of adversarial training. Otherwise one more evaluation judges the final iterate.
    """

    steps: int = 40
    alpha: float | None = None
    rel_alpha: float = 2.5
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"pgd needs steps >= 1 and restarts >= 1, got {self.steps} and {self.restarts}.")
        if self.restarts > 1 and not self.random_start:
            raise UsageError("pgd with restarts > 1 and random_start=False would repeat itself; drop one of the two.")

    @property
    def budget(self) -> int:
        """One evaluation an iterate; the last iterate is judged only when success stops the attack."""
        return self.steps + 1 if self.stop_when_fooled else self.steps

    def lanes(self, num_classes: int) -> int:
        """The restarts."""
        return self.restarts

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> State:
        """Slots at random points of the ball, or at the clean point."""
        threat = within(threat, x[0].numel())
        start = inside(x, threat, noise.child("start"), lane) if self.random_start else x.clone()
        return State(**fresh(x, y, lane, noise, start))

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        """Evaluate `x_adv`, then one ascent step and the projection."""
        threat = within(threat, state.x[0].numel())
        logits, grad = model.gradient(state.x_adv, lambda z: LOSSES[self.loss](z, state.y))
        move = settle(state, logits, self.budget) if self.stop_when_fooled else _count(state, self.budget)
        x, alpha = state.x, self.rel_alpha * threat.radius / self.steps if self.alpha is None else self.alpha
        along = _EUCLIDEAN if threat.norm == "L1" else threat
        delta = (state.x_adv - x).add_(along.ascent(grad.nan_to_num(0)), alpha=alpha)
        moved = x + threat.project(x, delta)
        state.x_adv = pick(move, moved, state.x_adv)
        return state


def _count(state: State, budget: int) -> Tensor:
    """`settle` without stopping at success: the last evaluation still moves the slot."""
    active = ~state.done
    state.it += active
    state.done |= state.it >= budget
    return active
