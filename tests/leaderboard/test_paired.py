"""McNemar and Holm: closed forms, brute force, scipy."""

import itertools
import time
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from robustsuite.leaderboard.paired import MOST_ENTRIES, compare, comparisons, holm, mcnemar
from robustsuite.leaderboard.rows import record_row


def entry(make_record, key, kept):
    kept = np.asarray(kept, bool)
    row = record_row(make_record(n=len(kept), robust=int(kept.sum()), clean=len(kept), certified=None))
    return replace(row, key=key, kept=np.packbits(kept).tobytes())


def test_against_scipy_and_a_closed_form():
    b, c = (a.reshape(-1) for a in np.meshgrid(np.arange(13), np.arange(13)))
    expected = [binomtest(int(x), int(x + y)).pvalue if x + y else 1.0 for x, y in zip(b, c, strict=True)]
    np.testing.assert_allclose(mcnemar(b, c), expected, rtol=1e-12)
    # 5 against 0: both tails, 2 / 2^5
    assert mcnemar(np.array([5]), np.array([0]))[0] == pytest.approx(2 / 32, rel=1e-14)
    # 2 against 8: twice the sum of the three lowest of Binomial(10, 1/2)
    assert mcnemar(np.array([2]), np.array([8]))[0] == pytest.approx(2 * sum(comb(10, i) for i in range(3)) / 2**10)


def test_by_brute_force_over_all_outcomes():
    b, c = 3, 6
    flips = np.array(list(itertools.product((0, 1), repeat=b + c))).sum(1)
    extreme = np.abs(flips - (b + c) / 2) >= abs(b - (b + c) / 2)
    assert mcnemar(np.array([b]), np.array([c]))[0] == pytest.approx(extreme.mean(), rel=1e-12)


def test_large_counts_stay_exact():
    p = mcnemar(np.array([4000]), np.array([4500]))[0]
    assert p == pytest.approx(binomtest(4000, 8500).pvalue, rel=1e-9)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, made monotone
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.005])), [0.06, 0.03, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]


def test_holm_accepts_what_the_step_down_test_accepts():
    from robustsuite.results.family import holm as accepted

    p = np.random.default_rng(0).uniform(0, 0.05, 50) ** 2
    assert ((holm(p) <= 0.05) == accepted(p, 0.05)).all()


def test_the_two_by_two_table_and_who_is_better(make_record):
    n = 40
    a = entry(make_record, "a", [i < 30 for i in range(n)])
    b = entry(make_record, "b", [i < 15 for i in range(n)])
    c = entry(make_record, "c", [10 <= i < 26 for i in range(n)])
    ab, ac, bc = comparisons([a, b, c])
    assert (ab.both, ab.only_first, ab.only_second, ab.neither) == (15, 15, 0, 10)
    assert (ac.both, ac.only_first, ac.only_second, ac.neither) == (16, 14, 0, 10)
    assert (bc.both, bc.only_first, bc.only_second, bc.neither) == (5, 10, 11, 14)
    assert ab.p_value == pytest.approx(2 / 2**15)
    assert ab.adjusted == pytest.approx(3 * 2 / 2**15)
    assert ac.adjusted == pytest.approx(2 * 2 / 2**14)
    assert [t.better for t in (ab, ac, bc)] == ["a", "a", None]
    assert compare([a, b, c], "a", "c") == ac
    turned = compare([a, b, c], "c", "a")
    assert turned is not None
    assert (turned.only_first, turned.only_second, turned.better, turned.adjusted) == (0, 14, "a", ac.adjusted)
    assert compare([a, b, c], "a", "a") is None
    assert compare([a, b, c], "a", "nobody") is None


def test_only_ranked_entries_with_known_examples_take_part(make_record):
    a, b = (entry(make_record, key, [True] * 8) for key in "ab")
    assert comparisons([a, replace(b, rank=None)]) == ()
    assert comparisons([a, replace(b, kept=b"")]) == ()
    assert len(comparisons([a, b])) == 1


def test_three_hundred_entries_and_too_many(make_record):
    rng = np.random.default_rng(1)
    one = entry(make_record, "x", [True] * 1000)
    rows = [replace(one, key=str(i), kept=np.packbits(rng.random(1000) < 0.5).tobytes()) for i in range(300)]
    start = time.perf_counter()
    found = comparisons(rows)
    assert time.perf_counter() - start < 5
    assert len(found) == 300 * 299 // 2
    assert compare(rows, "17", "250") == next(c for c in found if (c.first, c.second) == ("17", "250"))
    many = [replace(one, key=str(i)) for i in range(MOST_ENTRIES + 1)]
    assert comparisons(many) == ()
    assert compare(many, "3", "400") is not None
