"""Adversarial weight perturbation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

TINY = 1e-20


@register_defense(
    "awp",
    kind="modifier",
    paper="Wu, Xia, Wang 2020, arXiv:2004.05884, eq. 7 to 10",
    cost="1 pass",
    defaults={"cifar10": {"gamma": 0.01}},
)
@dataclass(frozen=True)
class AWP(StepMethod):
    """The loss is differentiated at the worst weights near by: ``w + gamma |w| g/|g|`` in each weight tensor.

    Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization" (NeurIPS 2020), algorithm 1, one step
    as in their code. Tensors with more than one dimension move, relative to their own norm; the perturbation is made
    on the views as they are, and taken back after the optimiser's step. `gamma`: 0.01 with PGD training, 0.005 with
    TRADES. `warmup`: the share of the training before it starts (their TRADES recipe: 10 of 200 epochs). Some codes
    use one norm for the whole network, or attack again in the second pass; neither is the paper's.
    """

    gamma: float = 0.01
    warmup: float = 0.0
    restore: ClassVar[Literal["before_update", "after_update"]] = "after_update"

    def __post_init__(self) -> None:
        if self.gamma < 0 or not 0 <= self.warmup <= 1:
            raise UsageError(f"awp needs gamma >= 0 and warmup in [0,1], got {self.gamma} and {self.warmup}.")

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """``gamma |w| g / |g|`` for weight tensors, 0 elsewhere."""
        if self.gamma == 0 or step.progress < self.warmup:
            return None
        weights = [p for p in step.module.parameters() if p.requires_grad]
        grads = step.gradients(closure())
        with torch.no_grad():
            return [
                self.gamma * w.norm() / (g.norm() + TINY) * g if w.ndim > 1 else torch.zeros_like(w)
                for w, g in zip(weights, grads, strict=True)
            ]
