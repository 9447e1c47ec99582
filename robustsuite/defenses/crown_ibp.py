"""Certified training with one backward pass over interval bounds."""

from collections.abc import Mapping
from dataclasses import dataclass

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import MNIST, BoundTraining, worst
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

_MNIST = MNIST | {"schedule": "smoothed"}


@register_defense(
    "crown_ibp",
    kind="step",
    paper="Zhang et al. 2020, arXiv:1906.06316, eq. 11; Xu et al. 2020, arXiv:2002.12920 (loss fusion)",
    cost="3 passes, and 1 more with fusion (as many as classes without) while beta is above 0",
    defaults={
        "mnist": _MNIST | {"kappa_end": 0.0, "eps": 4 / 3, "l1": 1e-6},
        "mnist-0.1": _MNIST | {"kappa_end": 0.0, "eps": 2.0, "l1": 5e-6},
        "mnist-0.3": _MNIST | {"kappa_end": 0.0, "eps": 4 / 3, "l1": 1e-6},
        "cifar10": {"warmup": 1 / 240, "ramp": 121 / 240, "kappa_end": 0.0},
        "cifar10-2/255": {"warmup": 1 / 160, "ramp": 81 / 160, "kappa_end": 0.0, "beta_end": 1.0, "l1": 3e-6},
        "cifar10-8/255": {"warmup": 1 / 240, "ramp": 121 / 240, "kappa_end": 0.0},
    },
)
@dataclass(frozen=True)
class CrownIBPTraining(BoundTraining):
    """``CE(-margins)`` with margins ``beta CROWN-IBP + (1 - beta) IBP``, beta falling while the radius grows.

    Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning, Hsieh, "Towards Stable and Efficient Training of Verifiably Robust
    Neural Networks" (ICLR 2020), eq. 11: beta goes from `beta_start` to `beta_end` with the radius, 1 to 0 in the paper
    (1 kept for small eps). `fusion`: bound the cross-entropy itself by one row for each example in place of one a class
    (Xu et al. 2020); beta then mixes the two bounds of the sum of exponentials. It is not always tighter. Kappa and
    radius (`kappa_start`, `kappa_end`, `warmup`, `ramp`, `eps`, `schedule`), `l1`, `penalty` and `interval_init`: as
    `ibp`'s.
    """

    kappa_start: float = 1.0
    beta_start: float = 1.0
    beta_end: float = 0.0
    fusion: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta_start <= 1 and 0 <= self.beta_end <= 1):
            raise UsageError(f"crown_ibp's beta must lie in [0,1], got {self.beta_start} to {self.beta_end}.")

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The cross-entropy at the mixed bounds; with beta 0 it is IBP's."""
        beta = self.beta_start + (self.beta_end - self.beta_start) * share
        box = self.box(step, share)
        if beta == 0:
            return {"ce_worst": Term(worst(step, step.margins(*box)))}
        if self.fusion:
            return {"ce_worst": Term(step.crown_ibp(*box, fused=beta))}
        backward = step.crown_ibp(*box)
        if beta == 1 or step.boxes is None:
            return {"ce_worst": Term(worst(step, backward))}
        return {"ce_worst": Term(worst(step, beta * backward + (1 - beta) * step.boxes.margins(step.y)))}
