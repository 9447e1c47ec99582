"""The numbers of a record as counts over its ledger, and whether a record's numbers are those."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from robustsuite.results.bounded import EXPECTED, mean_metric
from robustsuite.results.cascade import cascade_problems
from robustsuite.results.curve import AT, curve_metrics, proved_radii
from robustsuite.results.ledger import AUDIT, CLEAN, OVERLAP, REST, VERDICT, Ledger, Outcome, StageLedger
from robustsuite.results.schema import Metric, Record
from robustsuite.results.statistics import metric
from robustsuite.results.tail import summary

_INTERVAL_SLACK = 1e-6


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: whether it held, in numbers and words."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'FAILED'}  {self.name}: {self.detail}"


def arithmetic(record: Record, ledger: Ledger) -> Iterator[Finding]:
    """Every number of a record, counted again from its ledger."""
    n = record.request.data.n
    if ledger.run_key not in ("", record.run_key):
        yield Finding("verdicts", False, f"they are those of run {ledger.run_key}, not of {record.run_key}")
    counts = {
        "clean_accuracy": n - int((ledger.outcome("clean") == Outcome.BROKEN).sum()),
        "robust_accuracy": n - int(ledger.any(Outcome.BROKEN).sum()),
        "certified_accuracy": int(ledger.any(Outcome.CERTIFIED).sum()),
    }
    curve = [m for m in record.metrics if m.name.startswith(AT)]
    if curve:
        again = _curve_metrics(record, ledger)
        held = len(curve) == len(again) and all(map(_equal, curve, again))
        detail = "follows" if held else "does not follow"
        yield Finding("certified curve", held, f"{detail} from the ledger at {len(curve)} radii")
    votes = _vote_metrics(record, ledger)
    for m in record.metrics:
        if m in curve:
            continue
        again = metric(m.name, counts[m.name], n) if m.name in counts else votes.get(m.name)
        ok = again is not None and _equal(m, again)
        detail = f"{m.value:.4f} follows from the ledger" if ok else f"record {m.value:.4f}, ledger {again}"
        yield Finding(m.name, ok, detail)
    yield from _contributions(record, ledger)
    missed = cascade_problems(record, ledger)
    yield Finding("cascade", not missed, "; ".join(missed) or "every stage saw what those before it had left")
    both = int((ledger.any(Outcome.BROKEN) & ledger.any(Outcome.CERTIFIED)).sum())
    yield Finding("bracket", both == 0, f"{both} examples are both certified and broken")


def _equal(stated: Metric, again: Metric) -> bool:
    """The same share of the same number; scipy's releases differ in the last digits of an interval's ends."""
    ends = zip(stated.ci95, again.ci95, strict=True)
    same = (stated.name, stated.value, stated.n) == (again.name, again.value, again.n)
    return same and all(abs(a - b) <= _INTERVAL_SLACK for a, b in ends)


def _vote_metrics(record: Record, ledger: Ledger) -> dict[str, Metric]:
    """The three verdicts on a randomised model, counted again from the wrong draws."""
    if VERDICT not in ledger.stages or record.request.model.draws is None:
        return {}
    made = verdict_metrics(ledger.part(VERDICT), ledger.part(CLEAN), record.request.model.draws)
    return {m.name: m for m in made}


def _curve_metrics(record: Record, ledger: Ledger) -> list[Metric]:
    """Certified accuracy on the grid, counted again from the radii."""
    ran, threat = [s for s in record.stages if s.name in ledger.stages], record.request.threat
    proofs = [ledger.part(s.name) for s in ran if s.kind == "certifier"]
    return curve_metrics(best_radii(ledger.part(CLEAN), proofs), threat.norm, threat.eps_float, [s.kind for s in ran])


def _contributions(record: Record, ledger: Ledger) -> Iterator[Finding]:
    """What each stage is said to have done, alone or on a sample, counted again."""
    parts = {name: ledger.part(name) for name in ledger.stages}
    outcomes = {name: part.outcome for name, part in parts.items()}
    wrong = [
        f"{s.name}: {what} is {count}, the record says {getattr(s, what)}"
        for s in record.stages
        for what, count in stage_counts(s.name, parts).items()
        if count != getattr(s, what)
    ]
    attacks = [s.name for s in record.stages if s.n_exclusive is not None]
    for name, count in exclusive_counts(outcomes, attacks).items():
        said = next(s.n_exclusive for s in record.stages if s.name == name)
        if count != said:
            wrong.append(f"{name} alone broke {count}, the record says {said}")
    yield Finding("contributions", not wrong, "; ".join(wrong) or f"{len(record.stages)} stages counted again")
    if record.tail:
        plans = record.request.protocol.stages
        tail = [s.name for s in plans if s.tail]
        cascade = [CLEAN, *(s.name for s in plans if not s.tail and s.when != "flagged")]
        decided = np.logical_or.reduce(
            [np.isin(outcomes[name], (Outcome.BROKEN, Outcome.CERTIFIED)) for name in cascade if name in outcomes]
        )
        again = summary(outcomes, tail, ~decided)
        yield Finding("tail", again == record.tail, f"at least {again.lower:.4f} follows from the sample")


def best_radii(clean: StageLedger, proofs: Iterable[StageLedger]) -> np.ndarray:
    """The largest radius that a certifier proved for each example's label, float64 ``[N]``.

    Only examples that are right on the clean image come to a certifier, so the clean class is their label.
    """
    best = np.zeros(len(clean.outcome))
    for part in proofs:
        best = np.maximum(best, proved_radii(clean.predicted, part.predicted, part.radius))
    return np.where(clean.outcome == Outcome.SURVIVED, best, 0.0)


def stage_counts(name: str, ledger: Mapping[str, StageLedger]) -> dict[str, int]:
    """The counts of a `StageResult` by their names, from all parts of the ledger.

    A sample and the rest count together. What the stage did to examples that were decided already (audit, overlap)
    counts apart, but for its errors.
    """
    own = [ledger[key] for key in (name, REST + name) if key in ledger]
    audit, overlap = ([ledger[key]] if (key := prefix + name) in ledger else [] for prefix in (AUDIT, OVERLAP))

    def count(parts: list[StageLedger], outcome: Outcome) -> int:
        return sum(int((part.outcome == outcome).sum()) for part in parts)

    def seen(parts: list[StageLedger]) -> int:
        return sum(len(part.outcome) for part in parts) - count(parts, Outcome.SKIPPED)

    return {
        "n_in": seen(own),
        "n_audited": seen(audit),
        "n_overlapped": seen(overlap),
        "n_broken": count(own, Outcome.BROKEN),
        "n_certified": count(own, Outcome.CERTIFIED),
        "n_error": count([*own, *audit, *overlap], Outcome.ERROR),
        "n_refused": sum(int(part.refused.sum()) for part in own),
        "forward": sum(int(part.forward.sum()) for part in own),
        "backward": sum(int(part.backward.sum()) for part in own),
        "extra_forward": sum(int(part.forward.sum()) for part in [*audit, *overlap]),
        "extra_backward": sum(int(part.backward.sum()) for part in [*audit, *overlap]),
    }


def exclusive_counts(outcomes: dict[str, np.ndarray], attacks: list[str]) -> dict[str, int]:
    """Examples that each attack broke and no other attack did, from the outcomes by ledger name.

    Those before it in the protocol have tried and failed; those behind tried what it broke in the overlap.
    """
    again = [outcomes[OVERLAP + name] == Outcome.BROKEN for name in attacks[1:]]
    twice = np.logical_or.reduce(again) if again else np.zeros(1, bool)
    return {name: int(((outcomes[name] == Outcome.BROKEN) & ~twice).sum()) for name in attacks}


def verdict_metrics(verdict: StageLedger, clean: StageLedger, draws: int) -> list[Metric]:
    """The three accuracies over all examples, ``draws`` (K) draws each, of which w are wrong.

    Expected: the mean of 1 - w/K. Majority: w <= K/2. Worst of K: w = 0. An example that most draws get wrong on the
    clean image is a clean error and counts as broken in the last two; in the expectation it counts as it is, since a
    zero there would be below the truth.
    """
    wrong, n = verdict.extra["wrong"], len(verdict.outcome)
    right = clean.outcome != Outcome.BROKEN
    return [
        mean_metric(EXPECTED, int((draws - wrong).sum()), draws, n),
        metric("majority_robust_accuracy", int((right & (2 * wrong <= draws)).sum()), n),
        metric("worst_of_k_robust_accuracy", int((right & (wrong == 0)).sum()), n),
    ]
