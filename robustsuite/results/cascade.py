"""Whether every stage of a run saw what those before it had left: a stage that is missing flatters the model."""

import numpy as np

from robustsuite.results.ledger import CLEAN, REST, Ledger, Outcome
from robustsuite.results.schema import Record, StagePlan

_DECIDED = (Outcome.BROKEN, Outcome.CERTIFIED)


def cascade_problems(record: Record, ledger: Ledger) -> list[str]:
    """In words, each stage that did not work on exactly the examples that the protocol gives it; none when all did.

    Stages of the cascade and flagged ones see whatever is undecided; those of a thinned-out tail a part of it.
    """
    protocol = record.request.protocol
    status = {s.name: s.status for s in record.stages}
    wrong = [f"the record has {list(status)}"] if list(status) != [CLEAN, *(s.name for s in protocol.stages)] else []
    undecided = ledger.outcome(CLEAN) == Outcome.SURVIVED
    for plan in sorted(protocol.stages, key=lambda s: _turn(s, protocol.tail_sample)):
        if status.get(plan.name) == "skipped":
            if plan.when == "always":
                wrong.append(f"{plan.name} was skipped, the protocol runs it always")
            continue
        names = [name for name in (plan.name, REST + plan.name) if name in ledger.stages]
        if not names:
            wrong.append(f"{plan.name} has no verdicts")
            continue
        seen = np.logical_or.reduce([ledger.outcome(name) != Outcome.SKIPPED for name in names])
        missed = 0 if _turn(plan, protocol.tail_sample) == 1 else int((undecided & ~seen).sum())
        others = int((seen & ~undecided).sum())
        if missed or others:
            wrong.append(f"{plan.name} missed {missed} undecided examples and saw {others} others")
        undecided = undecided & ~np.logical_or.reduce([np.isin(ledger.outcome(name), _DECIDED) for name in names])
    return wrong


def _turn(plan: StagePlan, tail_sample: int | None) -> int:
    """0: the cascade. 1: the thinned-out tail. 2: what a suspicion calls for."""
    return 2 if plan.when == "flagged" else int(plan.tail and tail_sample is not None)
