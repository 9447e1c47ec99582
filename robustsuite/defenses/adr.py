"""Annealing self-distillation rectification (ADR): a running average of the weights corrects the labels."""

import copy
import math
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import Step, StepMethod
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

TEACHER = "adr"


@register_defense(
    "adr",
    kind="modifier",
    paper="Wu, Wang, Chen 2024, arXiv:2305.12118",
    cost="1 forward pass",
    fidelity="authors' code",
    defaults={"cifar10": {}, "cifar100": {}},
)
@dataclass(frozen=True)
class ADR(StepMethod):
    """Labels become ``l P + (1 - l) onehot``, P the softened answer of averaged weights to the clean image.

    Wu, Wang, Chen, "Annealing Self-Distillation Rectification Improves Adversarial Training" (ICLR 2024), as in their
    code. An example's ``l = clip(share - (max P - P_y), 0, 1)`` is smaller where the average is wrong. The average
    decays by `decay` (0.995), batch-norm statistics too. The logits are divided by a temperature that goes from
    `temperature` (2.5) to `temperature_end` (2; 1.5 for WRN and with awp) along half a cosine over the training, and
    the share from `share` (0.7) to `share_end` (0.95; 0.85 for WRN and with awp). Attack and loss see these labels;
    TRADES has them in its cross-entropy alone. They evaluate another average of the weights (`ema`) where they write
    WA, and take a gamma of 0.005 with `awp`.
    """

    temperature: float = 2.5
    temperature_end: float = 2.0
    share: float = 0.7
    share_end: float = 0.95
    decay: float = 0.995

    def __post_init__(self) -> None:
        shares = all(0 <= share <= 1 for share in (self.share, self.share_end))
        if min(self.temperature, self.temperature_end) <= 0 or not shares or not 0 <= self.decay < 1:
            raise UsageError(f"adr needs temperatures > 0, shares in [0,1] and decay in [0,1), got {self}.")

    def setup(self, context: Context) -> None:
        """The average starts at the initial weights."""
        context.add(TEACHER, copy.deepcopy(context.module))

    def labels(self, step: Step) -> Tensor:
        """Rectified, from whatever they were."""
        if TEACHER not in step.trace:
            step.trace[TEACHER] = step.infer(step.x, step.aux[TEACHER])
        heat = annealed(self.temperature, self.temperature_end, step.progress)
        answer = (step.trace[TEACHER] / heat).softmax(1).to(step.q.dtype)
        lacking = answer.amax(1) - (answer * step.q).sum(1)
        share = (annealed(self.share, self.share_end, step.progress) - lacking).clamp(0, 1).unsqueeze(1)
        return share * answer + (1 - share) * step.q

    def post_step(self, step: Step) -> None:
        """Move the average, buffers included, a little towards the weights."""
        follow(step.aux[TEACHER], step.module, self.decay, "average")


def annealed(first: float, last: float, progress: float) -> float:
    """From ``first`` to ``last`` along half a cosine."""
    return first + (last - first) * (1 - math.cos(math.pi * progress)) / 2
