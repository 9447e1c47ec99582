"""Integrated gradients held parallel between an image and its adversarial view (IGR)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.directions import misalignment
from robustsuite.errors import UsageError
from robustsuite.models.attributions import integrated_gradients, label_gradient
from robustsuite.models.modes import mode
from robustsuite.registry import register_defense


@register_defense(
    "igr",
    kind="modifier",
    paper="Wang, Kong 2022, NeurIPS",
    cost="2 points passes, differentiated again",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class IGR(StepMethod):
    """Plus ``weight (1 - cos(IG(x), IG(x')))``, IG the integrated gradients of the label's logit from a black image.

    Wang, Kong, "Exploiting the Relationship Between Kendall's Rank Correlation and Cosine Similarity for Attribution
    Protection" (NeurIPS 2022): an attack that keeps the answer may still turn its explanation. Reconstructed: the form
    of the term is certain, `weight` (1) and `points` (5), at which the path is sampled, are provisional. The base's
    adversarial view x' is taken (PGD training, TRADES, MART). Attributions are those of the network in eval mode.
    """

    weight: float = 1.0
    points: int = 5
    needs: ClassVar[tuple[str, ...]] = ("adv",)
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight < 0 or self.points < 1:
            raise UsageError(f"igr needs weight >= 0 and points >= 1, got {self.weight} and {self.points}.")

    def terms(self, step: Step) -> Mapping[str, Term]:
        """What the two attributions lack to be parallel."""
        if self.weight == 0:
            return {}
        with mode(step.module, "eval"):
            clean, adversarial = (self._attributions(step, step.views[view]) for view in ("clean", "adv"))
        return {"igr": Term(misalignment(clean, adversarial), self.weight)}

    def _attributions(self, step: Step, x: Tensor) -> Tensor:
        """Those of the batch's labels, differentiable in the parameters."""
        step.passes.backward += len(x) * self.points
        return integrated_gradients(partial(label_gradient, step.forward), x, step.y, self.points)
