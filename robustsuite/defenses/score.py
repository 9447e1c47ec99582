"""SCORE: distances in place of divergences."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.clean_logits import clean_logits
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "score",
    kind="step",
    paper="Pang et al. 2022, arXiv:2202.10103",
    cost="steps + 2 passes and a forward pass",
    fidelity="authors' code",
    defaults={"cifar10": {"beta": 4.0}},
)
@dataclass(frozen=True)
class SCORE(StepMethod):
    """``||p(x) - y||^2 + beta max(||p(x') - p(x)||^2 - clip, 0)``, x' maximising the second distance.

    Pang, Lin, Yang, Zhu, Yan, "Robustness and Accuracy Could Be Reconcilable by (Proper) Definition" (ICML 2022), with
    the squared errors of their results; the gradient goes through both distributions. `beta`: 4 in the paper, 3 in
    the logs of the released checkpoints. `clip`: the squared distance that is let pass, 0 there. Their label smoothing
    is the modifier ``label_smoothing`` with ``classical``. The start is 0.001 N(0,1): at x the gradient is zero.
    """

    beta: float = 4.0
    clip: float = 0.0
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.beta, self.clip) < 0:
            raise UsageError(f"score needs beta >= 0 and clip >= 0, got {self.beta} and {self.clip}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: farthest from the clean distribution; not made when beta is 0."""
        if self.beta == 0:
            return {}
        p = clean_logits(step).softmax(1)
        away = InnerSpec(lambda logits: squared(logits.softmax(1), p), self.steps, self.alpha, init="gauss")
        return {"adv": step.maximise(away)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The clean view's squared error, and the squared distance times beta."""
        p = step.logits("clean").softmax(1)
        terms = {"squared": Term(squared(p, step.q))}
        if self.beta:
            distance = squared(step.logits("adv").softmax(1), p)
            terms["distance"] = Term((distance - self.clip).clamp(min=0) if self.clip else distance, self.beta)
        return terms


def squared(a: Tensor, b: Tensor) -> Tensor:
    """``||a - b||_2^2`` of each row, ``[B]``."""
    return (a - b).square().sum(1)
