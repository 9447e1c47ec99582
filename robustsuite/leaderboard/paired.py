"""Exact McNemar tests between entries on the same examples, corrected for the number of comparisons."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robustsuite.leaderboard.row import Comparison, Row

MOST_ENTRIES = 400
"""Up to so many entries all pairs are kept with a board: 79,800 of them. `compare` makes one of any number."""


def comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """All pairs of ranked entries whose examples are known, in the rows' order; none for more than `MOST_ENTRIES`."""
    entries = comparable(rows)
    if not 1 < len(entries) <= MOST_ENTRIES:
        return ()
    counts, p_values, adjusted = _tested(entries)
    first, second = np.triu_indices(len(entries), 1)
    return tuple(
        _comparison(entries[i], entries[j], count, float(p), float(a))
        for i, j, count, p, a in zip(first, second, counts.tolist(), p_values, adjusted, strict=True)
    )


def compare(rows: Sequence[Row], first: str, second: str) -> Comparison | None:
    """The pair of the entries with these keys, corrected for all pairs of ``rows``; None where it cannot be tested."""
    entries = _same_examples([row for row in rows if row.kept])
    place = {row.key: i for i, row in enumerate(entries)}
    if first == second or first not in place or second not in place:
        return None
    i, j = place[first], place[second]
    counts, p_values, adjusted = _tested(entries)
    low, high = min(i, j), max(i, j)
    at = low * (2 * len(entries) - low - 1) // 2 + high - low - 1  # of the pair in np.triu_indices
    both, only_low, only_high, neither = counts[at].tolist()
    swapped = (both, only_low, only_high, neither) if i < j else (both, only_high, only_low, neither)
    return _comparison(entries[i], entries[j], swapped, float(p_values[at]), float(adjusted[at]))


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Ranked entries of which it is known which examples are kept."""
    return _same_examples([row for row in rows if row.rank is not None and row.kept])


def _same_examples(rows: Sequence[Row]) -> list[Row]:
    """Those with as many examples as the first: who claims another number has not evaluated the same."""
    return [row for row in rows if row.n == rows[0].n]


def mcnemar(only_first: NDArray[np.int64], only_second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Two-sided exact p-values (McNemar 1947): the discordant examples fall to either side like a fair coin.

    Twice the smaller tail of Binomial(b + c, 1/2), at most 1; 1 where nothing is discordant.
    """
    from scipy.stats import binom

    pairs, inverse = np.unique(np.stack([only_first, only_second]), axis=1, return_inverse=True)
    p = np.minimum(2 * binom.cdf(pairs.min(0), pairs.sum(0), 0.5), 1.0)
    return p[inverse.reshape(-1)]


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjusted p-values (Holm 1979): the k-th smallest of m times m - k + 1, made monotone, at most 1."""
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(m, 0, -1)), 1.0)
    return adjusted


def _tested(entries: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of all pairs as `np.triu_indices`: both, only first, only second, neither; p-values, and adjusted ones."""
    n = entries[0].n
    kept = np.stack([np.unpackbits(np.frombuffer(row.kept, np.uint8), count=n) for row in entries]).astype(np.float64)
    first, second = np.triu_indices(len(entries), 1)
    both = np.rint(kept @ kept.T)[first, second].astype(np.int64)
    each = kept.sum(1).astype(np.int64)
    only_first, only_second = each[first] - both, each[second] - both
    counts = np.stack([both, only_first, only_second, n - both - only_first - only_second], axis=1)
    p_values = mcnemar(only_first, only_second)
    return counts, p_values, holm(p_values)


def _comparison(first: Row, second: Row, counts: Sequence[int], p_value: float, adjusted: float) -> Comparison:
    both, only_first, only_second, neither = counts
    return Comparison(first.key, second.key, both, only_first, only_second, neither, p_value, adjusted)
