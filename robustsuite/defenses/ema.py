"""An exponential moving average of the weights."""

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import Step, StepMethod
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "ema",
    kind="modifier",
    paper="Gowal et al. 2020, arXiv:2010.03593, section 4.4",
    cost="0 passes",
    defaults={"cifar10": {"decay": 0.995}},
)
@dataclass(frozen=True)
class EMA(StepMethod):
    """What is validated, selected and saved is the running average of the weights, not the weights.

    Gowal, Qin, Uesato, Mann, Kohli, "Uncovering the Limits of Adversarial Training" (2020), section 4.4. The decay
    warms up as ``min(decay, (1 + s) / (10 + s))`` over the steps s since `start`, a share of the training (Wang et al.
    2023: 0.025). `buffers` says what becomes of batch-norm statistics, which published codes do differently: ``copy``
    takes those of the trained network, ``average`` averages them too.
    """

    decay: float = 0.995
    start: float = 0.0
    buffers: Literal["copy", "average"] = "copy"

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.start <= 1) or self.buffers not in ("copy", "average"):
            raise UsageError(f"ema needs decay in [0,1), start in [0,1] and buffers copy or average, got {self}.")

    def setup(self, context: Context) -> None:
        """The average starts at the initial weights."""
        context.add("ema", copy.deepcopy(context.module))

    def rate(self, since: int) -> float:
        """The decay at the step ``since`` the start."""
        return min(self.decay, (1 + since) / (10 + since))

    def post_step(self, step: Step) -> None:
        """Move the average a little towards the weights; before the start, all the way."""
        since = step.memory.get("since", 0)
        begun = step.progress >= self.start
        step.memory["since"] = since + begun
        rate = self.rate(since) if begun else 0.0
        follow(step.aux["ema"], step.module, rate, self.buffers)

    def keep(self, context: Context) -> nn.Module:
        """The average."""
        return context.aux["ema"]
