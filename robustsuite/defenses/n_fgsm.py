"""N-FGSM: FGSM from a stronger noise, not projected."""

from dataclasses import dataclass

from robustsuite.defenses.base import InnerSpec
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.registry import register_defense


@register_defense("n_fgsm", kind="step", paper="de Jorge et al. 2022, arXiv:2202.01181, alg. 1", cost="2 passes")
@dataclass(frozen=True)
class NFGSM(FGSMAT):
    """Cross-entropy on one step from noise in `k` times the ball, and nothing clips the sum to the ball.

    De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania, "Make Some Noise: Reliable and Efficient Single-Step
    Adversarial Training" (NeurIPS 2022). Trained examples lie up to ``(k + alpha) eps`` away; only the box is enforced.
    `k`: radius of the uniform noise in units of eps, 2 in the paper (0 is FGSM); `alpha`: the step in units of eps, 1
    in the paper. `bn_mode`: the network's mode while the perturbation is made; their code uses ``train``.
    """

    k: float = 2.0

    def spec(self) -> InnerSpec:
        """One step from noise of `k` times eps, without a projection."""
        return InnerSpec("ce", 1, self.alpha, init="uniform", init_eps=self.k, project=False, bn_mode=self.bn_mode)
