"""The smooth adversarial comp-sum losses (ADV-COMP-SUM)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.clean_logits import clean_logits
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "adv_comp_sum",
    kind="step",
    paper="Mao, Mohri, Zhong 2023, arXiv:2304.07288",
    cost="steps + 2 passes and a forward pass",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class AdvCompSum(StepMethod):
    """``Phi_tau(sum_k exp(-D_k(x) / rho)) + nu max_x' ||D(x') - D(x)||_2`` with the margins ``D_k = z_y - z_k``.

    Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications" (ICML 2023). `tau` picks
    the loss: 0 sum-exponential (unbounded, it overflows for margins below -88), 1 cross-entropy, between 1 and 2
    generalised cross-entropy, 2 mean absolute error ``1 - p_y``. `rho` scales the margins in it, `nu` weighs the worst
    change of the margin vector, which x' maximises from 0.001 N(0,1) since its gradient vanishes at x.

    Reconstructed: the form of the loss is certain, the constants are provisional. The paper's are thought to be 1, all
    three; with nu 1 small networks end at a constant answer, so that 0.3 is the default.
    """

    tau: float = 1.0
    rho: float = 1.0
    nu: float = 0.3
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.tau, self.nu) < 0 or self.rho <= 0:
            raise UsageError(f"adv_comp_sum needs tau >= 0, rho > 0 and nu >= 0, got {self}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: the margins are farthest from the clean ones there; not made when nu is 0."""
        if self.nu == 0:
            return {}
        clean, y = clean_logits(step), step.y
        far = InnerSpec(lambda logits: margin_change(clean, logits, y), self.steps, self.alpha, init="gauss")
        return {"adv": step.maximise(far)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The comp-sum loss of the clean view, and the change of the margins times nu."""
        clean = step.logits("clean")
        terms = {"comp_sum": Term(comp_sum(clean / self.rho, step.q, self.tau))}
        if self.nu:
            terms["margin_change"] = Term(margin_change(clean, step.logits("adv"), step.y), self.nu)
        return terms


def comp_sum(logits: Tensor, q: Tensor, tau: float) -> Tensor:
    """``sum_y q_y Phi_tau(u_y)`` with ``u_y = sum_{k != y} exp(z_k - z_y)``, ``[B]``.

    ``Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau)``, and ``log(1 + u)``, the cross-entropy, at tau 1.
    """
    if tau == 1:
        return ce(logits, q)
    surprise = -logits.log_softmax(1).masked_fill(q == 0, 0)  # log(1 + u); of no label it may be large, and inf * 0
    return (q * torch.expm1((1 - tau) * surprise) / (1 - tau)).sum(1)


def margin_change(clean: Tensor, perturbed: Tensor, y: Tensor) -> Tensor:
    """``||D(x') - D(x)||_2`` of the margin vectors, ``[B]``; its gradient is 0 where they agree."""
    moved = perturbed - clean
    return torch.linalg.vector_norm(moved - moved.gather(1, y[:, None]), dim=1)
