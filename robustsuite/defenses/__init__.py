"""One file a defense. `base` holds the step method: the slots that a training-time defense fills."""

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.registry import register_defense

__all__ = ["InnerSpec", "Step", "StepMethod", "Term", "register_defense"]
