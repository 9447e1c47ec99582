"""Free adversarial training: one backward pass moves the weights and the perturbation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import ContractError, UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import ThreatModel


@register_defense(
    "free_at",
    kind="step",
    paper="Shafahi et al. 2019, arXiv:1904.12843, alg. 1",
    cost="replays passes",
    defaults={"cifar10": {"replays": 8}},
)
@dataclass(frozen=True)
class FreeAT(StepMethod):
    """Cross-entropy on ``x + delta``; the same backward pass gives the step of the weights and that of delta.

    Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein, "Adversarial Training for Free!" (NeurIPS
    2019). Each batch is taken `replays` times in a row (8 in the paper), so an epoch here costs that many: divide the
    epochs of another recipe by it. delta moves `alpha` times eps along the gradient's sign (1 in the paper), and is
    handed on, place by place, from a batch to the next one (zero at first, and at places that no batch had yet).
    """

    replays: int = 8
    alpha: float = 1.0
    # through what the last batch left at its place in this one
    batch_coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.replays < 1 or self.alpha < 0:
            raise UsageError(f"free_at needs replays >= 1 and alpha >= 0, got {self.replays} and {self.alpha}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: x plus the delta that is there, within ball and box."""
        handed = torch.cat([step.memory.get("delta", step.x[:0]), torch.zeros_like(step.x)])[: len(step.x)]
        step.trace["delta"] = self._ball(step)[0].project(step.x, handed)
        return {"adv": (step.x + step.trace["delta"]).clamp(0, 1)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x + delta), y)``, from a leaf, so that the backward pass leaves delta's gradient there."""
        step.views["adv"] = step.views["adv"].detach().requires_grad_(True)
        return {"ce_adv": Term(ce(step.logits("adv"), step.q))}

    def post_step(self, step: Step) -> None:
        """One ascent step of delta, with the gradient at the weights before the update."""
        grad = step.views["adv"].grad
        if grad is None:
            raise ContractError(
                "free_at found no gradient of its view 'adv' after the step: a modifier took the gradient without a "
                "backward pass, or replaced the view. Leave that modifier out."
            )
        ball, alpha = self._ball(step)
        moved = ball.project(step.x, step.trace["delta"] + alpha * step.threat.radius * ball.ascent(grad))
        kept = step.memory.get("delta", step.x[:0])
        step.memory["delta"] = torch.cat([moved, kept[len(moved) :]])

    def _ball(self, step: Step) -> tuple[ThreatModel, float]:
        """The ball and the step size as the modifiers of an inner maximisation want them."""
        spec = step.adjust(step, InnerSpec("ce", 1, self.alpha, init="zero"))
        return step.threat.scaled(spec.eps), spec.alpha
