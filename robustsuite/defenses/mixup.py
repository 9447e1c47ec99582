"""Mixup: convex combinations of examples and of their labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import betaincinv
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_defense


@register_defense(
    "mixup",
    kind="modifier",
    paper="Zhang et al. 2018, arXiv:1710.09412",
    cost="0 passes",
    defaults={"cifar10": {"concentration": 1.0}, "imagenet": {"concentration": 0.2}},
)
@dataclass(frozen=True)
class Mixup(StepMethod):
    """``lambda x_i + (1 - lambda) x_j`` with labels mixed alike, lambda from Beta(c, c) once a step, j at random.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (ICLR 2018). `concentration` c:
    1 for CIFAR, 0.1 to 0.4 for ImageNet, 0 turns it off. With adversarial training the mixed images are attacked, under
    the mixed labels. The hard label of a mixture is that of its larger part.
    """

    concentration: float = 1.0
    batch_coupled: ClassVar[bool] = True
    base: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        check_concentration("mixup", self.concentration)

    def data(self, step: Step) -> None:
        """Mix the batch."""
        share, partner = beta_share(step, self.concentration), partners(step.noise)
        y, q = mixed_labels(step, share, partner)
        step.rebatch(x=mix(step.x, share, partner), y=y, q=q)


def mixed_labels(step: Step, share: float, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Hard labels (those of the larger parts) and distributions of the mixtures."""
    return step.y if share >= 0.5 else step.y[partner], mix(step.q, share, partner)


def mix(values: Tensor, share: float, partner: Tensor) -> Tensor:
    """``share v_i + (1 - share) v_j``, j the partner of i; ``values`` ``[N,...]``."""
    return share * values + (1 - share) * values[partner]


def beta_share(step: Step, concentration: float) -> float:
    """The step's lambda from Beta(c, c), by its quantile function; 1 for c = 0."""
    if concentration == 0:
        return 1.0
    u = step.noise.noise.child("mixup").at(torch.zeros(1, dtype=torch.int64)).uniform(())
    return float(betaincinv(concentration, concentration, float(u)))


def partners(noise: ExampleNoise) -> Tensor:
    """A random permutation int64 ``[B]`` of the batch that pairs the same examples whatever their order."""
    drawn = noise.child("mixup").order()
    partner = torch.empty_like(drawn)
    partner[noise.ids.argsort(stable=True)] = drawn
    return partner


def check_concentration(name: str, concentration: float) -> None:
    """Raise `UsageError` unless it is a number >= 0."""
    if not 0 <= concentration < float("inf"):
        raise UsageError(f"{name} needs concentration >= 0, got {concentration}.")
