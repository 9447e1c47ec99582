"""Means of numbers in [0,1] that are no counts, with an interval that holds whatever their distribution."""

import math
from collections.abc import Callable

from robustsuite.results.schema import Metric

EXPECTED = "expected_robust_accuracy"
"""The metric that is such a mean."""
_LOG_TAIL = math.log(2 / 0.05)


def bounded_interval(value: float, n: int) -> tuple[float, float]:
    """Conservative 95 % interval of the expectation of ``n`` independent numbers in [0,1] with the mean ``value``.

    All p with ``n KL(value || p) <= log(2 / 0.05)`` (Hoeffding 1963, theorem 1): at least as tight as the interval
    that goes by Hoeffding's name, and like it a function of mean and number alone, so that anyone can check it.
    """

    def excess(p: float) -> float:
        return n * _divergence(value, p) - _LOG_TAIL

    return _root(excess, value, 0.0), _root(excess, value, 1.0)


def mean_metric(name: str, total: int, each: int, n: int) -> Metric:
    """The mean over ``n`` examples of shares of ``each`` draws, ``total`` draws in all, with `bounded_interval`."""
    value = int(total) / (int(each) * int(n))
    return Metric(name=name, value=value, ci95=bounded_interval(value, int(n)), n=int(n))


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of Bernoulli distributions."""
    terms = [(a, b), (1 - a, 1 - b)]
    return sum(math.inf if q == 0 else p * math.log(p / q) for p, q in terms if p > 0)


def _root(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Where the excess changes its sign, rounded away from ``inside``; ``outside`` where it does not."""
    if excess(outside) <= 0:
        return outside
    for _ in range(100):
        middle = (inside + outside) / 2
        if excess(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return outside
