"""The interval of a mean in [0,1], against its definition and by simulation."""

import math

import numpy as np
import pytest

from robustsuite.results.bounded import bounded_interval, mean_metric


@pytest.mark.parametrize(("value", "n"), [(0.5, 10), (0.03, 200), (0.97, 1000)])
def test_the_ends_have_the_stated_divergence(value, n):
    for p in bounded_interval(value, n):
        divergence = value * math.log(value / p) + (1 - value) * math.log((1 - value) / (1 - p))
        assert n * divergence == pytest.approx(math.log(40), rel=1e-9)


def test_a_mean_at_the_edge_has_its_closed_form():
    assert bounded_interval(0.0, 20) == (0.0, pytest.approx(1 - 40 ** (-1 / 20)))
    assert bounded_interval(1.0, 20) == (pytest.approx(40 ** (-1 / 20)), 1.0)


def test_it_lies_within_that_of_hoeffding():
    for value in (0.01, 0.3, 0.8):
        low, high = bounded_interval(value, 100)
        width = math.sqrt(math.log(40) / 200)
        assert value - width <= low < value < high <= value + width


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_it_covers_the_truth_even_for_the_widest_distribution(p):
    """Numbers that are 0 or 1 have the largest variance of all with one mean."""
    hits = np.random.default_rng(0).binomial(50, p, 2000)
    covered = [low <= p <= high for low, high in (bounded_interval(k / 50, 50) for k in hits)]
    assert np.mean(covered) >= 0.95


def test_the_metric_is_the_mean_of_shares():
    m = mean_metric("expected", 150, 100, 2)
    assert (m.value, m.n, m.ci95) == (0.75, 2, bounded_interval(0.75, 2))
