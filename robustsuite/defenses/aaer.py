"""Abnormal adversarial examples regularisation (AAER): one-step examples must not lower the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.fgsm_at import Mode
from robustsuite.defenses.losses import ce
from robustsuite.defenses.step import Objective
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "aaer",
    kind="modifier",
    paper="Lin, Yu, Liu 2023, arXiv:2404.08154, section 4",
    cost="0 passes",
    defaults={
        "cifar10": {"lam2": 2.5, "lam3": 1.5},
        "cifar100": {"lam2": 3.5, "lam3": 1.5},
        "cifar10-n_fgsm": {"lam2": 1.5, "lam3": 0.15},
        "cifar100-n_fgsm": {"lam2": 3.5, "lam3": 0.15},
    },
    fidelity="authors' code",
)
@dataclass(frozen=True)
class AAER(StepMethod):
    """Few, and mild, abnormal examples: those whose loss falls in the one step that shall raise it.

    Lin, Yu, Liu, "Eliminating Catastrophic Overfitting Via Abnormal Adversarial Examples Regularization" (NeurIPS
    2023). z is the network at the attack's start, z' at its end; an example is abnormal where ``CE(z) > CE(z')``. Added
    is ``lam1 share [lam2 mean(CE(z) - CE(z')) + lam3 max(V - V_normal, 0)]`` with the share and the mean of the
    abnormal ones, V their mean ``|z - z'|^2``, V_normal the others' (constant, as is z); nothing where either set is
    empty. It costs no pass: z comes from the attack's own, in `bn_mode` (``train`` in their code).

    In their code both cross-entropies are constants, so that lam2 changes the reported loss and nothing else: that is
    the default here. `ce_term_grad` lets the gradient through CE(z'). `lam1` is 1; `lam2`, `lam3` for CIFAR-10 at 8,
    12, 16 and 32/255 are (2.5, 1.5), (5, 2.75), (7, 3.25), (5.75, 1.5) with fgsm_rs and (1.5, 0.15), (5, 0.55),
    (8.5, 1.5), (2.75, 0.75) with n_fgsm. `ramp`: epochs in which lam1 grows to its value (20 in their long schedules).
    """

    lam1: float = 1.0
    lam2: float = 2.5
    lam3: float = 1.5
    ce_term_grad: bool = False
    ramp: int = 0
    bn_mode: Mode = "train"
    base: ClassVar[str] = "fgsm_rs"
    needs: ClassVar[tuple[str, ...]] = ("adv",)
    batch_coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.lam1, self.lam2, self.lam3, self.ramp) < 0 or self.bn_mode not in get_args(Mode):
            raise UsageError(
                f"aaer needs lam1, lam2, lam3 and ramp >= 0 and bn_mode of {', '.join(get_args(Mode))}, got {self}."
            )

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """The same, remembering the logits at the start."""
        if self.lam1 == 0 or spec.steps != 1 or spec.loss != "ce" or "aaer" in step.trace:
            return spec
        return replace(spec, loss=remembering(step), bn_mode=self.bn_mode)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """None of its own; it checks that the base has run one step."""
        if self.lam1 and "aaer" not in step.trace:
            raise UsageError(
                "aaer compares the loss before and after a one-step attack on the cross-entropy, and the base runs "
                "none; train it with fgsm_rs, n_fgsm or fgsm_at."
            )
        return {}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The regulariser: 0 for normal examples; the mean over the batch holds the share of the abnormal ones."""
        if self.lam1 == 0:
            return {}
        before, after = step.trace["aaer"], step.logits("adv")
        loss = ce(after, step.q)
        drop = ce(before, step.q) - (loss if self.ce_term_grad else loss.detach())
        values = abnormality(drop, (after - before).square().sum(1), self.lam2, self.lam3)
        return {"aaer": Term(values, self.lam1 * (min(step.epoch / self.ramp, 1.0) if self.ramp else 1.0))}


def abnormality(drop: Tensor, variation: Tensor, lam2: float, lam3: float) -> Tensor:
    """The regulariser of each example ``[B]`` from the fall of its loss and the square of its logits' change."""
    abnormal = drop.detach() > 0
    count = int(abnormal.sum())
    if count in (0, len(drop)):
        return torch.zeros_like(drop)
    excess = variation[abnormal].mean() - variation[~abnormal].mean().detach()
    return (lam2 * drop + lam3 * excess.clamp(min=0)) * abnormal


def remembering(step: Step) -> Objective:
    """The cross-entropy of the attack, which leaves the first logits that it sees in the trace."""
    labels = step.q if step.q_attack is None else step.q_attack

    def objective(logits: Tensor) -> Tensor:
        step.trace.setdefault("aaer", logits.detach())
        return ce(logits, labels)

    return objective
