"""A convex combination of the losses of adversarial and interval training."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import worst
from robustsuite.defenses.expressive import ATTACKED_MNIST, LARGE, PAPER, SMALL, Expressive
from robustsuite.defenses.losses import ce
from robustsuite.registry import register_defense


@register_defense(
    "mtl_ibp",
    kind="step",
    paper=f"{PAPER}, eq. 8",
    cost="steps + 3 passes",
    defaults={
        "mnist": ATTACKED_MNIST | {"coefficient": 8e-2, "l1": 1e-6, "eps": 4 / 3},
        "mnist-0.1": ATTACKED_MNIST | {"coefficient": 1e-2, "l1": 1e-5, "eps": 2.0},
        "mnist-0.3": ATTACKED_MNIST | {"coefficient": 8e-2, "l1": 1e-6, "eps": 4 / 3},
        "cifar10": LARGE | {"coefficient": 0.5, "l1": 1e-7},
        "cifar10-2/255": SMALL | {"coefficient": 4e-3, "l1": 3e-6},
        "cifar10-8/255": LARGE | {"coefficient": 0.5, "l1": 1e-7},
    },
)
@dataclass(frozen=True)
class MTLIBP(Expressive):
    """``c CE(-margins) + (1 - c) CE(f(x'), y)``: interval bounds as a second task.

    De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations" (ICLR 2024), eq. 8;
    `coefficient` is c, their alpha: 0 is adversarial training, 1 is IBP. The example x' is found in `steps` of `alpha`
    times the attack's radius, `attack_eps` times that of the bounds; see `Expressive`. Radius (`warmup`, `ramp`, `eps`,
    `schedule`), `kappa_start` and `kappa_end` (0 in the paper), `l1`, `penalty` and `interval_init`: as `ibp`'s.
    """

    def between(self, step: Step, logits: Tensor, margins: Tensor) -> Mapping[str, Term]:
        """Two terms."""
        return {
            "ce_adv": Term(ce(logits, step.q), 1 - self.coefficient),
            "ce_worst": Term(worst(step, margins), self.coefficient),
        }
