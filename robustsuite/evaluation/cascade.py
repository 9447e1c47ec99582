"""The stages of a run one after the other, each on what is still undecided, over the blocks of one shard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from robustsuite.errors import IncompleteError
from robustsuite.evaluation.ledger import CLEAN, OVERLAP, LedgerStore, Note, Outcome, StageLedger
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench, run_clean, run_stage
from robustsuite.results.schema import ProtocolPart


@dataclass(frozen=True)
class Parts:
    """The stages of a protocol by when they run."""

    cascade: list[Stage]
    """In order, on what is still undecided."""
    tail: list[Stage]
    """Afterwards, on a sample; empty where the tail is not thinned out and belongs to the cascade."""
    flagged: list[Stage]
    """Last, when a suspicion was raised."""

    @classmethod
    def of(cls, stages: list[Stage], protocol: ProtocolPart) -> "Parts":
        """Sort the stages; the order inside a part is the protocol's."""
        flagged = [s for s in stages if s.plan.when == "flagged"]
        planned = [s for s in stages if s.plan.when != "flagged"]
        tail = [s for s in planned if s.plan.tail and protocol.tail_sample]
        return cls([s for s in planned if s not in tail], tail, flagged)


class Cascade:
    """Clean predictions, the cascade, and what later attacks make of what earlier ones broke."""

    def __init__(self, bench: Bench, store: LedgerStore, stages: list[Stage], protocol: ProtocolPart) -> None:
        self.bench, self.store = bench, store
        self.stages = Parts.of(stages, protocol).cascade
        self.attacks = overlapping(stages, protocol)
        self.names = ledger_names(stages, protocol)

    def missing(self) -> int:
        """Blocks of the whole run that lack a stage."""
        blocks = range(self.store.blocks.count)
        return sum(any(not self.store.path(name, block).exists() for name in self.names) for block in blocks)

    def run(self) -> None:
        """Everything that the blocks of this shard still lack; finished blocks are read back."""
        clean = np.zeros(self.store.blocks.n, np.uint8)
        for block, part in self._clean().items():
            positions = self.store.blocks.positions(block)
            clean[positions] = part.outcome
            self.bench.clean_logits[positions] = torch.from_numpy(part.extra["logits"].copy())
        undecided, broken_by = clean == Outcome.SURVIVED, {}
        for stage in self.stages:
            outcome = self._stage(stage, undecided)
            broken_by[stage.name] = outcome == Outcome.BROKEN
            undecided &= (outcome != Outcome.BROKEN) & (outcome != Outcome.CERTIFIED)
        self._overlaps(broken_by)

    def _overlaps(self, broken_by: dict[str, np.ndarray]) -> None:
        """Each attack on what those before it broke, until a second attack has broken it too."""
        alone = np.zeros(self.store.blocks.n, bool)
        for earlier, later in zip(self.attacks, self.attacks[1:], strict=False):
            alone |= broken_by[earlier.name]
            alone &= self._stage(later, alone, OVERLAP) != Outcome.BROKEN

    def _clean(self) -> dict[int, StageLedger]:
        mine = self.store.blocks.mine()
        found = {block: part[0] for block in mine if (part := self.store.read(CLEAN, block))}
        todo = [block for block in mine if block not in found]
        if todo:
            with timed(self.bench, self.store, CLEAN):
                found |= run_clean(self.bench, self.store, todo)
        return found

    def _stage(self, stage: Stage, eligible: np.ndarray, prefix: str = "") -> np.ndarray:
        """The outcomes of a stage, uint8 ``[N]``; 0 outside of the shard."""
        outcome = np.zeros(self.store.blocks.n, np.uint8)
        for block, part in run_blocks(self.bench, self.store, stage, eligible, prefix).items():
            outcome[self.store.blocks.positions(block)] = part.outcome
        return outcome


def overlapping(stages: list[Stage], protocol: ProtocolPart) -> list[Stage]:
    """The attacks whose exclusive contributions are found out.

    None where the tail is thinned out: what it would have broken, nobody knows.
    """
    if not protocol.contributions or protocol.tail_sample:
        return []
    return [s for s in Parts.of(stages, protocol).cascade if s.attacks]


def ledger_names(stages: list[Stage], protocol: ProtocolPart) -> list[str]:
    """What the shards leave in the ledger, by name."""
    again = [OVERLAP + s.name for s in overlapping(stages, protocol)[1:]]
    return [CLEAN, *[s.name for s in Parts.of(stages, protocol).cascade], *again]


def run_blocks(
    bench: Bench, store: LedgerStore, stage: Stage, eligible: np.ndarray, prefix: str = ""
) -> dict[int, StageLedger]:
    """A stage on the eligible examples of the store's shard; blocks that are there are read back instead."""
    name = prefix + stage.name
    found = {block: part[0] for block in store.blocks.mine() if (part := store.read(name, block))}
    todo = [block for block in store.blocks.mine() if block not in found]
    if todo:
        with timed(bench, store, name):
            found |= run_stage(bench, store, stage, todo, eligible, prefix)
    return found


def merge(store: LedgerStore, name: str) -> tuple[StageLedger, Note]:
    """All blocks of a stage as one; raises `IncompleteError` when one is missing."""
    whole, joined = StageLedger.empty(store.blocks.n), None
    for block in range(store.blocks.count):
        found = store.read(name, block)
        if found is None:
            raise IncompleteError(f"block {block} of stage '{name}' is missing or damaged; run the command again.")
        part, note = found
        whole.put(store.blocks.positions(block), part)
        joined = note if joined is None else _joined(joined, note)
    assert joined is not None
    return whole, joined


def _joined(a: Note, b: Note) -> Note:
    slots = min(a.slots, b.slots)
    return replace(a, error=a.error or b.error, guarantee=a.guarantee or b.guarantee, slots=slots)


@contextmanager
def timed(bench: Bench, store: LedgerStore, stage: str) -> Iterator[None]:
    """Write down what a stage took, beside the ledger: times never mix with outcomes."""
    passes, start = bench.model.passes, time.perf_counter()
    before = passes.forward, passes.backward
    yield
    line = {
        "stage": stage,
        "seconds": time.perf_counter() - start,
        "forward": passes.forward - before[0],
        "backward": passes.backward - before[1],
    }
    with suppress(OSError), (store.run_dir / "events.jsonl").open("a") as file:  # no outcome hangs on it
        file.write(json.dumps(line) + "\n")
