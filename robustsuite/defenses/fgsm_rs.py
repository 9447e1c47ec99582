"""Fast adversarial training: FGSM from a random start."""

from dataclasses import dataclass

from robustsuite.defenses.base import InnerSpec
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.registry import register_defense


@register_defense("fgsm_rs", kind="step", paper="Wong, Rice, Kolter 2020, arXiv:2001.03994, alg. 3", cost="2 passes")
@dataclass(frozen=True)
class FGSMRS(FGSMAT):
    """Cross-entropy on one step of `alpha` times eps from a uniform start in the ball, projected to the ball.

    Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training" (ICLR 2020). `alpha` is 1.25 in all
    their experiments: 10/255 at 8/255 (CIFAR-10), 0.375 at 0.3 (MNIST); beyond that, or at larger radii, it overfits
    catastrophically. They stop when PGD's accuracy on a training batch falls by 0.2; here the epoch is selected by
    PGD's accuracy on held-out examples. `bn_mode`: the network's mode while the perturbation is made; their code uses
    ``train``.
    """

    alpha: float = 1.25

    def spec(self) -> InnerSpec:
        """One step from a uniform start."""
        return InnerSpec("ce", 1, self.alpha, init="uniform", bn_mode=self.bn_mode)
