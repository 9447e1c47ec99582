"""FGSM adversarial training: one step, no random start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

Mode = Literal["eval", "train_frozen", "train"]


@register_defense("fgsm_at", kind="step", paper="Goodfellow et al. 2015, arXiv:1412.6572, section 6", cost="2 passes")
@dataclass(frozen=True)
class FGSMAT(StepMethod):
    """Cross-entropy on ``x + alpha eps sign(g)``: the known-bad baseline that overfits catastrophically.

    Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015), without their share of
    clean examples. At the usual radii training first goes well, and then, within an epoch, the network learns to fool
    FGSM, and PGD breaks it all (Wong, Rice, Kolter, ICLR 2020); the training's monitors show it. `alpha`: the step in
    units of eps, 1 in the paper. `bn_mode`: the network's mode while the perturbation is made; the published codes of
    one-step methods use ``train``.
    """

    alpha: float = 1.0
    bn_mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.bn_mode not in get_args(Mode):
            raise UsageError(f"bn_mode must be one of {', '.join(get_args(Mode))}, got '{self.bn_mode}'.")
        self.spec()

    def spec(self) -> InnerSpec:
        """One step from x itself."""
        return InnerSpec("ce", 1, self.alpha, init="zero", bn_mode=self.bn_mode)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: one step of size `alpha`."""
        return {"adv": step.maximise(self.spec())}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x'), y)``."""
        return {"ce_adv": Term(ce(step.logits("adv"), step.q))}
