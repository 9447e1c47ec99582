"""Numbers counted again: other releases of scipy agree, other numbers do not."""

import pytest

from robustsuite.results.arithmetic import _equal, stage_counts
from robustsuite.results.ledger import StageLedger
from robustsuite.results.statistics import metric


def test_the_last_digits_of_an_interval_are_the_library_s():
    stated = metric("robust_accuracy", 60, 100)
    lower, upper = stated.ci95
    assert _equal(stated.model_copy(update={"ci95": (lower + 1e-12, upper - 1e-12)}), stated)
    for change in ({"ci95": (lower + 1e-5, upper)}, {"value": 0.61}, {"n": 101}, {"name": "clean_accuracy"}):
        assert not _equal(stated.model_copy(update=change), stated)


def stage(outcome, forward):
    part = StageLedger.empty(len(outcome))
    part.outcome[:] = outcome
    part.forward[:] = forward
    return part


def test_a_stage_s_counts_by_hand():
    ledger = {
        "square": stage([0, 1, 2, 4, 0, 0], [0, 5, 2, 1, 0, 0]),
        "rest-square": stage([0, 0, 0, 0, 2, 3], [0, 0, 0, 0, 4, 4]),
        "audit-square": stage([1, 0, 0, 0, 0, 4], [7, 0, 0, 0, 0, 7]),
        "overlap-square": stage([2, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0]),
    }
    assert {name: count for name, count in stage_counts("square", ledger).items() if count} == {
        "n_in": 5,
        "n_audited": 2,
        "n_overlapped": 1,
        "n_broken": 2,
        "n_certified": 1,
        "n_error": 2,
        "forward": 16,
        "extra_forward": 23,
    }
    assert set(stage_counts("absent", ledger).values()) == {0}


@pytest.mark.parametrize("name", ["clean_accuracy", "robust_accuracy"])
def test_equal_metrics_are_equal(name):
    assert _equal(metric(name, 3, 7), metric(name, 3, 7))
