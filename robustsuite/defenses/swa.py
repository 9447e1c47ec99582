"""Stochastic weight averaging (SWA)."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from robustsuite.defenses.base import StepMethod
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "swa",
    kind="modifier",
    paper="Izmailov et al. 2018, arXiv:1803.05407, algorithm 1",
    cost="1 forward pass an epoch",
    defaults={"cifar10": {"start": 0.5}},
)
@dataclass(frozen=True)
class SWA(StepMethod):
    """What is validated, selected and saved is the mean of the weights at the ends of the epochs from `start` on.

    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima and Better Generalization"
    (UAI 2018), algorithm 1; with adversarial training: Chen et al., "Robust Overfitting May Be Mitigated by Properly
    Learned Smoothening" (ICLR 2021), from the first decay of the learning rate on. `start` is a share of the training;
    before it the weights are kept as they are. Batch-norm statistics of the mean are those of a clean pass over the
    epoch's batches, dropout off.
    """

    start: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise UsageError(f"swa needs start in [0,1], a share of the training, got {self.start}.")

    def setup(self, context: Context) -> None:
        """The mean starts at the initial weights."""
        context.add("swa", copy.deepcopy(context.module))

    def epoch_end(self, context: Context) -> None:
        """Take the epoch's weights into the mean."""
        mean, live = context.aux["swa"], context.module
        before = context.memory.get("averaged", 0)
        with torch.no_grad():
            for old, now in zip(mean.parameters(), live.parameters(), strict=True):
                old.lerp_(now, 1 / (before + 1))
            for old, now in zip(mean.buffers(), live.buffers(), strict=True):
                old.copy_(now)
        if context.progress >= self.start:
            context.memory["averaged"] = before + 1
            renormalise(mean, context)

    def keep(self, context: Context) -> nn.Module:
        """The mean."""
        return context.aux["swa"]


def renormalise(module: nn.Module, context: Context) -> None:
    """Recompute batch-norm statistics as the plain mean over the clean batches of the epoch that has ended."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.track_running_stats]
    if not norms:
        return
    usual = [part.momentum for part in norms]
    module.eval()
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
        part.train()
    for rows in context.batches(context.epoch):
        context.forward(context.data.x[rows.cpu()], module)
    for part, momentum in zip(norms, usual, strict=True):
        part.momentum = momentum
    module.eval()
