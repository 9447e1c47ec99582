"""Geometry-aware instance-reweighted adversarial training (GAIRAT)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "gairat",
    kind="modifier",
    paper="Zhang et al. 2021, arXiv:2010.01736",
    cost="0 passes",
    defaults={"cifar10": {"shift": -1.0, "start": 0.5}},
)
@dataclass(frozen=True)
class GAIRAT(StepMethod):
    """An example weighs the more, the sooner the attack crosses the decision boundary.

    Zhang, Zhu, Niu, Han, Sugiyama, Kankanhalli, "Geometry-aware Instance-reweighted Adversarial Training" (ICLR 2021):
    ``w = (1 + tanh(shift + 5 (1 - 2 kappa/K))) / 2``, of mean one in the batch, with kappa of the K iterates
    classified correctly. It multiplies the adversarial term. `shift` is their Lambda, -1 for CIFAR-10. `start` is the
    share of the training before it (their burn-in: 60 of 120 epochs), in which all weights are 1. Known to raise the
    accuracy under PGD far more than that under stronger attacks.
    """

    shift: float = -1.0
    start: float = 0.5
    batch_coupled: ClassVar[bool] = True
    weighs: ClassVar[tuple[str, ...]] = ("ce_adv", "bce", "kl")

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise UsageError(f"gairat needs start in [0,1], a share of the training, got {self.start}.")

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """The same, counting the correct iterates; a descent is no attack."""
        if spec.descend:
            return spec
        step.trace["iterates"] = max(spec.steps, 1)
        return replace(spec, count=True)

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """For the adversarial term, once `start` is over."""
        if step.progress < self.start:
            return {}
        if "kappa" not in step.trace:
            raise UsageError("gairat counts the iterates of an inner maximisation, and this base runs none.")
        share = step.trace["kappa"].to(step.x.dtype) / step.trace["iterates"]
        raw = (1 + (self.shift + 5 * (1 - 2 * share)).tanh()) / 2
        return {next(name for name in self.weighs if name in terms): raw / raw.mean()}
