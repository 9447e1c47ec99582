"""Fast bi-level adversarial training: the gradient knows that the perturbation follows the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "fast_bat",
    kind="step",
    paper="Zhang et al. 2022, arXiv:2112.12376, section 4",
    cost="steps + 2 passes, one of them differentiated again",
    defaults={"cifar10": {"alpha": 625.0}},
)
@dataclass(frozen=True)
class FastBAT(StepMethod):
    """Cross-entropy at ``d = P(z + alpha eps g(z))``, differentiated through d as well; g is the input gradient.

    Zhang, Zhang, Khanduri, Hong, Chang, Liu, "Revisiting and Advancing Fast Adversarial Training Through the Lens of
    Bi-Level Optimization" (ICML 2022): to the gradient at the fixed d comes ``1/lam`` times that of ``g(z) . (h o u)``,
    where u is the loss's gradient in d and h is 1 where d lies strictly inside of ball and box.

    `alpha`: the step along the raw gradient of an example's loss, in units of eps: 625 is the 5000/255 of their code at
    8/255; beyond it they take 3000/255 (187.5 at 16/255). `steps`: projected steps from the uniform start, z being the
    last but one point; 2 in their code, which is one step to choose z. `lam`: 10 in their code; 0 for the
    paper's own formula, in which 1/lam is the step size ``alpha eps`` too; ``inf`` for no implicit term. The gradients
    are taken in train mode, as in their code. Linf only.
    """

    steps: int = 2
    alpha: float = 625.0
    lam: float = 10.0
    second_order: ClassVar[bool] = True
    norms: ClassVar = ("Linf",)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.alpha < 0 or not self.lam >= 0:
            raise UsageError(
                f"fast_bat needs steps >= 1, alpha >= 0 and lam >= 0, got {self.steps}, {self.alpha} and {self.lam}."
            )

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``, and ``start``: the point z that it is one step away from."""
        x, start = step.x, InnerSpec(steps=0, alpha=self.alpha)
        spec = step.adjust(step, start)
        ball = step.threat.scaled(spec.eps)
        base = adv = step.maximise(start)
        delta = torch.zeros_like(x)
        for _ in range(self.steps):
            base = adv
            ascent = self._ascent(step, base.requires_grad_(True))
            delta = ball.project(x, base.detach() - x + spec.alpha * step.threat.radius * ascent)
            adv = (x + delta).clamp(0, 1)
        lowest, highest = ball.project(x, -torch.ones_like(x)), ball.project(x, torch.ones_like(x))
        step.trace["inside"] = (delta > lowest) & (delta < highest)
        step.trace["rate"] = spec.alpha * step.threat.radius
        return {"start": base.detach(), "adv": adv}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x'), y)``, from a leaf, so that the backward pass leaves its gradient there."""
        step.views["adv"] = step.views["adv"].detach().requires_grad_(True)
        return {"ce_adv": Term(ce(step.logits("adv"), step.q))}

    def gradient(self, step: Step, scalars: Mapping[str, Tensor]) -> None:
        """That of the loss, and the implicit one."""
        super().gradient(step, scalars)
        outer = step.views["adv"].grad
        if outer is None or math.isinf(self.lam):
            return
        share = 1 / self.lam if self.lam else step.trace["rate"]
        ascent = self._ascent(step, step.views["start"].detach().requires_grad_(True), graph=True)
        step.passes.backward += len(outer)
        (share * (ascent * outer * step.trace["inside"]).sum()).backward()

    def _ascent(self, step: Step, leaf: Tensor, *, graph: bool = False) -> Tensor:
        """The gradient of each example's own loss at ``leaf``, shaped like it."""
        labels = step.q if step.q_attack is None else step.q_attack
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(ce(step.forward(leaf), labels).sum(), leaf, create_graph=graph)
        step.passes.backward += len(leaf)
        return grad
