"""The audit: a sample of what is decided is tried the other way round, so that no order of stages hides an error."""

import numpy as np

from robustsuite.evaluation.cascade import Share, merge, run_blocks
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.sampling import audited, auditing
from robustsuite.evaluation.stages import Bench
from robustsuite.results.ledger import AUDIT, CLEAN, REST, Outcome, StageLedger
from robustsuite.results.schema import Contradiction
from robustsuite.threat import ABSOLUTE_SLACK, RELATIVE_SLACK


def audit(
    bench: Bench, store: LedgerStore, stages: list[Stage], ledger: dict[str, StageLedger], suspicious: bool
) -> tuple[dict[str, StageLedger], dict[str, str]]:
    """Attack a keyed sample of the certified examples, and try to certify one of the broken.

    Certify-first would otherwise hide an unsound certifier, and attack-first an unsound one that comes last. Every
    stage tries a sample of what was decided ahead of it (``stages``: in the order in which they ran), for what is left
    undecided comes to it anyway; which stages do is `auditing`'s word. What the cascade has tried already is read
    back. Returns the new ledgers by name, and errors by stage.
    """
    broken, certified = (np.zeros(store.blocks.n, bool) for _ in range(2))
    whole = LedgerStore(store.run_dir, Blocks(store.blocks.n, store.blocks.n))
    asked = auditing(stages, suspicious)
    out, errors = {}, {}
    for stage in stages:
        chosen = audited(bench, certified if stage.attacks else broken)
        if stage in asked and chosen.any():
            run_blocks(bench, stage, Share(whole, chosen, AUDIT))
            out[AUDIT + stage.name], note = merge(whole, AUDIT + stage.name)
            if note.error:
                errors[stage.name] = note.error
        for name in (stage.name, REST + stage.name):
            if name in ledger:
                broken |= ledger[name].outcome == Outcome.BROKEN
                certified |= ledger[name].outcome == Outcome.CERTIFIED
    return out, errors


def with_outcome(ledger: dict[str, StageLedger], outcome: Outcome) -> np.ndarray:
    """Examples that some stage gave this outcome, bool ``[N]``."""
    return np.logical_or.reduce([part.outcome == outcome for part in ledger.values()])


def contradictions(stages: list[Stage], ledger: dict[str, StageLedger]) -> list[Contradiction]:
    """Examples that one stage certified and another broke, at eps or nearer than a radius that was proved for them."""
    found = []
    certifiers = [name for s in stages if not s.attacks for name in (s.name, AUDIT + s.name) if name in ledger]
    for certifying in certifiers:
        proof = ledger[certifying]
        right = proof.predicted == ledger[CLEAN].predicted  # no clean error comes to a certifier
        for breaking, part in ledger.items():
            inside = proof.radius > part.distance * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
            claimed = (proof.outcome == Outcome.CERTIFIED) | (right & inside)
            for i in np.flatnonzero(claimed & (part.outcome == Outcome.BROKEN)):
                found.append(
                    Contradiction(
                        example=int(i),
                        certified_by=certifying,
                        radius=float(proof.radius[i]),
                        broken_by=breaking,
                        distance=float(part.distance[i]),
                    )
                )
    return found
