"""Certified training with interval bounds."""

from collections.abc import Mapping
from dataclasses import dataclass

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import BoundTraining, worst
from robustsuite.registry import register_defense


@register_defense(
    "ibp",
    kind="step",
    paper="Gowal et al. 2018, arXiv:1810.12715, eq. 12",
    cost="3 passes",
    defaults={
        "mnist": {"warmup": 2 / 60, "ramp": 12 / 60, "eps": 4 / 3},
        "mnist-0.1": {"warmup": 2 / 60, "ramp": 12 / 60, "eps": 2.0},
        "mnist-0.3": {"warmup": 2 / 60, "ramp": 12 / 60, "eps": 4 / 3},
        "cifar10": {"warmup": 0.05, "ramp": 0.55, "eps": 1.1},
        "cifar10-2/255": {"warmup": 0.05, "ramp": 0.55, "eps": 1.1},
        "cifar10-8/255": {"warmup": 0.05, "ramp": 0.55, "eps": 1.1},
    },
)
@dataclass(frozen=True)
class IBP(BoundTraining):
    """``kappa CE(f(x), y) + (1 - kappa) CE(worst logits in the box)``, worst by interval bound propagation.

    Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models" (2018),
    eq. 12. The worst logits are 0 at the label and minus the lower bound of the margin elsewhere (the last layer is
    folded into the margins). The radius grows from 0 to `eps` times the threat model's eps between the shares `warmup`
    and `ramp` of the training (`schedule`: linear or smoothed), and kappa falls with it from `kappa_start` to
    `kappa_end`. The paper trains at a larger eps than it certifies (1.1 times on CIFAR-10, 0.2 for 0.1 and 0.4 for 0.3
    on MNIST). `l1` on the weights, `penalty` and `interval_init` of Fast-IBP: see `BoundTraining`. The box is that of
    the Linf ball, clipped to [0,1]; it contains the L2 and L1 balls of the same eps, loosely.
    """

    kappa_start: float = 1.0
    kappa_end: float = 0.5

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """``CE(-margins)``."""
        return {"ce_worst": Term(worst(step, step.margins(*self.box(step, share))))}
