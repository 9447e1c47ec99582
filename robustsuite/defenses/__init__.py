"""One file a defense. `base` holds the contract: the slots that a training-time defense fills, and the wraps."""

from robustsuite.defenses.base import FitMethod, InnerSpec, Step, StepMethod, Term, WrapMethod, reduce_terms
from robustsuite.defenses.losses import ce, kl
from robustsuite.registry import register_defense

__all__ = [
    "FitMethod",
    "InnerSpec",
    "Step",
    "StepMethod",
    "Term",
    "WrapMethod",
    "ce",
    "kl",
    "reduce_terms",
    "register_defense",
]
