"""Adversarially robust distillation (ARD)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.defenses.teacher import taught
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense("ard", kind="step", paper="Goldblum et al. 2020, arXiv:1905.09747", cost="steps + 2 passes")
@dataclass(frozen=True)
class ARD(StepMethod):
    """``distil T^2 KL(t(x)/T || p(x')/T) + (1 - distil) CE(f(x), y)``, t a robust teacher at the clean image.

    Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation" (AAAI 2020); x' maximises the
    cross-entropy of the student. `teacher`: its checkpoint (the paper's: a larger network by TRADES); without one, a
    network like the student is trained by TRADES first. `distil`: 1 for CIFAR-10, then no label is seen.
    `temperature` T divides the logits of both: 30.
    """

    teacher: str = ""
    distil: float = 1.0
    temperature: float = 30.0
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.distil <= 1 or self.temperature <= 0:
            raise UsageError(f"ard needs distil in [0,1] and temperature > 0, got {self.distil}, {self.temperature}.")

    def setup(self, context: Context) -> None:
        """The teacher."""
        context.add_trained("teacher", self.teacher, "trades")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The divergence from the teacher at the temperature, and what is left of the clean cross-entropy."""
        heat = self.temperature
        terms = {"kl": Term(kl(taught(step) / heat, step.logits("adv") / heat), self.distil * heat**2)}
        if self.distil < 1:
            terms["ce"] = Term(ce(step.logits("clean"), step.q), 1 - self.distil)
        return terms
