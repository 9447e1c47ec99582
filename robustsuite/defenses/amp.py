"""Adversarial model perturbation: the loss is differentiated at weights that make it worse."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "amp",
    kind="modifier",
    paper="Zheng, Zhang, Mao 2021, arXiv:2010.04925, alg. 1",
    cost="ascents passes",
    defaults={"cifar10": {"radius": 0.5}, "cifar100": {"radius": 0.5}},
    fidelity="authors' code",
)
@dataclass(frozen=True)
class AMP(StepMethod):
    """The gradient is taken at ``w + v``, where v ascends in a ball of radius `radius` around each tensor, and the
    step from w.

    Zheng, Zhang, Mao, "Regularizing Neural Networks via Adversarial Model Perturbation" (CVPR 2021): `ascents` times
    ``v + zeta g``, each parameter tensor scaled back to an L2 norm of `radius` (0.1 for their MLPs, 0.5 on CIFAR) where
    it is longer. `zeta` is 1 and `ascents` 1 in the paper. Made for clean generalisation: trained alone it is not
    robust. SAM's offset has one norm over all parameters, and always that length.
    """

    radius: float = 0.1
    zeta: float = 1.0
    ascents: int = 1
    base = "standard"

    def __post_init__(self) -> None:
        if min(self.radius, self.zeta) < 0 or self.ascents < 1:
            raise UsageError(f"amp needs radius and zeta >= 0 and ascents >= 1, got {self}.")

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """Where the ascent ends; nothing when the ball is a point."""
        if self.radius == 0 or self.zeta == 0:
            return None
        weights = [p for p in step.module.parameters() if p.requires_grad]
        offsets = [torch.zeros_like(w) for w in weights]
        for _ in range(self.ascents):
            with moved(weights, offsets):
                grads = step.gradients(closure())
            offsets = [self._within(v + self.zeta * g) for v, g in zip(offsets, grads, strict=True)]
        return offsets

    def _within(self, offset: Tensor) -> Tensor:
        return offset * (self.radius / offset.norm().clamp(min=self.radius))


@contextmanager
def moved(weights: Sequence[Tensor], offsets: Sequence[Tensor]) -> Iterator[None]:
    """``weights`` plus ``offsets`` inside, the very same bits as before after."""
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, offset in zip(weights, offsets, strict=True):
            weight.add_(offset)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
