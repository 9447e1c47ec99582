"""Margin-aware instance-reweighting learning (MAIL)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "mail",
    kind="modifier",
    paper="Wang et al. 2021, arXiv:2106.07904",
    cost="0 passes",
    defaults={"cifar10": {"slope": 10.0, "bias": -0.5, "start": 0.625}},
)
@dataclass(frozen=True)
class MAIL(StepMethod):
    """An example weighs the more, the smaller the probabilistic margin of its adversarial view.

    Wang, Liu, Han, Liu, Gong, Niu, Zhou, Sugiyama, "Probabilistic Margins for Instance Reweighting in Adversarial
    Training" (NeurIPS 2021): ``w = factor sigmoid(slope (PM + bias))`` with ``PM = max_{k != y} p'_k - p'_y``, which
    multiplies the adversarial term (cross-entropy, MART's BCE or TRADES' divergence).

    `slope` and `bias`: 10 and -0.5 with PGD training, 2 and 0 with TRADES in the README of the code, whose own defaults
    are 1 and -1.5. The code multiplies by `factor` 3 with TRADES and MART, and does not normalise; the paper scales to
    mean one: `normalise`. The default is the code with PGD training. `start` is the share of the training before it
    (75 of 120 epochs), in which all weights are 1.
    """

    slope: float = 10.0
    bias: float = -0.5
    factor: float = 1.0
    normalise: bool = False
    start: float = 0.625
    batch_coupled: ClassVar[bool] = True  # when it normalises
    needs: ClassVar[tuple[str, ...]] = ("adv",)
    weighs: ClassVar[tuple[str, ...]] = ("ce_adv", "bce", "kl")

    def __post_init__(self) -> None:
        if self.slope < 0 or self.factor <= 0 or not 0 <= self.start <= 1:
            raise UsageError(f"mail needs slope >= 0, factor > 0 and start in [0,1], got {self}.")

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """For the adversarial term, once `start` is over."""
        if step.progress < self.start:
            return {}
        margin = probabilistic_margin(step.logits("adv").detach(), step.y)
        raw = self.factor * (self.slope * (margin + self.bias)).sigmoid()
        return {next(name for name in self.weighs if name in terms): raw / raw.mean() if self.normalise else raw}


def probabilistic_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{k != y} p_k - p_y`` in [-1,1], ``[B]``; positive where the example is misclassified."""
    p = logits.softmax(1)
    right = nn.functional.one_hot(y, p.shape[1]).bool()
    return p.masked_fill(right, 0).amax(1) - p[right]
