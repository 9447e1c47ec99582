"""The numbers of a record, each a count over the ledger."""

from robustsuite.evaluation.audit import with_outcome
from robustsuite.evaluation.cascade import overlapping
from robustsuite.evaluation.finish import Findings
from robustsuite.evaluation.ledger import Note
from robustsuite.evaluation.protocol import Stage
from robustsuite.results.arithmetic import best_radii, exclusive_counts, stage_counts, verdict_metrics
from robustsuite.results.curve import curve_metrics
from robustsuite.results.ledger import CLEAN, REST, VERDICT, Outcome, StageLedger
from robustsuite.results.schema import Metric, Request, StageResult
from robustsuite.results.statistics import metric
from robustsuite.threat import ThreatModel


def metrics(
    stages: list[Stage], ledger: dict[str, StageLedger], threat: ThreatModel, draws: int | None = None
) -> list[Metric]:
    """Clean, robust and certified accuracy, as far as the protocol says something of them.

    Where a certifier gave radii of its own, certified accuracy on the norm's grid as well.
    """
    clean = ledger[CLEAN].outcome != Outcome.BROKEN
    n = len(clean)
    out = [metric("clean_accuracy", int(clean.sum()), n)]
    if any(s.attacks for s in stages):
        out.append(metric("robust_accuracy", n - int(with_outcome(ledger, Outcome.BROKEN).sum()), n))
    if any(not s.attacks for s in stages):
        out.append(metric("certified_accuracy", int(with_outcome(ledger, Outcome.CERTIFIED).sum()), n))
        proofs = [ledger[s.name] for s in stages if not s.attacks and s.name in ledger]
        kinds = [s.plan.kind for s in stages if s.name in ledger]
        out += curve_metrics(best_radii(ledger[CLEAN], proofs), threat.norm, threat.radius, kinds)
    if VERDICT in ledger:
        assert draws is not None
        out += verdict_metrics(ledger[VERDICT], ledger[CLEAN], draws)
    return out


def stage_results(request: Request, stages: list[Stage], found: Findings) -> list[StageResult]:
    """What every stage of the protocol did, the clean pass first."""
    exclusive = exclusive_counts(
        {name: part.outcome for name, part in found.ledger.items()},
        [s.name for s in overlapping(stages, request.protocol)],
    )
    out = [_result(CLEAN, CLEAN, CLEAN, found)]
    for plan in request.protocol.stages:
        if plan.name in found.skipped:
            body = {"name": plan.name, "kind": plan.kind, "plugin": plan.plugin, "status": "skipped"}
            out.append(StageResult.model_validate({**body, "reason": found.skipped[plan.name]}))
            continue
        result = _result(plan.name, plan.kind, plan.plugin, found)
        out.append(result.model_copy(update={"n_exclusive": exclusive.get(plan.name)}))
    return out


def _result(name: str, kind: str, plugin: str, found: Findings) -> StageResult:
    counts, note = stage_counts(name, found.ledger), _note(name, found)
    body = {
        "name": name,
        "kind": kind,
        "plugin": plugin,
        "status": "error" if counts["n_error"] else "done",
        "reason": note.error,
        "guarantee": note.guarantee,
        "slots": note.slots,
    }
    return StageResult.model_validate(body | counts)


def _note(name: str, found: Findings) -> Note:
    """A stage's note; that of the rest where a sampled stage went on to it."""
    note = found.notes[name]
    return note if note.error else found.notes.get(REST + name, note)
