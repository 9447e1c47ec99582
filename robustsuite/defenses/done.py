"""Doubly robust instance-reweighted adversarial training (DONE)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.ascent import ascend
from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.models.modes import mode
from robustsuite.registry import register_defense


@register_defense(
    "done",
    kind="step",
    paper="Sow et al. 2024, arXiv:2308.00311",
    cost="steps + 2 passes, one of them differentiated again",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class DONE(StepMethod):
    """``r log mean_i exp(l_i / r)`` of the adversarial cross-entropies l: the larger a loss, the more it weighs.

    Sow, Lin, Wang, Liang, "Doubly Robust Instance-Reweighted Adversarial Training" (ICLR 2024): the worst weights under
    a penalty of r times their KL divergence from uniform, ``w_i = exp(l_i / r) / u``, where u is the mean of the
    numerators: a moving average over the batches, since one batch's is biased under the logarithm. The gradient knows
    that x' follows the weights: to that at the fixed x' comes ``1/lam`` times that of ``g . (h o v)``, g the input
    gradient of an example's loss at x', v the gradient of the whole loss there, and h 1 where the perturbation lies
    strictly inside of ball and box (the linearised inverse, as in `fast_bat`).

    `temperature` is r, 0.1 to 1; inf is PGD training. `average` is how much of u is the batch's (1: all of it; then the
    weights of a batch sum to its size). `lam`: inf leaves the implicit part away. `attack`: ``sign`` steps, or ``adam``
    (DONE-ADAM). Certain are objective and weights; provisional are all constants, and g and h in place of the paper's
    log-barrier. The implicit part is made in eval mode, as x' is. Linf only.
    """

    temperature: float = 1.0
    average: float = 0.5
    lam: float = 10.0
    attack: Literal["sign", "adam"] = "sign"
    steps: int = 10
    alpha: float = 0.25
    batch_coupled: ClassVar[bool] = True
    second_order: ClassVar[bool] = True
    norms: ClassVar = ("Linf",)

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.lam > 0 and 0 < self.average <= 1):
            raise UsageError(f"done needs temperature and lam > 0 and average in (0,1], got {self}.")
        if self.attack not in ("sign", "adam"):
            raise UsageError(f"done attacks by sign or adam steps, got '{self.attack}'.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        spec = InnerSpec("ce", self.steps, self.alpha)
        if self.attack == "sign":
            return {"adv": step.maximise(spec)}
        labels, spec = step.q if step.q_attack is None else step.q_attack, step.adjust(step, spec)
        start = step.maximise(InnerSpec(steps=0)) - step.x
        return {"adv": ascend(step, spec, "adam", lambda logits: ce(logits, labels), step.x, start)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x'), y)``, from a leaf where the backward pass shall leave its gradient."""
        if math.isfinite(self.lam):
            step.views["adv"] = step.views["adv"].detach().requires_grad_(True)
        return {"ce_adv": Term(ce(step.logits("adv"), step.q))}

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """``exp(l_i / r) / u``, in logarithms."""
        if math.isinf(self.temperature):
            return {}
        scaled = terms["ce_adv"].values.detach().double() / self.temperature
        # Of several processes the mean of their logarithms: all of them remember one number
        (u,) = step.reduce([scaled.logsumexp(0) - math.log(len(scaled))])
        if "log_u" in step.memory and self.average < 1:
            u = torch.logaddexp(step.memory["log_u"] + math.log1p(-self.average), u + math.log(self.average))
        step.trace["log_u"] = u
        return {"ce_adv": (scaled - u).exp().to(step.x.dtype)}

    def gradient(self, step: Step, scalars: Mapping[str, Tensor]) -> None:
        """That of the loss, and the implicit one."""
        super().gradient(step, scalars)
        if math.isinf(self.lam):
            return
        adversarial = step.views["adv"]
        outer, inside = adversarial.grad, self._inside(step, adversarial.detach())
        if outer is None:
            return
        labels = step.q if step.q_attack is None else step.q_attack
        leaf = adversarial.detach().requires_grad_(True)
        with torch.enable_grad(), mode(step.module, "eval"):
            (ascent,) = torch.autograd.grad(ce(step.forward(leaf), labels).sum(), leaf, create_graph=True)
            ((ascent * outer * inside).sum() / self.lam).backward()
        step.passes.backward += 2 * len(leaf)

    def post_step(self, step: Step) -> None:
        """Remember u."""
        if "log_u" in step.trace:
            step.memory["log_u"] = step.trace["log_u"]

    def _inside(self, step: Step, adversarial: Tensor) -> Tensor:
        """Where no constraint of ball or box holds the perturbation, bool ``[B,...]``."""
        ball = step.threat.scaled(step.adjust(step, InnerSpec("ce", self.steps, self.alpha)).eps)
        x, far = step.x, torch.ones_like(step.x)
        delta, slack = adversarial - x, 1e-6 * ball.radius
        return (delta > ball.project(x, -far) + slack) & (delta < ball.project(x, far) - slack)
