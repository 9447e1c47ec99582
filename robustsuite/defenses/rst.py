"""Robust self-training (RST): TRADES on pseudo-labelled examples as well."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import Step
from robustsuite.defenses.context import Context
from robustsuite.defenses.extra_data import Extra, append, load_extra
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

CHUNK = 500  # images at a time while labels are guessed


@register_defense(
    "rst",
    kind="step",
    paper="Carmon et al. 2019, arXiv:1905.13736, algorithm 1",
    cost="(steps + 2) / (1 - share) passes, and a standard training",
    defaults={"cifar10": {"beta": 6.0, "share": 0.5}},
)
@dataclass(frozen=True)
class RST(TRADES):
    """TRADES, with the answers of a standard network as the labels of unlabelled examples.

    Carmon, Raghunathan, Schmidt, Liang, Duchi, "Unlabeled Data Improves Adversarial Robustness" (NeurIPS 2019),
    algorithm 1, with as much weight on a pseudo-label as on a label. `share` of each batch is unlabelled (0.5).

    `unlabelled`: the data, as the command line names it, and its `split`; its labels are not looked at. They are added
    to each batch, so the recipe's batch size counts the labelled ones, and so does an epoch (theirs: 500 K of 80M Tiny
    Images, batches of 128 + 128). Without it, `share` of the training data goes on without its labels: nothing is
    added, and an epoch sees everything once. `labeller`: a checkpoint of the standard network; without one it is
    trained first, on the labelled examples, with the same recipe. `beta` as in TRADES.
    """

    share: float = 0.5
    unlabelled: str = ""
    split: str = ""
    labeller: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(f"rst needs share in [0,1), got {self.share}.")

    def setup(self, context: Context) -> None:
        """Guess the labels; a run that is taken up again has them in its checkpoint."""
        if self.share == 0:
            return
        if self.unlabelled:
            data = load_extra(context, self.unlabelled, self.split, labelled=False)
            guesses = torch.zeros_like(data.y)
            if not context.resuming:
                guesses = answers(context, self._labeller(context), data.x)
            context.add("extra", Extra(data.x, guesses))
        elif not context.resuming:
            self._hide(context)

    def _hide(self, context: Context) -> None:
        """Replace a part of the labels; it is drawn by example, and the labeller is trained on the rest."""
        order = context.noise.child("rst").at(context.data.ids).order()
        hidden, seen = order.split([int(self.share * len(order)), len(order) - int(self.share * len(order))])
        if len(hidden) == 0:
            return
        hidden = hidden[context.data.ids[hidden].argsort()]
        labeller = self._labeller(context, seen.sort().values)
        context.memory["ids"] = context.data.ids[hidden].to(context.device)
        context.memory["guesses"] = answers(context, labeller, context.data.x[hidden]).to(context.device)

    def _labeller(self, context: Context, rows: Tensor | None = None) -> nn.Module:
        if self.labeller:
            return context.load(self.labeller, "labeller")
        if rows is None:
            return context.train_other("standard", {})
        return context.train_other("standard", {}, context.data.take(rows, f"{context.data.subset}, the labelled part"))

    def data(self, step: Step) -> None:
        """Pseudo-labelled examples beside the batch, or pseudo-labels in place of labels."""
        if self.share == 0:
            return
        if self.unlabelled:
            extra = step.aux["extra"]
            assert isinstance(extra, Extra)
            append(step, extra, self.share)
        elif "ids" in step.memory:
            self._relabel(step)

    def _relabel(self, step: Step) -> None:
        ids, guesses = step.memory["ids"], step.memory["guesses"]
        place = torch.searchsorted(ids, step.noise.ids).clamp(max=len(ids) - 1)
        hidden = ids[place] == step.noise.ids
        y = guesses[place].where(hidden, step.y)
        q = nn.functional.one_hot(y, step.num_classes).to(step.q.dtype)
        step.rebatch(y=y, q=q.where(hidden.view(-1, 1), step.q))


def answers(context: Context, module: nn.Module, x: Tensor) -> Tensor:
    """The classes int64 ``[N]``, on the CPU, that a network names for images."""
    module.eval()
    return torch.cat([context.forward(part, module).argmax(1).cpu() for part in x.split(CHUNK)])
