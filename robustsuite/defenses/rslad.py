"""Robust soft label adversarial distillation (RSLAD)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import kl
from robustsuite.defenses.teacher import taught
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense("rslad", kind="step", paper="Zi et al. 2021, arXiv:2108.07969, algorithm 1", cost="steps + 3 passes")
@dataclass(frozen=True)
class RSLAD(StepMethod):
    """``robust KL(t(x) || p(x')) + (1 - robust) KL(t(x) || p(x))``, x' maximising the first, t a robust teacher.

    Zi, Zhao, Ma, Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better" (ICCV
    2021), algorithm 1: the teacher's soft labels replace the hard ones everywhere. `teacher`: its checkpoint (the
    paper's: a larger network, WRN-34-20 by TRADES); without one, a network like the student is trained by TRADES first.
    `robust`: 5/6. Their code takes the mean over the K classes as well, which divides
    the loss, and with it the learning rate, by K: `element_mean` does so. The default is the sum, as in the paper.
    """

    teacher: str = ""
    robust: float = 5 / 6
    element_mean: bool = False
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= 1:
            raise UsageError(f"rslad needs robust in [0,1], got {self.robust}.")

    def setup(self, context: Context) -> None:
        """The teacher."""
        context.add_trained("teacher", self.teacher, "trades")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the teacher's answer to the clean image."""
        answer = taught(step)
        away = InnerSpec(lambda logits: kl(answer, logits), self.steps, self.alpha, init="gauss")
        return {"adv": step.maximise(away)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Both divergences from the teacher."""
        share = 1 / step.num_classes if self.element_mean else 1.0
        answer = taught(step)
        return {
            "kl": Term(kl(answer, step.logits("adv")), self.robust * share),
            "kl_clean": Term(kl(answer, step.logits("clean")), (1 - self.robust) * share),
        }
