"""Holistic robust training (HR): against evasion, poisoning and the small sample at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

LOWEST, HIGHEST, HALVINGS = -700.0, 50.0, 64  # of log(eta - max loss) in units of the losses' spread, in float64


@register_defense(
    "hr",
    kind="modifier",
    paper="Bennouna, Lucas, Van Parys 2023, arXiv:2303.02251",
    cost="0 passes",
    fidelity="authors' code",
)
@dataclass(frozen=True)
class HR(StepMethod):
    """The batch's losses are weighed by the worst distribution that poisoning and sampling error allow.

    Bennouna, Lucas, Van Parys, "Certified Robust Neural Networks: Generalization and Corruption Resistance" (ICML
    2023), on top of the base's attack (evasion). `poisoned` (their alpha): the share of the data that may have been
    moved, 0.05; `radius` (their r): the KL divergence of the sampling error, 0.1; both 0 is the base itself. `order`:
    ``hd`` moves mass to the worst loss first, then takes the KL ball around that, the default of their code; ``hr`` is
    the reverse, and neither is always the larger loss. Their eps is 0.5 in L2, with 10 steps of 0.4 eps.

    An example's loss is the sum of the base's terms. Their code asks a conic solver for every batch; here the same
    problems are solved exactly in one dimension. What the loss bounds is the expected loss over new data (with
    probability, over the sample): no certificate of an input.
    """

    poisoned: float = 0.05
    radius: float = 0.1
    order: Literal["hd", "hr"] = "hd"
    batch_coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.poisoned < 1 or self.radius < 0 or self.order not in ("hd", "hr"):
            raise UsageError(f"hr needs poisoned in [0,1), radius >= 0 and order hd or hr, got {self}.")

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """The same for every term: the worst distribution, times the size of the batch."""
        if self.poisoned == self.radius == 0:
            return {}
        losses = torch.stack([term.weight * term.values.detach() for term in terms.values()]).sum(0)
        worst = hd_weights if self.order == "hd" else hr_weights
        p = worst(losses.double().cpu(), self.poisoned, self.radius)  # many tiny operations: slow on a GPU
        return dict.fromkeys(terms, (len(losses) * p).to(losses))


def hd_weights(losses: Tensor, poisoned: float, radius: float) -> Tensor:
    """Distribution p that maximises ``p . losses``: a share of the uniform mass is moved, then ``KL(q||p) <= radius``.

    float64 ``[N]`` to ``[N]``. The share ``poisoned`` is taken from the smallest losses and put on the largest.
    """
    ordered, order = losses.sort()
    uniform = torch.full_like(losses, 1 / len(losses))
    return torch.zeros_like(losses).scatter(0, order, tilt(ordered, _moved(uniform, poisoned), radius))


def hr_weights(losses: Tensor, poisoned: float, radius: float) -> Tensor:
    """As `hd_weights` in the other order: ``KL(uniform||q) <= radius``, then ``poisoned`` of q's mass moved."""
    ordered, order = losses.sort()
    return torch.zeros_like(losses).scatter(0, order, _moved(_before_moving(ordered, poisoned, radius), poisoned))


def tilt(losses: Tensor, q: Tensor, radius: float) -> Tensor:
    """Distribution p that maximises ``p . losses`` under ``KL(q||p) <= radius``; ``q`` is positive at the largest loss.

    ``p_i = G q_i / (eta - loss_i)`` with ``log G = sum_i q_i log(eta - loss_i) - radius``, and eta above all losses
    such that p sums to one; the sum falls as eta grows.
    """
    gap = losses.max() - losses
    spread = gap.max()
    if radius == 0 or spread == 0:
        return q
    gap = gap / spread
    low, high = LOWEST, HIGHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        room = gap + math.exp(middle)
        above = math.log(float(q @ room.reciprocal())) + float(q @ room.log()) > radius
        low, high = (middle, high) if above else (low, middle)
    p = q / (gap + math.exp(low))
    return p / p.sum()


def _moved(p: Tensor, mass: float) -> Tensor:
    """``mass`` of p taken from its first entries, and put on the last."""
    taken = (mass - (p.cumsum(0) - p)).clamp(min=0).minimum(p)
    p = p - taken
    p[-1] += taken.sum()
    return p


def _before_moving(losses: Tensor, mass: float, radius: float) -> Tensor:
    """The distribution q of `hr_weights`, for sorted losses.

    Moving ``mass`` is worth what clipping the losses from below at a level c is, for the best c, which is where the
    clipped examples hold that mass under the q of the clipped losses; it grows with c. Either c is one of the losses,
    or k examples lie below it and hold exactly ``mass``, evenly, and what is left of the radius is for the others.
    """
    uniform = torch.full_like(losses, 1 / len(losses))
    first, last = 0, len(losses) - 1
    while first < last:
        middle = (first + last) // 2
        q = tilt(losses.clamp(min=losses[middle].item()), uniform, radius)
        enough = bool(q[losses <= losses[middle]].sum() >= mass)
        first, last = (first, middle) if enough else (middle + 1, last)
    below = losses < losses[first]
    q = tilt(losses.clamp(min=losses[first].item()), uniform, radius)
    if q[below].sum() <= mass:
        return q
    k, n = int(below.sum()), len(losses)
    spent = _binary_kl(k / n, mass)
    rest = tilt(losses[k:], uniform[k:] * (n / (n - k)), max(n / (n - k) * (radius - spent), 0.0))
    return torch.cat([torch.full_like(losses[:k], mass / k), (1 - mass) * rest])


def _binary_kl(a: float, b: float) -> float:
    """``KL((a, 1-a) || (b, 1-b))``, both in (0,1)."""
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
