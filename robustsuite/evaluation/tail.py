"""Tail sampling: the expensive stages on a random sample of the survivors."""

import numpy as np

from robustsuite.evaluation.cascade import Share, merge, run_blocks
from robustsuite.evaluation.ledger import LedgerStore, Note
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.sampling import sample
from robustsuite.evaluation.stages import Bench
from robustsuite.results.ledger import REST, Outcome, StageLedger

RUN_ALL_ABOVE = 0.01
"""Share of the sample that the tail may break before it is run on all survivors."""


def run_tail(
    bench: Bench, store: LedgerStore, stages: list[Stage], undecided: np.ndarray, count: int
) -> tuple[dict[str, StageLedger], dict[str, Note]]:
    """Run the tail on ``count`` of the undecided examples, and on the rest if it breaks more than 1 % of them.

    The sample has the smallest keyed numbers, so that it does not depend on order or shards. What the rest gets is
    kept under ``rest-<stage>``.
    """
    chosen = sample(bench, undecided, count, "tail")
    ledger, notes = _run(bench, store, stages, chosen, "")
    broken = sum(int((part.outcome == Outcome.BROKEN).sum()) for part in ledger.values())
    rest = undecided & ~chosen
    if rest.any() and broken > RUN_ALL_ABOVE * chosen.sum():
        more, more_notes = _run(bench, store, stages, rest, REST)
        ledger, notes = ledger | more, notes | more_notes
    return ledger, notes


def _run(
    bench: Bench, store: LedgerStore, stages: list[Stage], eligible: np.ndarray, prefix: str
) -> tuple[dict[str, StageLedger], dict[str, Note]]:
    ledger, notes, left = {}, {}, eligible.copy()
    for stage in stages:
        name = prefix + stage.name
        run_blocks(bench, stage, Share(store, left, prefix))
        ledger[name], notes[name] = merge(store, name)
        left &= ~np.isin(ledger[name].outcome, (Outcome.BROKEN, Outcome.CERTIFIED))
    return ledger, notes
