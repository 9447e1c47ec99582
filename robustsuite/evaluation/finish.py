"""What is left when every shard is done: the sampled tail, the suspicions and what they call for, the audit."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from robustsuite.evaluation.audit import audit, with_outcome
from robustsuite.evaluation.cascade import Parts, Share, ledger_names, merge, run_blocks
from robustsuite.evaluation.ledger import LedgerStore, Note
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.suspicion import SUSPICIOUS, suspicions
from robustsuite.evaluation.tail import run_tail
from robustsuite.evaluation.verdicts import run_verdicts
from robustsuite.results.ledger import CLEAN, REST, VERDICT, Outcome, StageLedger
from robustsuite.results.schema import Flag, Request, TailPart
from robustsuite.results.tail import summary

UNFLAGGED = "no suspicion was raised"


@dataclass
class Findings:
    """The whole ledger of a run and what was learnt beside it."""

    ledger: dict[str, StageLedger]
    notes: dict[str, Note]
    flags: list[Flag]
    tail: TailPart | None
    skipped: dict[str, str]
    """Stages that were not run, with the reason."""

    @property
    def undecided(self) -> np.ndarray:
        """Examples that no stage has decided, bool ``[N]``."""
        return ~(with_outcome(self.ledger, Outcome.BROKEN) | with_outcome(self.ledger, Outcome.CERTIFIED))

    def add(self, ledger: dict[str, StageLedger], notes: dict[str, Note]) -> None:
        """Take in more stages."""
        self.ledger |= ledger
        self.notes |= notes


def finish(
    bench: Bench,
    store: LedgerStore,
    stages: list[Stage],
    request: Request,
    checks: list[Flag],
    skipped: dict[str, str],
) -> Findings:
    """Read the cascade of all shards back and run what needs all of it. Idempotent: a kill only repeats it."""
    parts = Parts.of(stages, request.protocol)
    found = Findings({}, {}, list(checks), None, dict(skipped))
    for name in ledger_names(stages, request.protocol):
        part, note = merge(store, name)
        found.add({name: part}, {name: note})
    bench.clean_logits = torch.from_numpy(found.ledger[CLEAN].extra["logits"].copy())
    if parts.tail:
        before = found.undecided
        found.add(*run_tail(bench, store, parts.tail, before, request.protocol.tail_sample or 1))
        outcomes = {name: part.outcome for name, part in found.ledger.items()}
        found.tail = summary(outcomes, [s.name for s in parts.tail], before)
    found.flags += suspicions(bench, [*parts.cascade, *parts.tail], found.ledger)
    suspicious = any(f.raised and f.name in SUSPICIOUS for f in found.flags)
    _follow_up(bench, store, parts.flagged, found, suspicious)
    ran = [s for s in (*parts.cascade, *parts.tail, *parts.flagged) if s.name not in found.skipped]
    if bench.votes:
        attacks = [name for s in ran for name in (s.name, REST + s.name) if s.attacks and name in found.ledger]
        found.ledger[VERDICT] = run_verdicts(bench, store, attacks)
    audits, errors = audit(bench, store, ran, found.ledger, suspicious)
    found.ledger |= audits
    found.notes |= {name: replace(found.notes[name], error=error) for name, error in errors.items()}
    return found


def _follow_up(bench: Bench, store: LedgerStore, flagged: list[Stage], found: Findings, suspicious: bool) -> None:
    """Suspicions call for more attacks on what is left."""
    for stage in flagged:
        if suspicious:
            run_blocks(bench, stage, Share(store, found.undecided))
            part, note = merge(store, stage.name)
            found.add({stage.name: part}, {stage.name: note})
        else:
            found.skipped[stage.name] = UNFLAGGED
