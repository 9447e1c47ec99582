"""Interval training with a short warm-up."""

from dataclasses import dataclass

from robustsuite.defenses.bound_training import MNIST, Schedule
from robustsuite.defenses.ibp import IBP
from robustsuite.registry import register_defense


@register_defense(
    "fast_ibp",
    kind="step",
    paper="Shi et al. 2021, arXiv:2103.17268, eq. 6 to 11",
    fidelity="reconstructed",
    cost="2 passes, 3 where the network has batch norm or kappa is above 0",
    defaults={
        "mnist": MNIST | {"eps": 4 / 3},
        "mnist-0.1": MNIST | {"eps": 2.0},
        "mnist-0.3": MNIST | {"eps": 4 / 3},
        "cifar10": {"warmup": 1 / 160, "ramp": 81 / 160},
        "cifar10-2/255": {"warmup": 1 / 160, "ramp": 81 / 160},
        "cifar10-8/255": {"warmup": 1 / 240, "ramp": 121 / 240},
    },
)
@dataclass(frozen=True)
class FastIBP(IBP):
    """IBP from weights that keep intervals from growing, with two penalties while the radius grows.

    Shi, Wang, Zhang, Yi, Hsieh, "Fast Certified Robust Training with Short Warmup" (NeurIPS 2021): weights drawn from
    ``N(0, 2 pi / fan_in^2)`` (`interval_init`), batch normalisation after every layer (take an architecture that has
    it, such as ``cnn7``: one without keeps its own weights), and `penalty` times the tightness and stability penalties,
    fading with ``1 - eps_t / eps``; 0.5 in the paper, 0.2 on TinyImageNet. Schedule as `ibp`'s (`warmup`, `ramp`,
    `schedule`, `eps`), without a clean share (`kappa_start` and `kappa_end` 0); `l1` on the weights is 0 in the paper,
    which bounds the gradient (-S clip=10) and uses Adam at 5e-4.
    """

    kappa_start: float = 0.0
    kappa_end: float = 0.0
    schedule: Schedule = "smoothed"
    penalty: float = 0.5
    interval_init: bool = True
