"""Curves from verdicts, against counts by hand and the exact radii of a linear model."""

import numpy as np
import pytest

from robustsuite.leaderboard.curves import ledger_curves, record_curves
from robustsuite.results.ledger import Ledger, Outcome, StageLedger
from robustsuite.results.schema import StageResult
from robustsuite.results.statistics import interval, metric

SMOOTHING = StageResult(name="rs", kind="certifier", plugin="smoothing", status="done", n_in=4)
N = 4


def stage(outcome, **arrays):
    part = StageLedger.empty(N)
    part.outcome[:] = outcome
    for name, values in arrays.items():
        getattr(part, name)[:] = values
    return part


def ledger(**stages):
    arrays = {f"{name}/{key}": value for name, part in stages.items() for key, value in part.arrays().items()}
    return Ledger(list(stages), arrays | {"label": np.zeros(N, np.int64)})


CLEAN = stage([Outcome.SURVIVED] * 3 + [Outcome.BROKEN], predicted=[0, 0, 0, 1])


def with_stage(make_record, name, plugin, kind="attack"):
    done = StageResult(name=name, kind=kind, plugin=plugin, status="done", n_in=3)
    return make_record(n=N, robust=1, clean=3, certified=None, certifiers=(done,), threat="L2:0.5")


def test_a_robust_curve_by_hand(make_record):
    fab = stage([2, 2, 1, 0], distance=[0.125, 0.5, 0, 0])
    (curve,) = ledger_curves(with_stage(make_record, "fab-t", "fab-t"), ledger(**{"clean": CLEAN, "fab-t": fab}))
    values = {point.x: point.value for point in curve.points}
    assert (curve.kind, curve.label, curve.norm) == ("robust", "fab-t", "L2")
    assert len(values) == 33
    assert (values[0.0], values[0.109375], values[0.125], values[0.484375], values[0.5]) == (0.75, 0.75, 0.5, 0.5, 0.25)
    assert curve.points[0].ci95 == interval(3, 4)
    assert [p.value for p in curve.points] == sorted(values.values(), reverse=True)


@pytest.mark.parametrize(
    ("plugin", "outcome"),
    [
        ("apgd-ce", [2, 2, 1, 0]),  # bounded: its distances are near eps whatever the model
        ("fab-t", [2, 0, 1, 0]),  # an example that was decided before it
        ("fab-t", [2, 4, 1, 0]),  # an example that it failed on
    ],
)
def test_no_robust_curve_from_what_says_nothing_of_smaller_eps(make_record, plugin, outcome):
    found = ledger(clean=CLEAN, it=stage(outcome, distance=[0.1, 0.2, 0, 0]))
    assert ledger_curves(with_stage(make_record, "it", plugin), found) == ()


def test_a_certified_curve_by_hand(make_record):
    proofs = stage([3, 1, 1, 0], radius=[1.0, 0.25, 0.9, 0], predicted=[0, 0, 1, -1])  # the third proves another class
    record = make_record(n=N, clean=3, robust=None, certified=1, certifiers=(SMOOTHING,), threat="L2:0.5")
    (curve,) = ledger_curves(record, ledger(clean=CLEAN, rs=proofs))
    values = {point.x: point.value for point in curve.points}
    assert (curve.kind, curve.label) == ("certified", "rs")
    assert (values[0.0], values[0.25], values[0.28125], values[1.0]) == (0.5, 0.5, 0.25, 0.25)


def test_certificates_at_eps_alone_are_no_curve(make_record):
    proofs = stage([3, 1, 1, 0], radius=[0.5, 0, 0, 0], predicted=[0, 0, 0, -1])
    record = make_record(n=N, clean=3, robust=None, certified=1, certifiers=(SMOOTHING,), threat="L2:0.5")
    assert ledger_curves(record, ledger(clean=CLEAN, rs=proofs)) == ()


def test_a_record_alone_gives_the_grid(make_record):
    record = make_record(threat="L2:0.5", wrap={"name": "smoothing", "sigma": 0.25}, certifiers=(SMOOTHING,))
    more = (metric("certified_accuracy@0", 60, 100), metric("certified_accuracy@0.25", 40, 100))
    (curve,) = record_curves(record.model_copy(update={"metrics": (*record.metrics, *more)}))
    assert [(p.x, p.value) for p in curve.points] == [(0.0, 0.6), (0.25, 0.4)]
    assert curve.label == "rs, sigma 0.25"
    assert record_curves(record) == ()


def test_fab_on_a_linear_model_never_falls_below_the_truth(toy, tmp_path):
    """The exact radius of every example is known, so that the true curve is; FAB's distances can only lie above it."""
    from robustsuite.results.ledger import read_ledger
    from robustsuite.results.records import load_record

    problem = toy.problem
    run = problem.run(tmp_path, ["fab"], eps="0.05").directory
    (curve,) = ledger_curves(load_record(run), read_ledger(run))
    truth = [(problem.radius.numpy() > point.x * (1 + 1e-5)).mean() for point in curve.points]
    assert all(point.value >= true - 1e-9 for point, true in zip(curve.points, truth, strict=True))
    assert curve.points[0].value == 1.0
    assert curve.points[-1].value == pytest.approx(truth[-1])
