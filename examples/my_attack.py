"""An attack as a plugin: the whole file. Check it with `robustsuite check my_attack.py:MyAttack`."""

from dataclasses import dataclass

from robustsuite.attacks import Attack, register_attack
from robustsuite.models.classifier import margins


@register_attack("my_attack", norms=("Linf", "L2", "L1"), access="white-box", kind="bounded", randomized=True)
@dataclass(frozen=True)
class MyAttack(Attack):
    """Gradient ascent on the margin with a shrinking step from a random start; ``steps`` evaluations."""

    steps: int = 20

    def run(self, model, x, y, threat, noise):
        delta = threat.project(x, threat.radius * noise.normal(x.shape[1:]))
        for i in range(self.steps):
            _, grad = model.gradient(x + delta, lambda logits: -margins(logits, y))
            delta = threat.project(x, delta + threat.radius * threat.ascent(grad) / (1 + i))
        return x + delta
