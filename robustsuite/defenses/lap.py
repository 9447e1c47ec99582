"""Layer-aware weight perturbation: early layers are perturbed most, by the gradient that made the example."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.awp import TINY
from robustsuite.defenses.base import InnerSpec, Step, StepMethod
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

Ascent = Callable[[Step, InnerSpec, Tensor, Tensor], Tensor]


@register_defense(
    "lap",
    kind="modifier",
    paper="Lin, Yu, Han, Su, Liu 2024, arXiv:2405.16262, section 4",
    cost="0 passes",
    defaults={
        "cifar10": {"beta": 0.002},
        "as_released": {"beta": 0.002, "direction": "descent", "restored": False},
    },
    fidelity="paper",
)
@dataclass(frozen=True)
class LAP(StepMethod):
    """The loss is differentiated at ``w + b_k |w| g/|g|`` in weight tensor k of L, ``b_k = beta (1 - (ln k/ln L)^g)``.

    Lin, Yu, Han, Su, Liu, "Layer-Aware Analysis of Catastrophic Overfitting: Revealing the Pseudo-Robust Shortcut
    Dependency" (ICML 2024). It works on a one-step attack: one backward pass from its start gives both the adversarial
    example and g, so that it costs nothing; that pass is in train mode, as in their code. `power` is the exponent
    above, 0.3. `beta` for 8, 12, 16 and 32/255: 0.002, 0.03, 0.05, 0.3 with fgsm_rs; 0.001, 0.002, 0.005, 0.75 with
    n_fgsm; 0.03, 0.058, 0.07, 0.48 with fgsm_at.

    The paper perturbs against the network (`direction` ascent), and takes the offset back after the step (`restored`).
    What is released does neither: its direction is that of a step of the optimiser (descent; here of the gradient
    alone, without momentum and weight decay), and the offset stays. ``--defaults as_released`` gives that.
    """

    beta: float = 0.002
    power: float = 0.3
    direction: Literal["ascent", "descent"] = "ascent"
    restored: bool = True
    base: ClassVar[str] = "fgsm_rs"
    restore: ClassVar[Literal["before_update", "after_update"]] = "after_update"
    norms: ClassVar = ("Linf", "L2")

    def __post_init__(self) -> None:
        if self.beta < 0 or self.power <= 0 or self.direction not in ("ascent", "descent"):
            raise UsageError(f"lap needs beta >= 0, power > 0 and direction ascent or descent, got {self}.")

    def data(self, step: Step) -> None:
        """From now on the step's one-step attack leaves the gradient of the weights in the trace."""
        if self.beta:
            step.inner = partial(one_step, step.inner)

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """The offsets; where they are not taken back, the weights are moved for good."""
        del closure
        if self.beta == 0:
            return None
        if "lap" not in step.trace:
            raise UsageError(
                "lap perturbs by the gradient of a one-step attack on the cross-entropy, and the base runs none; train "
                "it with fgsm_rs, n_fgsm or fgsm_at."
            )
        weights = [p for p in step.module.parameters() if p.requires_grad]
        with torch.no_grad():
            offsets = self._offsets(weights, step.trace["lap"])
            if self.restored:
                return offsets
            for weight, offset in zip(weights, offsets, strict=True):
                weight.add_(offset)
        return None

    def _offsets(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        layers = sum(w.ndim > 1 for w in weights)
        factors = iter(layer_factors(layers, self.power))
        scale = self.beta if self.direction == "ascent" else -self.beta
        return [
            scale * next(factors) * w.norm() / (g.norm() + TINY) * g if w.ndim > 1 else torch.zeros_like(w)
            for w, g in zip(weights, grads, strict=True)
        ]


def layer_factors(layers: int, power: float) -> list[float]:
    """``1 - (ln k / ln L)^power`` for k = 1 to L: 1 in the first layer, 0 in the last (1 where there is but one)."""
    return [1 - (math.log(k) / math.log(layers)) ** power if k > 1 else 1.0 for k in range(1, layers + 1)]


def one_step(plain: Ascent, step: Step, spec: InnerSpec, x: Tensor, q: Tensor) -> Tensor:
    """What ``plain`` finds in one step, by a backward pass that goes to the weights too; else what ``plain`` finds."""
    if spec.steps != 1 or spec.loss != "ce" or spec.descend or spec.target is not None or "lap" in step.trace:
        return plain(step, spec, x, q)
    start = plain(step, replace(spec, steps=0), x, q).requires_grad_(True)
    weights = [p for p in step.module.parameters() if p.requires_grad]
    with torch.enable_grad():
        loss = ce(step.forward(start), q).sum()
    grad, *grads = torch.autograd.grad(loss, [start, *weights], allow_unused=True)
    assert grad is not None
    step.passes.backward += len(x)
    means = [torch.zeros_like(w) if g is None else g / len(x) for w, g in zip(weights, grads, strict=True)]
    step.trace["lap"] = step.reduce(means)
    threat = step.threat.scaled(spec.eps)
    delta = start.detach() - x + spec.alpha * step.threat.radius * threat.ascent(grad)
    return (x + (threat.project(x, delta) if spec.project else delta)).clamp(0, 1)
