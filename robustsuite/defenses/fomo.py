"""Forget to mitigate overfitting (FOMO): later layers forget a little, and relearn beside a stable model."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import kl
from robustsuite.errors import UsageError
from robustsuite.models.hooks import weighted_layers
from robustsuite.noise import Noise
from robustsuite.registry import register_defense


@register_defense(
    "fomo",
    kind="modifier",
    paper="Ramkumar, Zonooz, Arani 2024, arXiv:2402.11733",
    cost="1 pass and 2 forward passes",
    defaults={"cifar10": {"forget": 0.035, "every": 5}},
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class FOMO(StepMethod):
    """Now and then a share of the later layers' weights is drawn anew; what is kept is a stable model.

    Ramkumar, Zonooz, Arani, "The Effectiveness of Random Forgetting for Robust Generalization" (ICLR 2024).
    Reconstructed, as no code is released. Certain: after a warm-up, cycles of random forgetting in the later layers,
    relearning with a term that draws the network to the stable model, and a consolidation that moves the stable
    model, an exponential average of the weights, towards the network. `forget` 0.035 of each weight tensor and `every`
    5 epochs are the paper's. Provisional: `warmup`, the share of the training before the first cycle (the first decay
    of the learning rate); `later`, the share of the layers with weights that count as later (of a ResNet-18's 21 the
    last 11: stages 3 and 4 and the classifier); He initialisation; the consolidation, in which the average of `decay`
    0.999 moves in every step of the last `consolidate` epochs of a cycle (in a short training take a smaller decay);
    and the term, ``consistency (KL(s(x') || p(x')) + KL(s(x) || p(x)))``, the second part only with `on_clean`. During
    the warm-up the stable model is the network. What the optimiser remembers of forgotten weights is set to 0.
    """

    forget: float = 0.035
    every: int = 5
    warmup: float = 0.5
    later: float = 0.5
    decay: float = 0.999
    consolidate: int = 1
    consistency: float = 1.0
    on_clean: bool = True
    needs: ClassVar[tuple[str, ...]] = ("adv",)

    def __post_init__(self) -> None:
        shares = (self.forget, self.warmup, self.later, self.decay)
        if not all(0 <= share <= 1 for share in shares) or self.consistency < 0:
            raise UsageError(f"fomo needs forget, warmup, later, decay in [0,1] and consistency >= 0, got {self}.")
        if not 1 <= self.consolidate <= self.every:
            raise UsageError(f"fomo needs 1 <= consolidate <= every, got {self.consolidate} and {self.every}.")

    def setup(self, context: Context) -> None:
        """The stable model starts as the network."""
        context.add("fomo", copy.deepcopy(context.module))

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """None; while it relearns it notes what the stable model says."""
        if self.consistency and "since" in step.memory:
            names = ("adv", "clean") if self.on_clean else ("adv",)
            step.trace["fomo"] = {name: step.infer(step.views[name], step.aux["fomo"]) for name in names}
        return {}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The divergences from the stable model, while it relearns."""
        stable = step.trace.get("fomo", {})
        return {f"fomo_{name}": Term(kl(said, step.logits(name)), self.consistency) for name, said in stable.items()}

    def post_step(self, step: Step) -> None:
        """During consolidation, move the stable model."""
        if step.memory.get("since", -1) >= self.every - self.consolidate:
            follow(step.aux["fomo"], step.module, self.decay, "average")

    def epoch_end(self, context: Context) -> None:
        """In the warm-up, copy the network; after it, count epochs, and forget when a cycle begins."""
        memory = context.memory
        if "since" not in memory:
            follow(context.aux["fomo"], context.module, 0.0)
            if context.progress < self.warmup:
                return
            memory["since"] = self.every - 1
        memory["since"] += 1
        if memory["since"] == self.every and context.epoch < context.epochs:
            memory["since"] = 0
            noise = context.noise.child(f"fomo/{context.epoch}")
            forget(context.module, self.forget, self.later, noise, context.optimizer)

    def keep(self, context: Context) -> nn.Module:
        """The stable model."""
        return context.aux["fomo"]


def later_layers(module: nn.Module, later: float) -> list[str]:
    """Names of the last ``later`` of the layers with weights, rounded up."""
    names = weighted_layers(module)
    return names[len(names) - math.ceil(later * len(names)) :]


def forget(
    module: nn.Module, share: float, later: float, noise: Noise, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Draw ``share`` of the entries of each weight tensor anew, in the `later_layers`; their momentum becomes 0."""
    layers = dict(module.named_modules())
    for name in later_layers(module, later):
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        count = round(share * weight.numel())
        entries = torch.arange(weight.numel(), device=weight.device)
        chosen = noise.child(f"{name}/which").at(entries).order()[:count]
        fan = weight[0].numel()
        new = noise.child(f"{name}/value").at(chosen).normal(()) * math.sqrt(2 / fan)
        with torch.no_grad():
            weight.view(-1)[chosen] = new.to(weight.dtype)
            for known in (optimizer.state[weight] if optimizer is not None else {}).values():
                if isinstance(known, Tensor) and known.shape == weight.shape:
                    known.view(-1)[chosen] = 0
