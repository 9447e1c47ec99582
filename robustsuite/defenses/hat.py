"""Helper-based adversarial training (HAT)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "hat",
    kind="step",
    paper="Rade, Moosavi-Dezfooli 2022, ICLR",
    cost="steps + 3 passes, and a standard training",
    defaults={"cifar10": {"beta": 2.5, "gamma": 0.5, "stretch": 2.0}},
)
@dataclass(frozen=True)
class HAT(StepMethod):
    """TRADES, and beyond each x' a helper example that keeps the label which a standard network gives x'.

    Rade, Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off" (ICLR
    2022): ``CE(f(x), y) + beta KL(p(x) || p(x')) + gamma CE(f(x_h), y_h)`` with ``x_h = x + stretch (x' - x)``, clipped
    to the box, and y_h the answer of the standard network at x'. `beta` 2.5, `gamma` 0.5, `stretch` 2 for CIFAR-10;
    with a million generated images 3.5, 0.5 and 3.5. `helper`: a checkpoint of the standard network; without one it is
    trained before the first step, with the same architecture and recipe.
    """

    beta: float = 2.5
    gamma: float = 0.5
    stretch: float = 2.0
    helper: str = ""
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.beta, self.gamma, self.stretch) < 0:
            raise UsageError(f"hat needs beta, gamma and stretch >= 0, got {self}.")

    def setup(self, context: Context) -> None:
        """The standard network; not when gamma is 0."""
        if self.gamma:
            context.add_trained("helper", self.helper, "standard")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the clean distribution; ``helper``: beyond it."""
        adversarial = step.maximise(InnerSpec("kl", self.steps, self.alpha, init="gauss"))
        if self.gamma == 0:
            return {"adv": adversarial}
        answer = step.infer(adversarial, step.aux["helper"]).argmax(1)
        step.trace["helper"] = nn.functional.one_hot(answer, step.num_classes).to(step.q.dtype)
        return {"adv": adversarial, "helper": (step.x + self.stretch * (adversarial - step.x)).clamp(0, 1)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Clean cross-entropy, divergence, and the helper examples' cross-entropy."""
        clean = step.logits("clean")
        terms = {"ce": Term(ce(clean, step.q)), "kl": Term(kl(clean, step.logits("adv")), self.beta)}
        if self.gamma:
            terms["ce_helper"] = Term(ce(step.logits("helper"), step.trace["helper"]), self.gamma)
        return terms
