"""Universal inverse adversarial training (UIAT)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import ThreatModel


@register_defense(
    "uiat",
    kind="step",
    paper="Dong et al. 2023, arXiv:2211.00525",
    cost="steps + inverse_steps + 2 passes; universal: steps + 3 passes",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class UIAT(StepMethod):
    """``CE(f(x'), y) + align KL(p(x_inv) || p(x'))``: x' follows an example that has been made *easier*.

    Dong, Moosavi-Dezfooli, Lai, Xie, "The Enemy of My Enemy Is My Friend: Exploring Inverse Adversaries for Improving
    Adversarial Training" (CVPR 2023). Reconstructed from the abstract and from other codes: take every constant as
    provisional. x_inv minimises the cross-entropy: `inverse_steps` of `inverse_alpha` in a ball of `inverse_eps`, both
    in units of eps (4/255 and 2/255 at 8/255). `align` is lambda (3.5).

    With `universal` one inverse perturbation is kept for each class, and moved by one step of `inverse_alpha` in every
    batch, along the sum of its examples' own steps so far, which decays by `momentum`.
    """

    align: float = 3.5
    inverse_steps: int = 10
    inverse_alpha: float = 0.25
    inverse_eps: float = 0.5
    universal: bool = False
    momentum: float = 0.9
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.align, self.inverse_steps, self.inverse_alpha, self.inverse_eps) < 0 or not 0 <= self.momentum < 1:
            raise UsageError(f"uiat needs numbers >= 0 and momentum in [0,1), got {self}.")

    def setup(self, context: Context) -> None:
        """No class has a perturbation yet."""
        if self.universal:
            zeros = torch.zeros(context.num_classes, *context.input_shape, device=context.device)
            context.memory.update(delta=zeros, speed=zeros.clone())

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy; ``inverse``: minimises it (not made when align is 0)."""
        adversarial = step.maximise(InnerSpec("ce", self.steps, self.alpha))
        if self.align == 0:
            return {"adv": adversarial}
        return {"adv": adversarial, "inverse": self._shared(step) if self.universal else self._own(step)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Adversarial cross-entropy, and the divergence from the inverse example."""
        adversarial = step.logits("adv")
        terms = {"ce_adv": Term(ce(adversarial, step.q))}
        if self.align:
            terms["kl"] = Term(kl(step.logits("inverse"), adversarial), self.align)
        return terms

    def _own(self, step: Step) -> Tensor:
        down = InnerSpec("ce", self.inverse_steps, self.inverse_alpha, eps=self.inverse_eps, init="zero", descend=True)
        return step.maximise(down)

    def _shared(self, step: Step) -> Tensor:
        """Move the perturbation of every class in the batch, and apply them."""
        threat = step.threat.scaled(self.inverse_eps)
        delta, speed = step.memory["delta"], step.memory["speed"]
        near = apply(threat, step.x, delta[step.y])
        once = InnerSpec("ce", 1, self.inverse_alpha, eps=self.inverse_alpha, init="zero", descend=True)
        members = nn.functional.one_hot(step.y, step.num_classes).to(near.dtype)
        moves = step.maximise(once, near) - near
        sums, counts = step.reduce([(members.T @ moves.flatten(1)).view_as(delta), members.sum(0)])
        there = (counts > 0).view(-1, *[1] * (delta.ndim - 1))
        mean = sums / counts.clamp(min=1e-12).view_as(there)
        speed = torch.where(there, self.momentum * speed + mean, speed)
        moved = delta + self.inverse_alpha * step.threat.radius * step.threat.ascent(speed)
        middle = torch.full_like(delta, 0.5)  # a class has no image: only the ball counts, the box is far
        step.memory["speed"], step.memory["delta"] = speed, torch.where(there, threat.project(middle, moved), delta)
        return apply(threat, step.x, step.memory["delta"][step.y])


def apply(threat: ThreatModel, x: Tensor, delta: Tensor) -> Tensor:
    """``x + delta`` in ball and box."""
    return (x + threat.project(x, delta)).clamp(0, 1)
