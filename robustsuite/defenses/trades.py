"""TRADES: clean accuracy plus a smooth boundary."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce, kl
from robustsuite.registry import register_defense


@register_defense(
    "trades",
    kind="step",
    paper="Zhang et al. 2019, arXiv:1901.08573, eq. 5",
    cost="steps + 2 passes",
    defaults={"cifar10": {"beta": 6.0}, "mnist": {"beta": 1.0, "steps": 40, "alpha": 1 / 30}},
)
@dataclass(frozen=True)
class TRADES(StepMethod):
    """``CE(f(x), y) + beta KL(p(x) || p(x'))``, x' maximising the divergence.

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy"
    (ICML 2019), eq. 5; the divergence as in the authors' code: summed over classes, gradient through both sides. The
    start is 0.001 N(0,1), since the divergence has zero gradient at x itself. `beta` is 1/lambda: 6 for CIFAR-10, 1 for
    MNIST.
    """

    beta: float = 6.0
    steps: int = 10
    alpha: float = 0.25

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the clean distribution; not made when beta is 0."""
        if self.beta == 0:
            return {}
        return {"adv": step.maximise(InnerSpec("kl", self.steps, self.alpha, init="gauss"))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the clean view, and the divergence times beta."""
        clean = step.logits("clean")
        terms = {"ce": Term(ce(clean, step.q))}
        if self.beta:
            terms["kl"] = Term(kl(clean, step.logits("adv")), self.beta)
        return terms
