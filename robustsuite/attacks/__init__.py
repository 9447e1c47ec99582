"""One file an attack. `base` holds the two doors: a plain `run`, and the stepper that the engine batches."""

from robustsuite.attacks.base import Attack, State, Stepper
from robustsuite.registry import register_attack

__all__ = ["Attack", "State", "Stepper", "register_attack"]
