"""Friendly adversarial training: PGD that stops once it has fooled the network."""

from dataclasses import dataclass, replace

from robustsuite.defenses.base import InnerSpec, Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

LATER = (50 / 120, 90 / 120)  # of the training


@register_defense(
    "fat", kind="modifier", paper="Zhang et al. 2020, arXiv:2002.11242, alg. 1", cost="0 passes (it saves none)"
)
@dataclass(frozen=True)
class FAT(StepMethod):
    """An example is perturbed no further from the point at which it is misclassified, or `tau` steps later.

    Zhang, Xu, Han, Niu, Cui, Sugiyama, Kankanhalli, "Attacks Which Do Not Kill Training Make Adversarial Learning
    Stronger" (ICML 2020): friendly adversarial data, which only just cross the boundary. `tau`: steps that are still
    taken from misclassified points, 0 to 3 in the paper. `dynamic`: as in their code, tau rises by 1 after 50 of 120
    epochs and by 1 more after 90. The 0.001 N(0,1) that their code adds in every iteration is left out. It works on
    every inner maximisation that ascends; with tau at its number of steps it changes nothing.
    """

    tau: int = 0
    dynamic: bool = True

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise UsageError(f"fat needs tau >= 0, got {self.tau}.")

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """The same, with that patience."""
        if spec.descend:
            return spec
        grown = sum(step.progress >= share for share in LATER) if self.dynamic else 0
        return replace(spec, patience=self.tau + grown)
