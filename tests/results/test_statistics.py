import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustsuite.errors import InputError
from robustsuite.results.statistics import interval, metric


@pytest.mark.parametrize("n", [1, 2, 17, 200, 10_000])
def test_agrees_with_scipy_binomtest(n):
    from scipy.stats import binomtest

    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(k, n).proportion_ci(0.95, method="exact")
        assert interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_published_values():
    assert [round(100 * end, 1) for end in interval(620, 1000)] == [58.9, 65.0]
    assert [round(100 * end, 1) for end in interval(6200, 10_000)] == [61.0, 63.0]
    # All of n: the lower end solves lo^n = 0.025.
    assert interval(200, 200) == (pytest.approx(0.025 ** (1 / 200)), 1.0)
    assert interval(0, 200) == (0.0, pytest.approx(1 - 0.025 ** (1 / 200)))


@given(st.integers(1, 3000), st.data())
def test_holds_the_share_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    lower, upper = interval(k, n)
    assert 0 <= lower <= k / n <= upper <= 1
    assert interval(n - k, n) == pytest.approx((1 - upper, 1 - lower), abs=1e-9)


def test_metric():
    made = metric("clean_accuracy", 3, 4)
    assert (made.name, made.value, made.n, made.ci95) == ("clean_accuracy", 0.75, 4, interval(3, 4))


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(InputError, match="0 <= k <= n"):
        interval(k, n)
