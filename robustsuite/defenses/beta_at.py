"""Non-zero-sum adversarial training (BETA-AT): the attacker maximises a margin, the defender minimises a surrogate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.ascent import MOMENTUM, Rule, ascend
from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.clean_logits import clean_logits
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.models.modes import mode
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_defense


@register_defense(
    "beta_at",
    kind="step",
    paper="Robey et al. 2024, arXiv:2306.11035",
    cost="(K - 1) steps + 1 passes and K - 1 forward passes; smooth: (K - 1) (steps + 1) passes",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class BETAAT(StepMethod):
    """Cross-entropy at the point of largest margin ``max_j z_j - z_y``, each class j having been attacked for itself.

    Robey, Latorre, Pappas, Hassani, Cevher, "Adversarial Training Should Be Cast as a Non-Zero-Sum Game" (ICLR 2024):
    the attacker's true aim, a wrong answer, is a positive margin. `mu` below infinity is SBETA-AT: the cross-entropies
    at all the classes' points, weighed by ``softmax_j(mu margin_j)``. All classes are attacked in one batch, K - 1
    times as large as the step's; `rivals` attacks only so many, the likeliest on the clean image (0: all, as in the
    paper).

    Reconstructed: the two objectives are certain; provisional are `steps` of `alpha`, the uniform start, and `rule`,
    the ascent's step: ``rmsprop``, ``sign`` or ``adam``.
    """

    mu: float = math.inf
    rivals: int = 0
    rule: Rule = "rmsprop"
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if not self.mu >= 0 or min(self.rivals, self.steps, self.alpha) < 0 or self.rule not in MOMENTUM:
            raise UsageError(
                f"beta_at needs mu, rivals, steps and alpha >= 0 and a rule of {', '.join(MOMENTUM)}, got {self}."
            )

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: the point of largest margin; in the smooth form ``rivals`` too, all the points ``[B,J,C,H,W]``."""
        rivals = self._rivals(step)
        batch, each = rivals.shape
        targets, y = rivals.flatten(), step.y.repeat_interleave(each)
        x = step.x.repeat_interleave(each, 0)

        def margin(logits: Tensor) -> Tensor:
            return (logits.gather(1, targets[:, None]) - logits.gather(1, y[:, None]))[:, 0]

        spec = step.adjust(step, InnerSpec(margin, self.steps, self.alpha))
        noise = ExampleNoise(step.noise.child("beta").noise, step.noise.ids.repeat_interleave(each))
        start = 2 * noise.uniform(x.shape[1:], targets).to(x.dtype) - 1
        found = ascend(step, spec, self.rule, margin, x, spec.eps * step.threat.radius * start)
        with mode(step.module, "eval"):
            margins = margin(step.infer(found, step.module)).view(batch, each)
        points = found.view(batch, each, *x.shape[1:])
        views = {"adv": points[torch.arange(batch, device=x.device), margins.argmax(1)]}
        if math.isinf(self.mu):
            return views
        step.trace["shares"] = (self.mu * margins).softmax(1)
        return views | {"rivals": points}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x'), y)``, or the weighted sum of those of all rivals."""
        if math.isinf(self.mu):
            return {"ce_adv": Term(ce(step.logits("adv"), step.q))}
        shares, points = step.trace["shares"], step.views["rivals"]
        each = shares.shape[1]
        losses = ce(step.forward(points.flatten(0, 1)), step.q.repeat_interleave(each, 0))
        return {"ce_adv": Term((shares * losses.view_as(shares)).sum(1))}

    def _rivals(self, step: Step) -> Tensor:
        """The classes that are attacked, int64 ``[B,J]``: the others in order, or the likeliest of them."""
        others = step.num_classes - 1
        if self.rivals and self.rivals < others:
            right = torch.nn.functional.one_hot(step.y, step.num_classes).bool()
            return clean_logits(step).masked_fill(right, -math.inf).topk(self.rivals).indices
        classes = torch.arange(others, device=step.y.device)
        return classes + (classes >= step.y[:, None])
