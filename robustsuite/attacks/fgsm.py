"""FGSM: one gradient, one jump."""

from dataclasses import dataclass

from torch import Tensor

from robustsuite.attacks.base import State, Stepper, rows, settle
from robustsuite.attacks.losses import LOSSES, check_loss
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import within
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

# Far outside the ball: projecting a point that far along the gradient gives the maximiser of the linearised loss.
_FAR = 1e6


@register_attack(
    "fgsm",
    norms=("Linf", "L2", "L1"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=False,
    paper="Goodfellow et al. 2015, arXiv:1412.6572",
)
@dataclass(frozen=True)
class FGSM(Stepper):
    """Fast gradient sign method: the maximiser of the linearised loss over ball and box, from the clean point.

    Linf gives ``x + eps sign(grad)`` clipped; L2 the direction of the gradient, and L1 the pixels with the largest
    gradient, both with the box taken into account. ``loss``: ce, margin or dlr. Two evaluations.
    """

    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss(self.loss)

    @property
    def budget(self) -> int:
        """The clean point and the jump."""
        return 2

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> State:
        """Slots at the clean point."""
        return State(**fresh(x, y, lane, noise, x.clone()))

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        """Evaluate `x_adv`; after the first evaluation, jump."""
        threat = within(threat, state.x[0].numel())
        logits, grad = model.gradient(state.x_adv, lambda z: LOSSES[self.loss](z, state.y))
        move = settle(state, logits, self.budget)
        jumped = state.x + threat.project(state.x, _far_along(grad.nan_to_num(0), threat))
        state.x_adv = pick(move, jumped, state.x_adv)
        return state


def _far_along(grad: Tensor, threat: ThreatModel) -> Tensor:
    if threat.norm == "Linf":
        return grad.sign() * threat.radius
    largest = grad.flatten(1).abs().amax(1).clamp(min=1e-30)
    return grad / rows(largest, grad) * _FAR
