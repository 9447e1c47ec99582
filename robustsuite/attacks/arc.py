"""ARC: the attack on randomised ensembles."""

from dataclasses import dataclass

from torch import Tensor

from robustsuite.attacks.base import Attack
from robustsuite.errors import UsageError
from robustsuite.models.arc import arc
from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized_ensemble import RandomizedEnsemble
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel


@register_attack(
    "arc",
    norms=("Linf", "L2"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Dbouk and Shanbhag 2022, arXiv:2206.06737, alg. 1",
)
@dataclass(frozen=True)
class ARC(Attack):
    """Attacking randomised classifiers: steps over the members' boundaries, one member after the other.

    Dbouk and Shanbhag, "Adversarial Vulnerability of Randomized Ensembles" (ICML 2022). Unlike PGD on the members' mean
    probability, whose gradients may cancel, it looks at each member by itself and keeps what lowers the expected
    accuracy. Made for `randomized_ensemble`; any other model is an ensemble of one, to which it steps as if it were
    linear. ``alpha`` is the size of a round's move in units of eps, ``classes`` how many classes next to the leading
    one are looked at. ``shuffle`` takes the members in an order drawn by their weights, as BARRE's code does, instead
    of by falling weight.
    """

    steps: int = 20
    alpha: float = 1.0
    classes: int = 2
    shuffle: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.classes) < 1 or self.alpha <= 0:
            raise UsageError(
                f"arc needs steps >= 1, classes >= 1 and alpha > 0, got {self.steps}, {self.classes} and {self.alpha}."
            )

    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """See `robustsuite.models.arc.arc`."""
        ensemble = isinstance(model, RandomizedEnsemble)
        members, weights = (model.members, model.weights) if ensemble else ([model], [1.0])
        order = noise.noise.child("order") if self.shuffle else None
        return arc(
            members, weights, x, y, threat, steps=self.steps, alpha=self.alpha, classes=self.classes, order=order
        )
