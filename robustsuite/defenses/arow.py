"""Anti-robust weighted regularisation (ARoW)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

PAPER = "Yang, Kong, Kim 2023, arXiv:2206.03353"


@register_defense(
    "arow",
    kind="step",
    paper=PAPER,
    cost="steps + 2 passes",
    fidelity="authors' code",
    defaults={"cifar10": {"beta": 7.0}, "cifar100": {"attack": "ce"}},
)
@dataclass(frozen=True)
class ARoW(StepMethod):
    """``CE(f(x), y smoothed) + beta KL(p || p') (1 - p'_y)``: the less robust an example, the more it is regularised.

    Yang, Kong, Kim, "Improving Adversarial Robustness by Putting More Regularizations on Less Robust Samples" (ICML
    2023), as in their code, where the gradient goes through the weight too (`through`). `beta` is the code's lambda,
    twice the paper's: 7 for 3.5. `smoothing` of the loss's labels, shared over all K classes: 0.2. `attack`: x'
    maximises the divergence ``kl``, or ``ce`` (their CIFAR-100). They add weight averaging, here the modifier ``swa``.
    """

    beta: float = 7.0
    smoothing: float = 0.2
    attack: Literal["kl", "ce"] = "kl"
    through: bool = True
    steps: int = 10
    alpha: float = 0.25
    scope = "loss"

    def __post_init__(self) -> None:
        if self.beta < 0 or not 0 <= self.smoothing < 1 or self.attack not in ("kl", "ce"):
            raise UsageError(f"needed: beta >= 0, smoothing in [0,1) and attack kl or ce, got {self}.")

    def labels(self, step: Step) -> Tensor:
        """Smoothed."""
        return LabelSmoothing(self.smoothing).labels(step) if self.smoothing else step.q

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``; not made when beta is 0."""
        if self.beta == 0:
            return {}
        init = "gauss" if self.attack == "kl" else "uniform"
        return {"adv": step.maximise(InnerSpec(self.attack, self.steps, self.alpha, init=init))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the clean view, and the weighted divergence times beta."""
        clean = step.logits("clean")
        terms = {"ce": Term(ce(clean, step.q))}
        if self.beta:
            adversarial = step.logits("adv")
            weight = self.weight(probability(clean, step.y), probability(adversarial, step.y))
            terms["kl"] = Term(kl(clean, adversarial) * (weight if self.through else weight.detach()), self.beta)
        return terms

    def weight(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Of the divergence, ``[B]``, by the label's probabilities ``[B]`` at x and at x'."""
        del clean
        return 1 - adversarial


def probability(logits: Tensor, y: Tensor) -> Tensor:
    """``p_y``, ``[B]``."""
    return logits.softmax(1).gather(1, y[:, None])[:, 0]
