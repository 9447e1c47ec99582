"""Sharpness-aware minimisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

TINY = 1e-12


@register_defense(
    "sam",
    kind="modifier",
    paper="Foret et al. 2021, arXiv:2010.01412, eq. 2 and alg. 1",
    cost="1 pass",
    defaults={"cifar10": {"rho": 0.05}},
)
@dataclass(frozen=True)
class SAM(StepMethod):
    """The gradient is taken at ``w + rho g/|g|``, |g| over all parameters, and the step from w.

    Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization" (ICLR 2021). `rho`: 0.05 for CIFAR-10, 0.1 for
    CIFAR-100. `adaptive`: ``rho w^2 g / |w g|`` (ASAM: Kwon, Kim, Park, Choi, ICML 2021, without their eta; rho
    about 40 times as large, 2 in the widely used code). Adversarial views are made once, at w. Batch-norm statistics
    move in the second pass, at the perturbed weights; that code takes those of the first.
    """

    rho: float = 0.05
    adaptive: bool = False
    base = "standard"

    def __post_init__(self) -> None:
        if self.rho < 0:
            raise UsageError(f"sam needs rho >= 0, got {self.rho}.")

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """``rho g / |g|``, or its adaptive form; nothing when rho is 0."""
        if self.rho == 0:
            return None
        weights = [p for p in step.module.parameters() if p.requires_grad]
        grads = step.gradients(closure())
        with torch.no_grad():
            scales = [w.abs() if self.adaptive else torch.ones_like(w) for w in weights]
            scaled = [scale * grad for scale, grad in zip(scales, grads, strict=True)]
            length = torch.stack([part.norm() for part in scaled]).norm() + TINY
            return [self.rho * scale * part / length for scale, part in zip(scales, scaled, strict=True)]
