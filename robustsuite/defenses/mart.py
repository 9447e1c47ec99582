"""Misclassification-aware adversarial training (MART)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

# The authors' constants: they keep the logarithm finite, and are part of the loss that was published.
ALMOST_ONE, TINY = 1.0001, 1e-12
JUST_ONE = 1.0000001


@register_defense(
    "mart",
    kind="step",
    paper="Wang et al. 2020, ICLR",
    cost="steps + 2 passes",
    defaults={"cifar10": {"beta": 5.0}},
)
@dataclass(frozen=True)
class MART(StepMethod):
    """``BCE(p', y) + beta KL(p || p') (1 - p_y)``: the divergence counts where the clean example is misclassified.

    Wang, Zou, Yi, Bailey, Ma, Gu, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples" (ICLR
    2020). ``BCE = -log p'_y - log(1 - max_{k != y} p'_k)``, with the constants of the authors'
    code. x' maximises the cross-entropy, from 0.001 N(0,1). `beta`: 6 in the paper, 5 in the README of the code.
    """

    beta: float = 6.0
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UsageError(f"mart needs beta >= 0, got {self.beta}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha, init="gauss"))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``bce`` of the adversarial view, and the weighted divergence times beta."""
        adversarial = step.logits("adv")
        terms = {"bce": Term(ce(adversarial, step.q) + runner_up(adversarial, step.y))}
        if self.beta:
            clean = step.logits("clean")
            sure = clean.softmax(1).gather(1, step.y[:, None])[:, 0]
            terms["kl"] = Term(kl(clean, adversarial) * (JUST_ONE - sure), self.beta)
        return terms


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """``-log(1 - max_{k != y} p_k)``, ``[B]``: high where another class is likely."""
    wrong = logits.softmax(1).masked_fill(nn.functional.one_hot(y, logits.shape[1]).bool(), 0).amax(1)
    return -torch.log(ALMOST_ONE - wrong + TINY)
