"""Confidence weighted regularisation (CoW)."""

from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.arow import PAPER, ARoW
from robustsuite.registry import register_defense


@register_defense(
    "cow",
    kind="step",
    paper=PAPER,
    cost="steps + 2 passes",
    fidelity="authors' code",
    defaults={"cifar10": {"beta": 7.0}, "cifar100": {"attack": "ce"}},
)
@dataclass(frozen=True)
class CoW(ARoW):
    """``CE(f(x), y smoothed) + beta KL(p || p') p_y``: the surer an example, the more it is regularised.

    The sibling of ARoW in its authors' code, whose parameters it has: `beta`, `smoothing`, `attack` and `through`
    (whether the gradient goes through the weight).
    """

    def weight(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The clean view's probability of the label."""
        del adversarial
        return clean
