"""Blocks in the making."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from robustsuite.evaluation.ledger import LedgerStore, Note, write_points
from robustsuite.results.ledger import Outcome, StageLedger


def left_path(store: LedgerStore, stage: str, block: int) -> Path:
    """Where the strongest points of a block's survivors lie, of a randomised model."""
    return store.run_dir / "left" / stage / f"{block:05d}.safetensors"


class Pending:
    """Rows come in any order, a block is written when its last one has come.

    ``votes``: count the wrong draws of a randomised model in ``extra["wrong"]``.
    """

    def __init__(
        self,
        store: LedgerStore,
        stage: str,
        blocks: Iterable[int],
        eligible: np.ndarray,
        slots: int,
        votes: bool = False,
    ) -> None:
        self.store, self.stage, self.slots, self.guarantee = store, stage, slots, ""
        self.parts: dict[int, StageLedger] = {}
        self.left: dict[int, dict[int, np.ndarray]] = {}
        self.open: dict[int, set[int]] = {}
        self.adversarials: dict[int, dict[int, np.ndarray]] = {}
        self.finished: dict[int, StageLedger] = {}
        for block in blocks:
            positions = store.blocks.positions(block)
            self.parts[block] = StageLedger.empty(len(positions))
            if votes:
                self.parts[block].extra["wrong"] = np.zeros(len(positions), np.int64)
            self.open[block] = {int(p) for p in positions if eligible[p]}
            self.adversarials[block], self.left[block] = {}, {}
        for block in [b for b, waiting in self.open.items() if not waiting]:
            self._close(block)

    @property
    def todo(self) -> list[int]:
        """Positions that are not finished, in order."""
        return [p for block in sorted(self.open) for p in sorted(self.open[block])]

    @property
    def by_block(self) -> list[list[int]]:
        """The same, a list for each block."""
        return [sorted(self.open[block]) for block in sorted(self.open)]

    def keep(self, position: int, x_adv: np.ndarray) -> None:
        """The strongest point for an example that survives."""
        self.left[position // self.store.blocks.size][position] = x_adv

    def row(self, position: int) -> tuple[StageLedger, int]:
        """The ledger of an example's block, and its row there."""
        block = position // self.store.blocks.size
        return self.parts[block], position - block * self.store.blocks.size

    def done(self, position: int, x_adv: np.ndarray | None = None) -> None:
        """The row is filled; ``x_adv`` is the example's adversarial one, if it is broken."""
        block = position // self.store.blocks.size
        if x_adv is not None:
            self.adversarials[block][position] = x_adv
        self.open[block].discard(position)
        if not self.open[block]:
            self._close(block)

    def fail(self, error: str) -> None:
        """Mark whatever is not finished as an error, and close its blocks."""
        for block in sorted(self.open):
            for position in self.open[block]:
                part, row = self.row(position)
                part.outcome[row] = Outcome.ERROR
            self._close(block, error)

    def _close(self, block: int, error: str = "") -> None:
        note = Note(error, self.guarantee, self.slots)
        if left := self.left.pop(block):
            write_points(left_path(self.store, self.stage, block), self.stage, block, left)
        self.store.write(self.stage, block, self.parts[block], self.adversarials.pop(block), note)
        self.finished[block] = self.parts.pop(block)
        self.open.pop(block)


class Shares:
    """The shares of one stage in one queue, each an open `Pending` of its own; no example is in two of them.

    A stage that goes over broken or certified examples as well fills the slots with them that it would run idle, and
    every example ends as it would in a pass of its own.
    """

    def __init__(self, parts: Sequence[Pending]) -> None:
        self.parts = parts
        self._owner = {position: part for part in parts for position in part.todo}

    @property
    def open(self) -> bool:
        """Whether anything is left to do."""
        return any(part.open for part in self.parts)

    @property
    def todo(self) -> list[int]:
        """Positions that are not finished, those of the first share first."""
        return [position for part in self.parts for position in part.todo]

    @property
    def slots(self) -> int:
        """Rows of a batch."""
        return self.parts[0].slots

    @slots.setter
    def slots(self, count: int) -> None:
        for part in self.parts:
            part.slots = count

    def of(self, position: int) -> Pending:
        """The share that an example belongs to."""
        return self._owner[position]

    def fail(self, error: str) -> None:
        """As `Pending.fail`, for all of them."""
        for part in self.parts:
            part.fail(error)
