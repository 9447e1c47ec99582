"""From the quantities of several seeds to a verdict on a claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from robustsuite.errors import UsageError
from robustsuite.reproduction.claim import Expectation

Word = Literal["reproduced", "not reproduced at this scale", "contradicted"]
LEAST_SEEDS = 3
_LEVEL = 0.95
_ORDER: tuple[Word, ...] = ("contradicted", "not reproduced at this scale", "reproduced")


@dataclass(frozen=True)
class Comparison:
    """One expectation: what the seeds gave on both sides, and the mean difference with its 95 % interval."""

    expectation: Expectation
    method: tuple[float, ...]
    baseline: tuple[float, ...]
    difference: float
    interval: tuple[float, float]
    verdict: Word

    def __str__(self) -> str:
        name = self.expectation.quantity
        scale, unit = (1, "") if name == "collapsed" else (100, " %")
        sides = [", ".join(f"{scale * v:.1f}" for v in values) for values in (self.method, self.baseline)]
        low, high = (scale * end for end in self.interval)
        return (
            f"{name} {self.expectation.expected.replace('_', ' ')}: {sides[0]}{unit} beside {sides[1]}{unit}, "
            f"difference {scale * self.difference:+.1f} ({low:+.1f} to {high:+.1f}): {self.verdict}"
        )


def compare(
    expectation: Expectation, method: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]
) -> Comparison:
    """Compare a quantity seed by seed (the same seed on both sides draws the same batches and initial weights).

    The interval is Student's for the mean of the paired differences. `reproduced`: all of it lies on the claimed side;
    `contradicted`: all of it lies on the other one. Raises `UsageError` for fewer than three seeds.
    """
    if len(method) != len(baseline) or len(method) < LEAST_SEEDS:
        raise UsageError(f"a verdict needs the same {LEAST_SEEDS} seeds or more on both sides, got {len(method)}.")
    mine, theirs = (tuple(float(run[expectation.quantity]) for run in side) for side in (method, baseline))
    differences = np.array(mine) - np.array(theirs)
    mean, n = float(differences.mean()), len(differences)
    reach = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1)) * float(differences.std(ddof=1)) / n**0.5
    low, high = mean - reach, mean + reach
    return Comparison(expectation, mine, theirs, mean, (low, high), _word(expectation, low, high))


def overall(comparisons: Sequence[Comparison]) -> Word:
    """The claim holds where every expectation does, and is contradicted where one is."""
    found = {c.verdict for c in comparisons}
    return next(word for word in _ORDER if word in found)


def _word(expectation: Expectation, low: float, high: float) -> Word:
    if expectation.expected in ("lower", "not_higher"):
        low, high = -high, -low
    edge = -expectation.margin if expectation.expected.startswith("not") else 0.0
    # Equal on every seed is not better, and not worse.
    holds = low >= edge if expectation.expected.startswith("not") else low > edge
    if holds:
        return "reproduced"
    return "contradicted" if high < edge else "not reproduced at this scale"
