"""Robust weight perturbation: weights ascend only on examples that are still fitted too well."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.amp import moved
from robustsuite.defenses.awp import TINY
from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

ASCENDING = "rwp"  # in the step's trace while the closure is the ascent's


@register_defense(
    "rwp",
    kind="modifier",
    paper="Yu, Han, Gong, Shen, Ge, Du, Liu 2022, arXiv:2205.14826, alg. 1",
    cost="up to ascents passes",
    defaults={"cifar10": {"c": 1.7}, "cifar100": {"c": 4.0}},
    fidelity="authors' code",
)
@dataclass(frozen=True)
class RWP(StepMethod):
    """The loss is differentiated at weights that ascend, step by step, on the examples whose loss is below `c`.

    Yu, Han, Gong, Shen, Ge, Du, Liu, "Robust Weight Perturbation for Adversarial Training" (IJCAI 2022). Up to
    `ascents` times (10) the gradient of ``mean(1[l_i < c] l_i)`` at the weights moved so far is added to a direction v,
    and the offset is ``gamma |w| v / |v|``, both norms over all weight tensors together; once no loss is below c, the
    ascent ends. l_i is an example's whole loss: the adversarial cross-entropy with PGD training, cross-entropy plus
    beta times the divergence with TRADES, the divergence summed over the classes (their code leaves it unsummed, which
    gives one example K losses). `c`: 1.7 for CIFAR-10, 4 for CIFAR-100. `gamma`: 0.01, 0.005 with TRADES. `warmup`: the
    share of the training before it starts (TRADES: 10 epochs). The offset is taken back after the optimiser's step.
    """

    c: float = 1.7
    gamma: float = 0.01
    ascents: int = 10
    warmup: float = 0.0
    restore: ClassVar[Literal["before_update", "after_update"]] = "after_update"

    def __post_init__(self) -> None:
        if not self.c >= 0 or self.gamma < 0 or self.ascents < 1 or not 0 <= self.warmup <= 1:
            raise UsageError(f"rwp needs c and gamma >= 0, ascents >= 1 and warmup in [0,1], got {self}.")

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """During the ascent: 1 for examples whose loss is below c, 0 for the others."""
        if ASCENDING not in step.trace:
            return {}
        losses = torch.stack([term.weight * term.values.detach() for term in terms.values()]).sum(0)
        below = (losses < self.c).to(losses.dtype)
        step.trace[ASCENDING] = float(step.reduce([below.mean()])[0])
        return dict.fromkeys(terms, below)

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """The last offset of the ascent; nothing when no loss was below c to begin with."""
        if self.gamma == 0 or step.progress < self.warmup:
            return None
        weights = [p for p in step.module.parameters() if p.requires_grad]
        total = [torch.zeros_like(w) for w in weights]
        offsets = None
        for _ in range(self.ascents):
            with moved(weights, offsets or total):
                step.trace[ASCENDING] = 1.0
                loss = closure()
                below = step.trace.pop(ASCENDING)
                if below == 0:
                    break
                grads = step.gradients(loss)
            total = [v + g if w.ndim > 1 else v for v, g, w in zip(total, grads, weights, strict=True)]
            scale = self.gamma * length(w for w in weights if w.ndim > 1) / (length(total) + TINY)
            offsets = [scale * v for v in total]
        return offsets


def length(parts: Iterable[Tensor]) -> Tensor:
    """The norm of all tensors together."""
    return torch.stack([part.detach().norm() for part in parts]).norm()
