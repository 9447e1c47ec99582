"""Exact boundaries against enumeration of every path, one look, and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from robustsuite.certification.smoothing_exact import crossing_probability, failure_limits, ordered_p_values


def by_enumeration(times, limits, tail):
    """Over all 2^n paths."""
    crossed = 0.0
    for path in itertools.product((0, 1), repeat=int(times[-1])):
        failures = np.cumsum(path)[np.array(times) - 1]
        if (failures <= limits).any():
            crossed += tail ** sum(path) * (1 - tail) ** (len(path) - sum(path))
    return crossed


@pytest.mark.parametrize("tail", [0.02, 0.3, 0.5])
def test_crossing_is_that_of_all_paths(tail):
    times, limits = np.array([3, 5, 9, 12]), np.array([-1, 0, 1, 2])
    assert crossing_probability(times, limits, tail) == pytest.approx(by_enumeration(times, limits, tail), rel=1e-12)


@pytest.mark.parametrize(("n", "tail"), [(100, 0.4), (10_000, 0.01), (100_000, 0.0013)])
def test_one_look_is_the_binomial_test(n, tail):
    (limit,) = failure_limits(np.array([n]), tail, np.array([0.001]))
    assert stats.binom.cdf(limit, n, tail) <= 0.001 < stats.binom.cdf(limit + 1, n, tail)
    assert crossing_probability(np.array([n]), np.array([limit]), tail) == pytest.approx(
        stats.binom.cdf(limit, n, tail), rel=1e-9
    )


@pytest.mark.parametrize("tail", [0.5 - 1e-12, 0.2, 0.01, 1e-4])
def test_limits_use_their_budget_and_no_more(tail):
    times = np.unique(np.geomspace(20, 20_000, 25).astype(int))
    budgets = 0.001 * np.linspace(0.02, 1, len(times))
    limits = failure_limits(times, tail, budgets)
    for k in range(len(times)):
        assert crossing_probability(times[: k + 1], limits[: k + 1], tail) <= budgets[k]
    # One more failure allowed anywhere would be too many for the budget up to there.
    for k in range(len(times)):
        more = limits.copy()[: k + 1]
        more[k] += 1
        assert crossing_probability(times[: k + 1], more, tail) > budgets[k] * (1 - 1e-6)
    # What is refused at this tail is refused more often at a larger one: the test's size is its error at the edge.
    assert crossing_probability(times, limits, min(2 * tail, 0.9)) <= crossing_probability(times, limits, tail) / 2


def test_crossing_agrees_with_simulation():
    times, tail = np.array([50, 120, 300]), 0.3
    limits = failure_limits(times, tail, np.array([0.02, 0.04, 0.06]))
    generator = np.random.Generator(np.random.Philox(3))
    failures = np.cumsum(generator.binomial(np.diff(times, prepend=0), tail, (40_000, 3)), axis=1)
    crossed = int((failures <= limits).any(1).sum())
    assert stats.binomtest(crossed, 40_000, crossing_probability(times, limits, tail)).pvalue > 1e-4


def test_what_cannot_be_proved_has_no_limit():
    assert failure_limits(np.array([20, 100]), 0.0, np.array([0.0005, 0.001])).tolist() == [-1, -1]
    assert failure_limits(np.array([20, 100]), 1e-6, np.array([0.0005, 0.001])).tolist() == [-1, -1]


@pytest.mark.parametrize("tail", [0.1, 0.4])
def test_ordered_p_values_are_those_of_all_paths(tail):
    times, limits = np.array([3, 5, 9, 12]), np.array([-1, 0, 1, 2])
    for look, (low, p_values) in enumerate(ordered_p_values(times, limits, tail)):
        for failures in range(low, low + len(p_values)):
            if look == len(times) - 1 or failures <= limits[look]:
                further = np.append(limits[:look], failures)
                expected = by_enumeration(times[: look + 1], further, tail)
                assert p_values[failures - low] == pytest.approx(expected, rel=1e-6)
