"""Weighted energy adversarial training (WEAT)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "weat",
    kind="step",
    paper="Mirza et al. 2024, arXiv:2407.06315",
    cost="steps + 2 passes",
    fidelity="authors' code",
    defaults={"cifar10": {"beta": 6.0}},
)
@dataclass(frozen=True)
class WEAT(StepMethod):
    """``w CE(f(x), y) + beta w KL(p(x) || p(x'))`` with ``w = 1 / log(1 + exp|E(x)|)`` and ``E = -logsumexp z``.

    Mirza, Briglia, Beadini, Masi, "Shedding More Light on Robust Classifiers under the lens of Energy-based Models"
    (ECCV 2024): the larger the size of an example's energy, the less it weighs. x' maximises the divergence. `form`:
    ``nat`` as above, `beta` 6 in their code; ``adv`` takes the cross-entropy at x', `beta` 7. `energy`: the view whose
    energy gives w, ``clean`` in their code. The weights are not differentiated.
    """

    form: Literal["nat", "adv"] = "nat"
    beta: float = 6.0
    energy: Literal["clean", "adv"] = "clean"
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.beta < 0 or self.form not in ("nat", "adv") or self.energy not in ("clean", "adv"):
            raise UsageError(f"weat needs beta >= 0, form nat or adv and energy clean or adv, got {self}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence; not made where nothing needs it."""
        if self.beta == 0 and self.form == "nat" and self.energy == "clean":
            return {}
        return {"adv": step.maximise(InnerSpec("kl", self.steps, self.alpha, init="gauss"))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the clean or the adversarial view, and the divergence times beta."""
        name, view = ("ce", "clean") if self.form == "nat" else ("ce_adv", "adv")
        terms = {name: Term(ce(step.logits(view), step.q))}
        if self.beta:
            terms["kl"] = Term(kl(step.logits("clean"), step.logits("adv")), self.beta)
        return terms

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """One for both terms."""
        energy = -step.logits(self.energy).detach().logsumexp(1)
        weight = 1 / nn.functional.softplus(energy.abs())
        return {name: weight for name in ("ce", "ce_adv", "kl") if name in terms}
