"""Training for a margin in units of the network's Lipschitz constant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.bounds.power import Power
from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import BoundTraining
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "gloro",
    kind="step",
    paper="Leino et al. 2021, arXiv:2102.08452",
    cost="1 pass",
    defaults={"cifar10": {"loss": "trades", "beta": 1.2}},
)
@dataclass(frozen=True)
class GloRo(BoundTraining):
    """Cross-entropy with one more class, for which no other class is sure: its logit is the best rival's after eps.

    Leino, Wang, Fredrikson, "Globally-Robust Neural Networks" (ICML 2021): with i the predicted class the logit is
    ``max_j f_j + eps K_ij``, ``K_ij = ||w_i - w_j|| K`` with K a Lipschitz constant of all before the last
    linear layer: the product of the layers' spectral norms, by `iterations` of power iteration after each step from
    vectors that are kept. `loss`: ``ce`` over all classes, or ``trades``: ``CE(f, y) + beta KL(f || f with the new
    class)``, `beta` 1.2 in the paper's runs on CIFAR-10. `constant`: K where the architecture fixes it (1 for ``aol_*``
    and ``sll_*``), 0 for unknown. The radius (`warmup`, `ramp`, `eps`, `schedule`), the clean share (`kappa_start`,
    `kappa_end`) and `l1` are as `ibp`'s; `penalty` and `interval_init` do nothing without intervals. Certify with
    ``lipschitz``.
    """

    loss: Literal["ce", "trades"] = "ce"
    beta: float = 1.2
    constant: float = 0.0
    iterations: int = 2
    norms: ClassVar = ("L2",)
    monitors: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("ce", "trades"):
            raise UsageError(f"gloro has no loss '{self.loss}'; choose ce or trades.")
        if min(self.beta, self.constant, self.iterations) < 0:
            raise UsageError(
                f"gloro needs beta, constant and iterations >= 0, got {self.beta}, {self.constant} and "
                f"{self.iterations}."
            )
        if self.penalty or self.interval_init:
            raise UsageError(
                "gloro has no intervals to penalise or to begin from; leave penalty and interval_init out."
            )

    def setup(self, context: Context) -> None:
        """Trace the network, name an operator whose constant is not known, and find the first singular vectors."""
        super().setup(context)
        if self.constant == 0:
            like = torch.zeros(1, *context.input_shape, device=context.device)
            context.memory["vectors"] = Power(context.trace(), like).start(context.noise)

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The loss with the new class, at that share of the radius."""
        logits = step.logits("clean")
        with step.normalised("clean") as graph:
            gaps = Power(graph, step.x[:1]).gaps(step.memory.get("vectors", {}), step.num_classes, self.constant)
        rival = rivals(logits, gaps, share * self.eps * step.threat.radius)
        extended = torch.cat([logits, rival.unsqueeze(1)], 1)
        if self.loss == "ce":
            return {"ce_gloro": Term(ce(extended, torch.nn.functional.pad(step.q, (0, 1))))}
        # The divergence of the logits from those with one more is -log(1 - p) of the new class.
        kl = extended.logsumexp(1) - logits.logsumexp(1)
        return {"ce": Term(ce(logits, step.q)), "kl": Term(kl, self.beta)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """As all training on bounds; the clean cross-entropy of ``trades`` is its own."""
        share = self.grown(step.progress)
        kappa = self.kappa(share)
        if self.loss == "ce" or kappa in (0.0, 1.0):
            return super().terms(step)
        found = dict(super().terms(step))
        return found | {"ce": Term(ce(step.logits("clean"), step.q))}

    def post_step(self, step: Step) -> None:
        """The singular vectors follow the weights."""
        if self.constant == 0 and step.graph is not None:
            power = Power(step.graph, step.x[:1])
            step.memory["vectors"] = power.iterate(step.memory["vectors"], self.iterations)


def rivals(logits: Tensor, gaps: Tensor, eps: float) -> Tensor:
    """``max_(j != i) f_j + eps K_ij`` for the predicted class i, ``[B]``."""
    predicted = logits.argmax(1)
    reached = logits + eps * gaps[predicted]
    return reached.scatter(1, predicted.view(-1, 1), float("-inf")).amax(1)
