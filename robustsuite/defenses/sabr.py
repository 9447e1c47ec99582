"""Interval bounds over small adversarial boxes."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import MNIST, BoundTraining, Schedule, worst
from robustsuite.defenses.small_box import adversarial, small_box
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "sabr",
    kind="step",
    paper="Mueller et al. 2023, arXiv:2210.04871, eq. 4",
    cost="steps + 2 passes, 1 more where the network has batch norm or kappa is above 0",
    defaults={
        "mnist": MNIST | {"shrink": 0.9, "eps": 1.0},
        "mnist-0.1": MNIST | {"shrink": 0.4, "eps": 2.0},
        "mnist-0.3": MNIST | {"shrink": 0.9, "eps": 1.0},
        "cifar10": {"warmup": 1 / 180, "ramp": 81 / 180, "shrink": 0.7},
        "cifar10-2/255": {"warmup": 1 / 160, "ramp": 81 / 160, "shrink": 0.1, "eps": 1.5},
        "cifar10-8/255": {"warmup": 1 / 180, "ramp": 81 / 180, "shrink": 0.7},
    },
)
@dataclass(frozen=True)
class SABR(BoundTraining):
    """IBP over a box of `shrink` times the radius, around an adversarial example and within the ball.

    Mueller, Eckert, Fischer, Vechev, "Certified Training: Small Boxes are All You Need" (ICLR 2023), eq. 4; `shrink` is
    its lambda: 0.1 at CIFAR-10 2/255, 0.4 at MNIST 0.1, 0.6 to 0.9 at 0.3 and at 8/255; 1 is IBP. The example is found
    in `steps` of `alpha` times the radius, 8 of 0.5 there. The paper's shrinking factor of 0.8 for ReLUs at 2/255 is
    not applied. Radius (`warmup`, `ramp`, `eps`, `schedule`), kappa (`kappa_start`, `kappa_end`: 0 in the paper), `l1`,
    `penalty` and `interval_init`: as `ibp`'s; the paper starts from the weights and with the penalty of Fast-IBP.
    """

    shrink: float = 0.4
    steps: int = 8
    alpha: float = 0.5
    schedule: Schedule = "smoothed"
    penalty: float = 0.5
    interval_init: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= 1:
            raise UsageError(f"sabr needs shrink in [0,1], got {self.shrink}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy; not made for the whole ball, nor while the radius is 0."""
        share = self.grown(step.progress)
        if share == 0 or self.kappa(share) == 1 or self.shrink == 1:
            return {}
        return {"adv": adversarial(step, self.steps, self.alpha, share * self.eps)}

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """``CE(-margins)`` over the small box."""
        box = small_box(step.views.get("adv", step.x), *self.box(step, share), self.shrink)
        return {"ce_worst": Term(worst(step, step.margins(*box)))}
