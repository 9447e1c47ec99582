"""Label smoothing."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "label_smoothing",
    kind="modifier",
    paper="Szegedy et al. 2016, arXiv:1512.00567, section 7",
    cost="0 passes",
    defaults={"cifar10": {"smoothing": 0.1}},
)
@dataclass(frozen=True)
class LabelSmoothing(StepMethod):
    """Labels become ``(1 - a) onehot + a / K``.

    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture" (CVPR 2016), section 7. With
    adversarial training, Pang et al., "Bag of Tricks for Adversarial Training" (ICLR 2021) find 0.1 to 0.3. Some codes
    give `smoothing` to the other K - 1 classes alone: ``classical`` does that. `scope`: who sees the smoothed labels,
    ``loss``, ``attack`` or ``both``; the published codes attack the hard ones.
    """

    smoothing: float = 0.1
    classical: bool = False
    scope: Literal["both", "loss", "attack"] = "loss"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing must lie in [0,1), got {self.smoothing}.")

    def labels(self, step: Step) -> Tensor:
        """Smoothed, from whatever they were."""
        classes = step.num_classes
        share = self.smoothing * (classes / (classes - 1) if self.classical else 1.0)
        return (1 - share) * step.q + share / classes
