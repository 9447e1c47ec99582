"""The stages of a run one after the other, each on what is still undecided, over the blocks of one shard."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from robustsuite.errors import IncompleteError
from robustsuite.evaluation.events import note
from robustsuite.evaluation.ledger import Blocks, LedgerStore, Note
from robustsuite.evaluation.pending import Pending
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.sampling import audited, auditing
from robustsuite.evaluation.stages import Bench, run_clean, run_shares
from robustsuite.results.ledger import AUDIT, CLEAN, OVERLAP, Outcome, StageLedger
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


@dataclass(frozen=True)
class Share:
    """Examples (bool ``[N]``) that a stage is to work on, and where they are kept: under ``prefix`` and its name."""

    store: LedgerStore
    eligible: np.ndarray
    prefix: str = ""


class Cascade:
    """Clean predictions, and every stage on what is still undecided.

    With those examples go, in the same slots, what attacks before it broke and no other has (for the exclusive
    contributions), and its audit, where this shard is the whole run.
    """

    def __init__(self, bench: Bench, store: LedgerStore, stages: list[Stage], protocol: ProtocolPart) -> None:
        self.bench, self.store = bench, store
        self.stages = Parts.of(stages, protocol).cascade
        self.overlapping = overlapping(stages, protocol)
        self.auditing = auditing(stages, suspicious=False)
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
        undecided = clean == Outcome.SURVIVED
        broken, certified, alone = (np.zeros(self.store.blocks.n, bool) for _ in range(3))
        for stage in self.stages:
            shares = [Share(self.store, undecided)]
            if stage in self.overlapping[1:]:
                shares.append(Share(self.store, alone, OVERLAP))
            shares += self._audit(stage, certified if stage.attacks else broken)
            outcome, again = self._stage(stage, shares)
            alone &= again != Outcome.BROKEN
            alone |= outcome == Outcome.BROKEN
            broken |= outcome == Outcome.BROKEN
            certified |= outcome == Outcome.CERTIFIED
            undecided = undecided & ~(broken | certified)

    def _audit(self, stage: Stage, decided: np.ndarray) -> list[Share]:
        """The stage's audit where that can be known; the sealing does it otherwise."""
        n, (_, shards) = self.store.blocks.n, self.store.blocks.shard
        chosen = audited(self.bench, decided)
        if shards > 1 or stage not in self.auditing or not chosen.any():
            return []
        return [Share(LedgerStore(self.store.run_dir, Blocks(n, n)), chosen, AUDIT)]

    def _clean(self) -> dict[int, StageLedger]:
        mine = self.store.blocks.mine()
        found = {block: part[0] for block in mine if (part := self.store.read(CLEAN, block))}
        todo = [block for block in mine if block not in found]
        if todo:
            with timed(self.bench, self.store, CLEAN):
                found |= run_clean(self.bench, self.store, todo)
        return found

    def _stage(self, stage: Stage, shares: list[Share]) -> tuple[np.ndarray, np.ndarray]:
        """The outcomes of a stage and of its overlap, uint8 ``[N]``; 0 outside of the shard."""
        outcomes = {prefix: np.zeros(self.store.blocks.n, np.uint8) for prefix in ("", OVERLAP, AUDIT)}
        for share, found in zip(shares, run_blocks(self.bench, stage, *shares), strict=True):
            for block, part in found.items():
                outcomes[share.prefix][share.store.blocks.positions(block)] = part.outcome
        return outcomes[""], outcomes[OVERLAP]


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


def run_blocks(bench: Bench, stage: Stage, *shares: Share) -> list[dict[int, StageLedger]]:
    """A stage on all shares in one queue, and the blocks of each; blocks that are there are read back instead.

    The time of them all is that of the first that has anything left to do.
    """
    found, parts = [], []
    for share in shares:
        store, name = share.store, share.prefix + stage.name
        found.append({block: part[0] for block in store.blocks.mine() if (part := store.read(name, block))})
        todo = [block for block in store.blocks.mine() if block not in found[-1]]
        parts.append(Pending(store, name, todo, share.eligible, bench.slots, bench.votes))
    if names := [part.stage for part in parts if part.open]:
        with timed(bench, shares[0].store, names[0]):
            run_shares(bench, stage, parts)
    return [there | part.finished for there, part in zip(found, parts, strict=True)]


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
    took = {
        "seconds": time.perf_counter() - start,
        "forward": passes.forward - before[0],
        "backward": passes.backward - before[1],
    }
    note(store.run_dir, {"stage": stage, **took})
