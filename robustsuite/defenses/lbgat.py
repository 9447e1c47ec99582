"""Learnable boundary guided adversarial training (LBGAT)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense("lbgat", kind="step", paper="Cui et al. 2021, arXiv:2011.11164", cost="steps + 3 passes")
@dataclass(frozen=True)
class LBGAT(StepMethod):
    """``MSE(f(x'), g(x)) + CE(g(x), y) + beta KL(p(x) || p(x'))``, with a natural network g that is trained along.

    Cui, Liu, Wang, Jia, "Learnable Boundary Guided Adversarial Training" (ICCV 2021). The squared error is a mean over
    the logits, and moves both networks. g has the architecture of f here (the paper: a ResNet-18 beside a WRN-34-10)
    and is dropped after the training. `beta` is 0 or 6; x' maximises the divergence of f, as in TRADES, in both.
    """

    beta: float = 0.0
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UsageError(f"lbgat needs beta >= 0, got {self.beta}.")

    def setup(self, context: Context) -> None:
        """The natural network, untrained."""
        context.add("natural", context.build("natural"), trained=True)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the clean distribution."""
        return {"adv": step.maximise(InnerSpec("kl", self.steps, self.alpha, init="gauss"))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The guidance, the natural network's cross-entropy, and the divergence times beta."""
        adversarial, natural = step.logits("adv"), step.forward(step.x, step.aux["natural"])
        terms = {
            "guide": Term((adversarial - natural).square().mean(1)),
            "ce_natural": Term(ce(natural, step.q)),
        }
        if self.beta:
            terms["kl"] = Term(kl(step.logits("clean"), adversarial), self.beta)
        return terms
