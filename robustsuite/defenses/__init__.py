"""One file a defense. `base` holds the contract: the slots that a training-time defense fills, and the wraps."""

from robustsuite.defenses.base import FitMethod, StepMethod, WrapMethod
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.defenses.services import Fitted, Services
from robustsuite.defenses.step import InnerSpec, Step, Term, reduce_terms
from robustsuite.registry import register_defense

__all__ = [
    "Context",
    "FitMethod",
    "Fitted",
    "InnerSpec",
    "Services",
    "Step",
    "StepMethod",
    "Term",
    "WrapMethod",
    "ce",
    "kl",
    "reduce_terms",
    "register_defense",
]
