"""RegMixup: mixup as a regulariser beside the clean loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.defenses.mixup import beta_share, check_concentration, mix, partners
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "regmixup",
    kind="step",
    paper="Pinto et al. 2022, arXiv:2206.14502",
    cost="2 passes",
    defaults={"cifar10": {"concentration": 20.0}, "imagenet": {"concentration": 10.0}},
)
@dataclass(frozen=True)
class RegMixup(StepMethod):
    """``CE(f(x), y) + eta CE(f(x_mix), y_mix)``, both in one batch, lambda from Beta(c, c) once a step.

    Pinto, Yang, Lim, Torr, Dokania, "RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and
    Out-of-Distribution Robustness" (NeurIPS 2022). `concentration` c: 20 for CIFAR, 10 for ImageNet, so that
    lambda is near a half. `eta`: 1. Their code takes the mean over both halves, which halves the loss: `mean` divides
    by 1 + eta. The default is the paper's sum.
    """

    eta: float = 1.0
    concentration: float = 20.0
    mean: bool = False
    select: ClassVar[Literal["robust", "clean", "last"]] = "clean"
    batch_coupled: ClassVar[bool] = True
    joint: ClassVar[tuple[str, ...]] = ("clean", "mixed")

    def __post_init__(self) -> None:
        check_concentration("regmixup", self.concentration)
        if self.eta < 0:
            raise UsageError(f"regmixup needs eta >= 0, got {self.eta}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``mixed``; not made when eta is 0."""
        if self.eta == 0:
            return {}
        share, partner = beta_share(step, self.concentration), partners(step.noise)
        step.trace["mixed"] = mix(step.q, share, partner)
        return {"mixed": mix(step.x, share, partner)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The cross-entropies of both halves."""
        scale = 1 / (1 + self.eta) if self.mean else 1.0
        terms = {"ce": Term(ce(step.logits("clean"), step.q), scale)}
        if self.eta:
            terms["ce_mixed"] = Term(ce(step.logits("mixed"), step.trace["mixed"]), self.eta * scale)
        return terms
