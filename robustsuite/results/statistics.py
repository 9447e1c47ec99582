"""Exact intervals of shares, and the metrics made of them."""

from robustsuite.errors import InputError
from robustsuite.results.schema import Metric

_TAIL = 0.025  # of a 95 % interval


def interval(k: int, n: int, tail: float = _TAIL) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of ``k`` out of ``n`` (Clopper and Pearson, 1934); 95 % where not said.

    The ends are quantiles of Beta(k, n-k+1) and Beta(k+1, n-k). ``tail`` is the probability left at
    each of them. Raises `InputError` unless 0 <= k <= n and n >= 1.
    """
    from scipy.special import betaincinv

    if n < 1 or not 0 <= k <= n:
        raise InputError(f"a share needs 0 <= k <= n and at least one example, got k={k}, n={n}.")
    lower = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    upper = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return lower, upper


def metric(name: str, k: int, n: int) -> Metric:
    """The metric ``k / n`` with its interval; raises `InputError` as `interval` does."""
    ci95 = interval(int(k), int(n))
    return Metric(name=name, value=int(k) / int(n), ci95=ci95, n=int(n))
