"""The loss terms of an epoch: added up, shown, and looked at before they do harm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustsuite.defenses.step import Step
from robustsuite.training.book import Book

Progress = Callable[[int, int, dict[str, Any]], None]
CHECK_EVERY = 16  # steps between looks at the loss on an accelerator, where each look makes the host wait


@dataclass
class Losses:
    """`sums` are the epoch's mean terms so far, over ``examples`` of them; ``total`` steps are the whole training."""

    book: Book
    progress: Progress | None
    total: int
    examples: int
    sums: dict[str, float] = field(default_factory=dict)
    _unchecked: list[tuple[int, int, int, list[str], Tensor, Tensor]] = field(default_factory=list)

    def note(self, number: int, step: Step, scalars: Mapping[str, Tensor], size: int) -> None:
        """The terms of step ``number`` (from 1), on a batch of ``size``; raises as `check`."""
        values = torch.stack([scalar.detach() for scalar in scalars.values()])
        if self.book.launch.world > 1:
            (values,) = step.reduce([values])
        self._unchecked.append((number, step.epoch, size, list(scalars), values, step.noise.ids))
        if self.book.launch.device.type == "cpu" or len(self._unchecked) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Look at the losses since the last look; raises `DivergedError` at the first that is not finite."""
        for number, epoch, size, names, tensor, ids in self._unchecked:
            values = dict(zip(names, tensor.tolist(), strict=True))
            if bad := not_finite(values):
                shown = ", ".join(str(int(i)) for i in ids[:8])
                raise self.book.diverged(
                    f"the loss is no longer finite at step {number} of {self.total} (epoch {epoch}): {bad}"
                    f", on the batch of {len(ids)} examples with the ids {shown}{', ...' if len(ids) > 8 else ''}"
                )
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * size / self.examples
            self.show(number, self.total, epoch, values)
        self._unchecked = []

    def show(self, done: int, total: int, epoch: int, values: Mapping[str, float]) -> None:
        """Tell whoever watches the training."""
        if self.progress is not None:
            info = {"epoch": epoch, "epochs": self.book.settings.epochs, "loss": sum(values.values()), **values}
            self.progress(done, total, info)


def not_finite(values: Mapping[str, float]) -> str:
    """The terms that are NaN or infinite, in words; empty when none is."""
    return ", ".join(f"term '{name}' is {value}" for name, value in values.items() if not abs(value) < float("inf"))
