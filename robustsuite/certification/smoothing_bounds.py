"""Bounds of a vote's probability that hold at every look at once, so that counting may end at any of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from robustsuite.certification.smoothing_exact import failure_limits, ordered_p_values
from robustsuite.models.smoothed import Counts, proportion_upper_tail
from robustsuite.results.family import vote_p_values

Floats = NDArray[np.float64]
_LAST = 0.9  # of the failure probability, for the last of Clopper-Pearson looks
_LAST_EXACT = 0.5  # the same of an exact test, where the looks before are worth more
_BISECTIONS = 45


def geometric(n: int, ratio: float, first: int) -> Counts:
    """Sample counts that end at ``n`` and shrink by ``ratio`` towards ``first``, ascending."""
    times = [n]
    while times[-1] / ratio > first:
        times.append(int(times[-1] / ratio))
    return np.array(times[::-1], np.int64)


class LookBounds(ABC):
    """Upper bounds of ``1 - p``, for the probability p of a vote, at the sample counts ``times``.

    With probability at least ``1 - failure_probability`` all of them hold together, whatever p is: the smallest one so
    far is a bound too, and it stays one under any rule of when to stop.
    """

    def __init__(self, times: Counts) -> None:
        self.times = times

    @abstractmethod
    def tails(self, votes: Counts, look: int) -> Floats:
        """The bounds for ``votes`` among the first ``times[look]`` samples; 1 where nothing is known."""

    @abstractmethod
    def p_values(self, votes: Counts, look: int, tails: Floats) -> Floats:
        """For ``votes`` at a look where counting ended, p-values ``[N,R]`` against ``1 - p`` being each of ``tails``.

        They are right for any of the stopping rules that `tails` allows, and as small as that look alone makes them.
        """

    def votes_needed(self, tails: Floats) -> Counts:
        """The fewest votes at the last look whose bound is at or below each of ``tails``; n + 1 where none is."""
        n = int(self.times[-1])
        low, high = np.zeros(len(tails), np.int64), np.full(len(tails), n + 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = self.tails(np.minimum(middle, n), len(self.times) - 1) <= tails
            enough |= middle > n
            high, low = np.where(enough, middle, high), np.where(enough, low, np.minimum(middle + 1, high))
        return high


class ClopperPearsonLooks(LookBounds):
    """A Clopper-Pearson bound at every look, each with its share of the failure probability (Boole's inequality).

    The last look has 0.9 of it: a radius there is hardly smaller than with all. One look is Cohen's CERTIFY.
    """

    def __init__(self, times: Counts, failure_probability: float) -> None:
        super().__init__(times)
        early = len(times) - 1
        shares = [(1 - _LAST) / early] * early + [_LAST] if early else [1.0]
        self.failures = [failure_probability * share for share in shares]

    def tails(self, votes: Counts, look: int) -> Floats:
        """`proportion_upper_tail` at the look's share."""
        return proportion_upper_tail(votes, int(self.times[look]), self.failures[look])

    def p_values(self, votes: Counts, look: int, tails: Floats) -> Floats:
        """Those of the binomial test over the look's share of the whole."""
        share = self.failures[look] / sum(self.failures)
        return np.minimum(vote_p_values(votes[:, None], int(self.times[look]), tails) / share, 1.0)


class BettingLooks(LookBounds):
    """A confidence sequence: valid at every sample, so at any looks (Waudby-Smith and Ramdas 2024; Voracek 2024).

    Against each p0 the likelihood ratio of a mixture over ``p > p0``, with Jeffreys's prior cut off at p0, is a
    non-negative supermartingale with mean at most 1 when the probability is p0 or less. By Ville's inequality it
    exceeds ``1 / failure_probability`` with at most this probability: the threshold is ``log(1 / failure_probability)``
    and no smaller, because one side is bounded. The bound is the smallest p0 that is not refuted.
    """

    def __init__(self, times: Counts, failure_probability: float) -> None:
        super().__init__(times)
        self.threshold = -math.log(failure_probability)

    def tails(self, votes: Counts, look: int) -> Floats:
        """By bisection in ``log(1 - p0)``, from the safe side."""
        n = int(self.times[look])
        votes, back = np.unique(votes, return_inverse=True)
        low = np.log(np.maximum(n - votes, 1e-9 / n) / n)
        high = np.zeros(len(votes))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            refuted = log_wealth(votes, n, np.exp(middle)) >= self.threshold
            high, low = np.where(refuted, middle, high), np.where(refuted, low, middle)
        return np.exp(high)[back]

    def p_values(self, votes: Counts, look: int, tails: Floats) -> Floats:
        """One over the wealth (Ville's inequality)."""
        n = int(self.times[look])
        return np.exp(np.minimum(-log_wealth(votes[:, None], n, tails), 0.0))


def log_wealth(votes: Counts, n: int, tail: Floats) -> Floats:
    """Log of the mixture's likelihood ratio against ``p0 = 1 - tail``, for ``votes`` of ``n`` samples."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mixture = betaln(votes + 0.5, n - votes + 0.5) + np.log(betainc(n - votes + 0.5, votes + 0.5, tail))
        prior = betaln(0.5, 0.5) + np.log(betainc(0.5, 0.5, tail))
        null = votes * np.log1p(-tail) + (n - votes) * np.log(tail)
        return np.nan_to_num(mixture - prior - null, nan=-np.inf)


class ExactTest(LookBounds):
    """Whether ``1 - p`` is at most one given ``tail``: a group-sequential binomial test with exact boundaries.

    `failure_limits` finds the boundaries, which use the failure probability up although looks depend on each other.
    Half of it is spread over all looks evenly and the last one has the rest.
    """

    def __init__(self, times: Counts, failure_probability: float, tail: float) -> None:
        super().__init__(times)
        spent = (1 - _LAST_EXACT) * np.arange(1, len(times) + 1) / len(times)
        spent[-1] = 1.0
        self.tail = tail
        self.limits = failure_limits(times, tail, failure_probability * spent)

    def tails(self, votes: Counts, look: int) -> Floats:
        """``tail`` where the test has decided for it, else 1."""
        return np.where(self.times[look] - np.asarray(votes) <= self.limits[look], self.tail, 1.0)

    def p_values(self, votes: Counts, look: int, tails: Floats) -> Floats:
        """`ordered_p_values`; 1 beyond the radius of the test, and where it was given up before its last look."""
        failures = self.times[look] - votes
        low, ordered = self._ordered[look]
        found = np.where(failures < low, ordered[0], ordered[np.clip(failures - low, 0, len(ordered) - 1)])
        known = (failures <= self.limits[look]) | (look == len(self.times) - 1)
        return np.where((tails >= self.tail) & known[:, None], found[:, None], 1.0)

    @cached_property
    def _ordered(self) -> list[tuple[int, Floats]]:
        return ordered_p_values(self.times, self.limits, self.tail)


def make_bounds(mode: str, n: int, failure_probability: float, tail: float) -> LookBounds:
    """The bounds of a mode of smoothing; ``tail`` is what ``radius`` asks for."""
    makers: dict[str, Callable[[], LookBounds]] = {
        "fixed": lambda: ClopperPearsonLooks(np.array([n], np.int64), failure_probability),
        "staged": lambda: ClopperPearsonLooks(geometric(n, 1.25, max(n // 200, 20)), failure_probability),
        "radius": lambda: ExactTest(geometric(n, 1.25, 20), failure_probability, tail),
        "anytime": lambda: BettingLooks(geometric(n, 1.1, max(n // 200, 20)), failure_probability),
    }
    return makers[mode]()
