"""GradAlign: FGSM training whose input gradient is held still within the ball."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, Term
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

TINY = 1e-20  # below it a gradient in float32 has no direction worth the name


@register_defense(
    "gradalign",
    kind="step",
    paper="Andriushchenko, Flammarion 2020, arXiv:2007.02617, section 4",
    cost="4 passes, one or two of them differentiated again",
    defaults={"cifar10": {"lam": 0.2}},
)
@dataclass(frozen=True)
class GradAlign(FGSMAT):
    """FGSM's cross-entropy plus ``lam (1 - cos(g(x), g(x + eta)))``, g the input gradient, eta uniform in the ball.

    Andriushchenko, Flammarion, "Understanding and Improving Fast Adversarial Training" (NeurIPS 2020). `lam`: 0.036,
    0.063, 0.112, 0.2, 0.356, 0.632, 1.124, 2 on CIFAR-10 at 2, 4, ..., 16/255. `detach`: whether g(x) is a constant, as
    in their released code; the paper's formula differentiates both. `init` of the one step: ``zero`` in their GradAlign
    runs, or ``uniform`` (with `alpha` 1.25 the rest of the loss is fgsm_rs). An example without a gradient counts as
    aligned; their code leaves it out of the mean. `alpha` is in units of eps, and `bn_mode` that of the one step; the
    two gradients are taken in train mode, as there.
    """

    lam: float = 0.2
    detach: bool = True
    init: Literal["zero", "uniform"] = "zero"
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam < 0 or self.init not in ("zero", "uniform"):
            raise UsageError(f"gradalign needs lam >= 0 and init zero or uniform, got {self.lam} and '{self.init}'.")

    def spec(self) -> InnerSpec:
        """One step."""
        return InnerSpec("ce", 1, self.alpha, init=self.init, bn_mode=self.bn_mode)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``, and ``noisy``: another uniform draw from ball and box; not made when lam is 0."""
        views = dict(super().views(step))
        if self.lam:
            views["noisy"] = step.maximise(InnerSpec(steps=0, draw=1))
        return views

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy, and what the two gradients lack to be parallel."""
        terms = dict(super().terms(step))
        if self.lam:
            clean, noisy = self._direction(step, "clean", not self.detach), self._direction(step, "noisy", True)
            lacking = 1 - (clean * noisy).sum(1)
            still = (clean == 0).all(1) | (noisy == 0).all(1)
            terms["gradalign"] = Term(lacking.masked_fill(still, 0), self.lam)
        return terms

    def _direction(self, step: Step, view: str, graph: bool) -> Tensor:
        """The normalised input gradient ``[B,d]``, 0 where there is none."""
        leaf = step.views[view].detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(ce(step.forward(leaf), step.q).sum(), leaf, create_graph=graph)
        step.passes.backward += len(leaf)
        if not graph:  # the loss's own backward pass does not come through here
            step.graphed -= len(leaf)
        flat = grad.flatten(1)
        # Squares of a confident example's gradient underflow: bring its largest entry to 1 before.
        largest = flat.detach().abs().amax(1, keepdim=True)
        flat = (flat / largest.clamp(min=TINY)).masked_fill(largest <= TINY, 0)
        return flat / flat.norm(dim=1, keepdim=True).clamp(min=0.5)
