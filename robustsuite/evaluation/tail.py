"""Tail sampling: the expensive stages on a random sample of the survivors, and what that says of the whole protocol."""

import numpy as np

from robustsuite.evaluation.cascade import Share, merge, run_blocks
from robustsuite.evaluation.ledger import AUDIT, REST, LedgerStore, Note, Outcome, StageLedger
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.sampling import sample
from robustsuite.evaluation.stages import Bench
from robustsuite.results.schema import TailPart

RUN_ALL_ABOVE = 0.01
"""Share of the sample that the tail may break before it is run on all survivors."""
_CONFIDENCE = 0.95


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


def summary(outcomes: dict[str, np.ndarray], tail: list[str], before: np.ndarray) -> TailPart:
    """What the sample says; ``outcomes`` by ledger name, ``before`` bool ``[N]`` the survivors of the other stages.

    What those stages have certified counts as robust.
    """
    n = len(before)
    rest_run = any(REST + name in outcomes for name in tail)
    names = [name for stage in tail for name in (stage, REST + stage) if name in outcomes]
    seen = np.logical_or.reduce([outcomes[name] != Outcome.SKIPPED for name in names])
    broken = np.logical_or.reduce([outcomes[name] == Outcome.BROKEN for name in names])
    proofs = [part == Outcome.CERTIFIED for name, part in outcomes.items() if not name.startswith(AUDIT)]
    proved = int((np.logical_or.reduce(proofs) & ~before).sum())
    survivors, sampled, hits = int(before.sum()), int(seen.sum()), int(broken.sum())
    upper = (proved + survivors - hits) / n
    lower = (proved + survivors - most(survivors, sampled, hits)) / n
    estimate = (proved + survivors * (1 - hits / sampled)) / n if sampled else upper
    return TailPart(
        survivors=survivors,
        sampled=sampled,
        broken=hits,
        rest_run=rest_run,
        estimate=min(max(estimate, lower), upper),
        lower=lower,
        upper=upper,
    )


def most(survivors: int, sampled: int, broken: int) -> int:
    """The most breakable examples among the survivors that the sample is compatible with, at 95 % (one-sided).

    The largest K for which a draw of ``sampled`` without replacement shows ``broken`` or fewer of them with a
    probability above 5 %: the exact hypergeometric limit. With everything sampled it is ``broken`` itself.
    """
    from scipy.stats import hypergeom

    low, high = broken, survivors - (sampled - broken)
    while low < high:  # P(X <= broken) falls as K grows
        middle = (low + high + 1) // 2
        if hypergeom.cdf(broken, survivors, middle, sampled) > 1 - _CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return low
