"""Small adversarial boxes for the first part of a network, attacks within what comes of them for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import MNIST
from robustsuite.defenses.small_box import adversarial, small_box
from robustsuite.defenses.taps import PAPER, TAPS
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

_MNIST = MNIST | {"last": 4}


@register_defense(
    "staps",
    kind="step",
    paper=f"{PAPER}, section 3 (TAPS over the boxes of SABR)",
    cost="input_steps + 2 passes, and (classes - 1) restarts (steps + 1) of the last operators",
    fidelity="reconstructed",
    defaults={
        "mnist": _MNIST | {"shrink": 0.6, "eps": 4 / 3},
        "mnist-0.1": _MNIST | {"shrink": 0.4, "eps": 2.0},
        "mnist-0.3": _MNIST | {"shrink": 0.6, "eps": 4 / 3},
        "cifar10": {"warmup": 1 / 180, "ramp": 81 / 180, "last": 4, "shrink": 0.9},
        "cifar10-2/255": {"warmup": 1 / 160, "ramp": 81 / 160, "last": 4, "shrink": 0.1, "eps": 1.5},
        "cifar10-8/255": {"warmup": 1 / 180, "ramp": 81 / 180, "last": 4, "shrink": 0.9},
    },
)
@dataclass(frozen=True)
class STAPS(TAPS):
    """`taps` over a box of `shrink` times the radius around an adversarial example (`sabr`).

    Mao, Mueller, Fischer, Vechev, "Connecting Certified and Adversarial Training" (NeurIPS 2023). `shrink`: 0.1 at
    CIFAR-10 2/255, 0.4 and 0.6 at MNIST 0.1 and 0.3, 0.9 at 8/255; 1 is `taps`. The example is found in `input_steps`
    of `input_alpha` times the radius. The rest is as in `taps`: `last`, `steps`, `alpha`, `restarts`, `connector`,
    `weight`; and `warmup`, `ramp`, `eps`, `schedule`, `kappa_start`, `kappa_end`, `l1`, `penalty`, `interval_init`.
    """

    shrink: float = 0.4
    input_steps: int = 8
    input_alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= 1:
            raise UsageError(f"staps needs shrink in [0,1], got {self.shrink}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy; not made for the whole ball, nor while the radius is 0."""
        share = self.grown(step.progress)
        if share == 0 or self.kappa(share) == 1 or self.shrink == 1:
            return {}
        return {"adv": adversarial(step, self.input_steps, self.input_alpha, share * self.eps)}

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The product of the two losses over the small box."""
        return self.product(step, *small_box(step.views.get("adv", step.x), *self.box(step, share), self.shrink))
