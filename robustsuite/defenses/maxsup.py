"""Max suppression: label smoothing's penalty on the largest logit instead of the label's."""

from collections.abc import Mapping
from dataclasses import dataclass

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "maxsup",
    kind="modifier",
    paper="Zhou et al. 2025, arXiv:2502.15798",
    cost="0 passes",
    defaults={"imagenet": {"alpha_end": 0.1}},
)
@dataclass(frozen=True)
class MaxSup(StepMethod):
    """Adds ``alpha (max_k z_k - mean_k z_k)`` of the logits z.

    Zhou, Li, Cheng, Yan, Dong, Fritz, Keuper, "MaxSup: Overcoming Representation Collapse in Label Smoothing" (NeurIPS
    2025): label smoothing is this with the label's logit, and so punishes less where the network errs. `alpha` grows
    linearly to `alpha_end` over the training: 0.1 to 0.2 in their code, 0.1 throughout for ImageNet. `view`: whose
    logits; by default ``adv`` where the base makes it, else ``clean``.
    """

    alpha: float = 0.1
    alpha_end: float = 0.2
    view: str = ""
    base = "standard"

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.alpha_end < 0:
            raise UsageError(f"maxsup needs alpha and alpha_end >= 0, got {self.alpha} and {self.alpha_end}.")

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The largest logit minus the mean one."""
        weight = self.alpha + (self.alpha_end - self.alpha) * step.progress
        if weight == 0:
            return {}
        logits = step.logits(self.view or ("adv" if "adv" in step.views else "clean"))
        return {"maxsup": Term(logits.amax(1) - logits.mean(1), weight)}
