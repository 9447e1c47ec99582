"""Adversarial logit pairing (ALP), a defense that is known to be broken."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "alp",
    kind="step",
    paper="Kannan et al. 2018, arXiv:1803.06373",
    cost="steps + 2 passes",
    broken="Engstrom et al. 2018, arXiv:1807.10272; Mosbach et al. 2018, arXiv:1810.12042",
)
@dataclass(frozen=True)
class ALP(StepMethod):
    """``CE(f(x'), y) + pairing |f(x) - f(x')|^2``, summed over the logits. Known to be broken: no better than PGD-AT.

    Kannan, Kurakin, Goodfellow, "Adversarial Logit Pairing" (2018), `pairing` 0.5. Engstrom, Ilyas, Athalye (2018) took
    its ImageNet accuracy to 0.6% with more steps, and Mosbach et al. (2018) show that pairing makes the loss surface
    hard for gradient attacks instead of the network robust. It is here so that an evaluation can be tried on it.
    """

    pairing: float = 0.5
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.pairing < 0:
            raise UsageError(f"alp needs pairing >= 0, got {self.pairing}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Adversarial cross-entropy and the squared distance of the logits."""
        adversarial = step.logits("adv")
        terms = {"ce_adv": Term(ce(adversarial, step.q))}
        if self.pairing:
            terms["pairing"] = Term((step.logits("clean") - adversarial).square().sum(1), self.pairing)
        return terms
