"""Generalist: a natural and a robust learner, trained apart and averaged."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "generalist", kind="step", paper="Wang, Wang 2023, arXiv:2303.13813, algorithm 1", cost="steps + 2 passes"
)
@dataclass(frozen=True)
class Generalist(StepMethod):
    """Adversarial training of one network, standard training of another; the mixture of their averages is kept.

    Wang, Wang, "Generalist: Decoupling Natural and Robust Generalization" (CVPR 2023), algorithm 1. Both learners have
    an exponential average of decay ``min(decay, (1 + s) / (10 + s))``; the mixture is ``g avg_robust + (1 - g)
    avg_natural``, where g runs through `knots` piecewise linearly, evenly over the training. From the share `restart`
    on (75 of 120 epochs) both learners start again from the mixture every `every` epochs. The robust learner has the
    recipe's learning rate and weight decay (theirs: 0.01 and 3.5e-3), the natural one `natural_lr` times that learning
    rate, and `natural_weight_decay`. Batch-norm statistics of the averages are the learners' own, and mixed alike.
    """

    steps: int = 10
    alpha: float = 0.25
    knots: tuple[float, ...] = (1.0, 1.0, 1.0, 0.4)
    restart: float = 0.625
    every: int = 5
    decay: float = 0.999
    natural_lr: float = 10.0
    natural_weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not self.knots or not all(0 <= knot <= 1 for knot in self.knots):
            raise UsageError(f"generalist needs knots in [0,1], at least one, got {self.knots}.")
        if not (0 <= self.restart <= 1 and 0 <= self.decay < 1 and self.every >= 1 and self.natural_lr >= 0):
            raise UsageError(f"generalist needs restart in [0,1], decay in [0,1), every >= 1, natural_lr >= 0: {self}.")
        object.__setattr__(self, "knots", tuple(self.knots))

    def setup(self, context: Context) -> None:
        """The natural learner, both averages, and the mixture."""
        natural = context.build("natural")
        context.add("natural", natural, trained=True, lr=self.natural_lr, weight_decay=self.natural_weight_decay)
        context.add("average_robust", copy.deepcopy(context.module))
        context.add("average_natural", copy.deepcopy(natural))
        context.add("mixture", copy.deepcopy(context.module))

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy of the robust learner."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The two learners' losses; no parameter is in both."""
        return {
            "ce_adv": Term(ce(step.logits("adv"), step.q)),
            "ce_natural": Term(ce(step.forward(step.x, step.aux["natural"]), step.q)),
        }

    def post_step(self, step: Step) -> None:
        """Move both averages."""
        since = step.memory.get("since", 0)
        step.memory["since"] = since + 1
        rate = min(self.decay, (1 + since) / (10 + since))
        follow(step.aux["average_robust"], step.module, rate)
        follow(step.aux["average_natural"], step.aux["natural"], rate)

    def epoch_end(self, context: Context) -> None:
        """Mix the averages, and send the learners out again from there when it is time."""
        aux = context.aux
        mixed = blend(aux["average_robust"], aux["average_natural"], self.share(context.progress))
        aux["mixture"].load_state_dict(mixed)
        if context.progress >= self.restart and context.epoch % self.every == 0:
            context.module.load_state_dict(mixed)
            aux["natural"].load_state_dict(mixed)

    def keep(self, context: Context) -> nn.Module:
        """The mixture."""
        return context.aux["mixture"]

    def share(self, progress: float) -> float:
        """The robust learner's share g at that share of the training."""
        place = progress * (len(self.knots) - 1)
        left = min(int(place), len(self.knots) - 1)
        right = min(left + 1, len(self.knots) - 1)
        return self.knots[left] + (place - left) * (self.knots[right] - self.knots[left])


def blend(first: nn.Module, second: nn.Module, share: float) -> dict[str, Tensor]:
    """``share first + (1 - share) second`` of all states of one shape; counts are the first's."""
    other = second.state_dict()
    return {
        name: share * tensor + (1 - share) * other[name] if tensor.is_floating_point() else tensor.clone()
        for name, tensor in first.state_dict().items()
    }
