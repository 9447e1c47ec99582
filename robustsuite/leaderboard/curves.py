"""Curves of an entry: certified accuracy against the radius, robust accuracy against eps."""

from collections.abc import Iterator

import numpy as np

from robustsuite.results.arithmetic import best_radii
from robustsuite.results.curve import AT, certified_at, curve_metrics
from robustsuite.results.ledger import CLEAN, Ledger, Outcome
from robustsuite.results.published import Curve, CurvePoint
from robustsuite.results.schema import Record
from robustsuite.results.statistics import interval
from robustsuite.threat import ABSOLUTE_SLACK, RELATIVE_SLACK, Eps

MINIMUM_NORM = frozenset({"fab", "fab-t", *(f"torchattacks:{name}" for name in ("CW", "DeepFool"))})
"""Attacks that look for the nearest adversarial example, so that their distances say something of smaller eps."""
_POINTS = 33


def ledger_curves(record: Record, ledger: Ledger) -> tuple[Curve, ...]:
    """All curves that the verdicts of a run give."""
    return (*_certified(record, ledger), *_robust(record, ledger))


def record_curves(record: Record) -> tuple[Curve, ...]:
    """The certified curve of a record alone, at the radii of its metrics."""
    points = [
        CurvePoint(x=float(Eps.parse(m.name.removeprefix(AT))), value=m.value, ci95=m.ci95)
        for m in record.metrics
        if m.name.startswith(AT)
    ]
    label = _certifiers(record)
    return (Curve(kind="certified", label=label, norm=record.request.threat.norm, points=tuple(points)),) * bool(points)


def _certified(record: Record, ledger: Ledger) -> Iterator[Curve]:
    """Of the best radius of each example, where certifiers came before attacks and proved more than eps."""
    ran, threat = [s for s in record.stages if s.name in ledger.stages], record.request.threat
    proofs = [ledger.part(s.name) for s in ran if s.kind == "certifier"]
    proved = best_radii(ledger.part(CLEAN), proofs)
    if not proofs or not curve_metrics(proved, threat.norm, threat.eps_float, [s.kind for s in ran]):
        return
    radii = np.linspace(0.0, max(proved[np.isfinite(proved)].max(initial=0.0), threat.eps_float), _POINTS)
    points = [_point(float(radius), certified_at(proved, float(radius)), len(proved)) for radius in radii]
    yield Curve(kind="certified", label=_certifiers(record), norm=threat.norm, points=tuple(points))


def _robust(record: Record, ledger: Ledger) -> Iterator[Curve]:
    """Of every minimum-norm attack that tried all examples that the model gets right: an upper bound up to eps.

    One that saw only what others had left says nothing of the examples that it never saw.
    """
    threat = record.request.threat
    right = ledger.outcome(CLEAN) == Outcome.SURVIVED
    for stage in record.stages:
        if stage.plugin not in MINIMUM_NORM or stage.name not in ledger.stages or threat.eps_float == 0:
            continue
        part = ledger.part(stage.name)
        if not np.isin(part.outcome[right], (Outcome.SURVIVED, Outcome.BROKEN)).all():
            continue
        broken = part.distance[right & (part.outcome == Outcome.BROKEN)]
        points = [
            _point(float(eps), int(right.sum() - (broken <= _within(float(eps))).sum()), len(right))
            for eps in np.linspace(0.0, threat.eps_float, _POINTS)
        ]
        yield Curve(kind="robust", label=stage.name, norm=threat.norm, points=tuple(points))


def _within(eps: float) -> float:
    """What still counts as inside: the evaluator's slack for float32."""
    return eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK


def _point(x: float, k: int, n: int) -> CurvePoint:
    return CurvePoint(x=x, value=k / n, ci95=interval(k, n))


def _certifiers(record: Record) -> str:
    done = [s.name for s in record.stages if s.kind == "certifier" and s.status == "done" and s.n_in]
    sigma = (record.request.model.wrap or {}).get("sigma")
    return " + ".join(done) + (f", sigma {sigma}" if isinstance(sigma, int | float) else "")
