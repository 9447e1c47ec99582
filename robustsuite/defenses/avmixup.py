"""Adversarial vertex mixup: training between an example and a point beyond its adversarial one."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "avmixup",
    kind="step",
    paper="Lee, Lee, Yoon 2020, arXiv:2003.02484, section 4",
    cost="steps + 1 passes",
    defaults={"cifar10": {"gamma": 2.0, "lam_clean": 1.0, "lam_adv": 0.1}},
    fidelity="authors' code",
)
@dataclass(frozen=True)
class AVMixup(StepMethod):
    """Soft cross-entropy at ``b x + (1 - b) v``, v the vertex ``x + gamma (x' - x)``, b uniform for each example.

    Lee, Lee, Yoon, "Adversarial Vertex Mixup: Toward Better Adversarially Robust Generalization" (CVPR 2020). x' is
    PGD's, the vertex is clipped to the box alone. The labels are mixed alike: `lam_clean` of the mass on the true class
    at x, `lam_adv` of it at the vertex, the rest spread over the other classes: 1 and 0.1 for CIFAR-10, which makes the
    vertex's label uniform (with K classes: 1/K). `gamma`: 2. Evaluated by PGD alone in the paper: soft labels and
    examples beyond the ball may hide gradients, so attack it by more than that.
    """

    gamma: float = 2.0
    lam_clean: float = 1.0
    lam_adv: float = 0.1
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.gamma < 0 or not (0 <= self.lam_clean <= 1 and 0 <= self.lam_adv <= 1):
            raise UsageError(f"avmixup needs gamma >= 0, lam_clean and lam_adv in [0,1], got {self}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: PGD's example; ``mixed``: what is trained on."""
        found = step.maximise(InnerSpec("ce", self.steps, self.alpha))
        vertex = (step.x + self.gamma * (found - step.x)).clamp(0, 1)
        away = 1 - step.noise.child("avmixup").uniform(()).to(step.x.dtype)
        step.trace["avmixup"] = torch.lerp(
            spread(step.q, self.lam_clean), spread(step.q, self.lam_adv), away.unsqueeze(1)
        )
        return {"adv": found, "mixed": torch.lerp(step.x, vertex, away.view(-1, *[1] * (step.x.ndim - 1)))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the mixture to its mixed label."""
        return {"ce_mixed": Term(ce(step.logits("mixed"), step.trace["avmixup"]))}


def spread(q: Tensor, share: float) -> Tensor:
    """``share`` of the mass where ``q`` ``[B,K]`` has it, the rest evenly where it has none."""
    return share * q + (1 - share) * (1 - q) / (q.shape[1] - 1)
