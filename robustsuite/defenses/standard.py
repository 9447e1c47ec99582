"""Standard training: the reference row of every table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.registry import register_defense


@register_defense("standard", kind="step", paper="empirical risk minimisation", cost="1 pass")
@dataclass(frozen=True)
class Standard(StepMethod):
    """Cross-entropy on clean examples; robust to nothing, and said so by every evaluation."""

    # Clean accuracy saturates early: choosing by a few held-out examples would choose by chance.
    select: ClassVar = "last"

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x), y)``."""
        return {"ce": Term(ce(step.logits("clean"), step.q))}
