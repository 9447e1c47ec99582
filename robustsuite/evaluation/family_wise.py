"""Certificates that all hold together, at one radius at a time, from the votes that a sealed run has kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustsuite.certification.base import Certifier, Votes
from robustsuite.errors import UsageError
from robustsuite.evaluation.protocol import make
from robustsuite.registry import CERTIFIERS
from robustsuite.results.curve import proved_radii
from robustsuite.results.family import bonferroni, holm
from robustsuite.results.ledger import CLEAN, Outcome, StageLedger, read_ledger
from robustsuite.results.schema import Metric, Record, StagePlan
from robustsuite.results.statistics import metric
from robustsuite.threat import ThreatModel

TOGETHER = "certified_together@"
RULES: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.bool_]]] = {"holm": holm, "bonferroni": bonferroni}


@dataclass(frozen=True)
class _Tests:
    """One stage's: the examples that it saw, their p-values ``[R,seen]``, and whether the class is the label."""

    seen: NDArray[np.int64]
    p_values: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Together:
    """Certified accuracy at radii: at each of them, on its own, all proofs are true but with `failure_probability`."""

    rule: str
    failure_probability: float
    tested: int
    """How many certificates share it, proved or not: every example that a probabilistic stage saw."""
    metrics: tuple[Metric, ...]


def certified_together(
    run_dir: Path, record: Record, radii: Sequence[float], rule: str = "holm", failure_probability: float = 0.001
) -> Together:
    """Holm's or Bonferroni's procedure over the certificates of a sealed run; proofs without doubt count as they are.

    Raises `UsageError` for an unknown rule, where no certifier ran, and where one has kept no votes.
    """
    if rule not in RULES or not 0 < failure_probability < 1:
        raise UsageError(
            f"a family is {' or '.join(RULES)} with a failure probability between 0 and 1, got '{rule}' with "
            f"{failure_probability}."
        )
    ran = {s.name: s.guarantee for s in record.stages if s.kind == "certifier" and s.status != "skipped"}
    if not ran:
        raise UsageError(f"{run_dir} has no certificates: no certifier ran.")
    ledger = read_ledger(run_dir)
    label, tests = ledger.arrays["label"], []
    proved = np.zeros((len(radii), len(label)), bool)
    for plan in record.request.protocol.stages:
        if plan.name not in ran:
            continue
        part = ledger.part(plan.name)
        if ran[plan.name].startswith("deterministic"):
            own = proved_radii(label, part.predicted, part.radius)
            proved |= (own > 0) & (own >= np.asarray(radii)[:, None])
        elif (part.outcome != Outcome.SKIPPED).any():
            tests.append(_tests(record, plan, part, label, radii))
    for i in range(len(radii) if tests else 0):
        accepted = RULES[rule](np.concatenate([t.p_values[i] for t in tests]), failure_probability)
        for t, mine in zip(tests, np.split(accepted, np.cumsum([len(t.seen) for t in tests[:-1]])), strict=True):
            proved[i, t.seen[mine & t.right]] = True
    counts = (proved & (ledger.outcome(CLEAN) != Outcome.BROKEN)).sum(1).tolist()
    metrics = tuple(metric(f"{TOGETHER}{r:g}", k, len(label)) for r, k in zip(radii, counts, strict=True))
    return Together(rule, failure_probability, sum(len(t.seen) for t in tests), metrics)


def _tests(
    record: Record, plan: StagePlan, part: StageLedger, label: NDArray[np.int64], radii: Sequence[float]
) -> _Tests:
    lacking = {f.name for f in fields(Votes)} - part.extra.keys()
    if lacking:
        raise UsageError(
            f"the ledger of '{plan.name}' holds no {', '.join(sorted(lacking))}: its certifier keeps none, or the run "
            "is from before they were kept."
        )
    if plan.plugin not in CERTIFIERS:
        raise UsageError(f"no certifier '{plan.plugin}' here; give --plugin FILE.")
    certifier: Certifier = make(CERTIFIERS.get(plan.plugin), plan.params)
    seen = np.flatnonzero(part.outcome != Outcome.SKIPPED)
    votes = Votes(**{f.name: part.extra[f.name][seen] for f in fields(Votes)})
    threat = ThreatModel.parse(f"{record.request.threat.norm}:{record.request.threat.eps}")
    p_values = certifier.p_values(votes, radii, threat, record.request.data.input_shape)
    return _Tests(seen, p_values.T, votes.chosen == label[seen])
