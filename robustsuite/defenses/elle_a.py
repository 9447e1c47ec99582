"""ELLE-A: ELLE that is switched on when the loss stops being linear, and fades."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustsuite.defenses.base import Step
from robustsuite.defenses.elle import LinearOnSegments
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

LEAST = 3  # errors seen before one can be a spike


@register_defense(
    "elle_a",
    kind="modifier",
    paper="Abad Rocamora et al. 2024, arXiv:2401.11618, section 4 and alg. 1",
    cost="3 passes",
    defaults={"cifar10": {"lam_max": 4000.0}, "imagenet": {"lam_max": 5000.0, "window": 500}},
    fidelity="paper",
)
@dataclass(frozen=True)
class ELLEA(LinearOnSegments):
    """As elle, with a coefficient that jumps to `lam_max` at a spike of the batch's error, and decays otherwise.

    Abad Rocamora, Liu, Chrysos, Olmos, Cevher, "Efficient Local Linearity Regularization to Overcome Catastrophic
    Overfitting" (ICLR 2024). The coefficient begins at 0. After each step: an error above the mean of those before plus
    `sensitivity` (2) times their standard deviation sets it to `lam_max` (4000 on CIFAR-10, 5000 on ImageNet; 100 suits
    digits at 0.15, where 4000 costs robustness), anything else multiplies it by `decay` (0.99). `window`: how many
    errors are looked back at (0: all; 500 on ImageNet).
    """

    lam_max: float = 100.0
    sensitivity: float = 2.0
    decay: float = 0.99
    window: int = 0

    def __post_init__(self) -> None:
        if min(self.lam_max, self.sensitivity, self.window) < 0 or not 0 <= self.decay <= 1:
            raise UsageError(f"elle_a needs lam_max, sensitivity and window >= 0 and decay in [0,1], got {self}.")

    @property
    def idle(self) -> bool:
        """Whether lam_max is 0."""
        return self.lam_max == 0

    def coefficient(self, step: Step) -> float:
        """What the controller says after the steps so far."""
        return step.memory.get("lam", 0.0)

    def next(self, lam: float, error: float, seen: Sequence[float]) -> float:
        """The coefficient after a step whose error was ``error``, those before it being ``seen``."""
        if len(seen) >= LEAST and error > np.mean(seen) + self.sensitivity * np.std(seen):
            return self.lam_max
        return lam * self.decay

    def post_step(self, step: Step) -> None:
        """Look at the step's error."""
        if self.idle:
            return
        error, seen = float(step.reduce([step.trace["elle"]])[0]), step.memory.setdefault("seen", [])
        step.memory["lam"] = self.next(self.coefficient(step), error, seen)
        seen.append(error)
        if self.window:
            del seen[: -self.window]
