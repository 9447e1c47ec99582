"""Exact probabilities of binomial counts that cross a boundary at one of several looks, by dynamic programming."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_DEVIATIONS, _MORE = 9.5, 30  # beyond these a count has a probability below 1e-18
_NEGLIGIBLE = 1e-18
_ROUNDING = 1e-9  # of a budget, for float64 sums and for what is neglected


def crossing_probability(times: Ints, limits: Ints, tail: float) -> float:
    """How likely the failures among the first ``times[k]`` samples are at most ``limits[k]`` at some look k.

    Samples are independent and fail with probability ``tail``. For a test that concludes ``1 - p <= tail`` there, this
    is its error at the edge of what it denies, where it is largest, and stopping in between for lack of hope only
    lowers it.
    """
    crossed = 0.0
    mass, low, now = np.ones(1), 0, 0
    for time, limit in zip(times, limits, strict=True):
        mass, low = _add(mass, low, int(time) - now, tail)
        now = int(time)
        cut = min(max(int(limit) + 1 - low, 0), len(mass))
        crossed += float(mass[:cut].sum())
        mass, low = _trim(mass[cut:], low + cut)
    return crossed


def ordered_p_values(times: Ints, limits: Ints, tail: float) -> list[tuple[int, Floats]]:
    """p-values of such a test, by look: the fewest failures that are possible there, and the p-value of each count.

    How likely it is to cross at an earlier look, or to have at most so many failures at this one without having
    crossed before (the stage-wise order of Armitage 1957). Where the test has crossed, and at its last look.
    """
    out, crossed = [], 0.0
    mass, low, now = np.ones(1), 0, 0
    for time, limit in zip(times, limits, strict=True):
        mass, low = _add(mass, low, int(time) - now, tail)
        now = int(time)
        out.append((low, np.minimum((crossed + np.cumsum(mass)) * (1 + _ROUNDING), 1.0)))
        cut = min(max(int(limit) + 1 - low, 0), len(mass))
        crossed += float(mass[:cut].sum())
        mass, low = _trim(mass[cut:], low + cut)
    return out


def failure_limits(times: Ints, tail: float, budgets: Floats) -> Ints:
    """The largest limits for which `crossing_probability` up to each look stays within ``budgets``, which ascend.

    -1 where no count is small enough. Whatever a look leaves of its budget, the next one has.
    """
    limits = np.full(len(times), -1, np.int64)
    crossed = 0.0
    mass, low, now = np.ones(1), 0, 0
    for look, time in enumerate(times):
        mass, low = _add(mass, low, int(time) - now, tail)
        now = int(time)
        room = budgets[look] * (1 - _ROUNDING) - crossed
        cut = int(np.searchsorted(np.cumsum(mass), room, side="right"))
        if cut:
            limits[look] = low + cut - 1
            crossed += float(mass[:cut].sum())
        mass, low = _trim(mass[cut:], low + cut)
    return limits


def _add(mass: Floats, low: int, samples: int, tail: float) -> tuple[Floats, int]:
    """The distribution of failures (``mass[i]`` for ``low + i``) after more samples."""
    mean, deviation = samples * tail, math.sqrt(samples * tail * (1 - tail))
    width = _DEVIATIONS * deviation + _MORE
    first, last = max(0, math.floor(mean - width)), min(samples, math.ceil(mean + width))
    return np.convolve(mass, binom.pmf(np.arange(first, last + 1), samples, tail)), low + first


def _trim(mass: Floats, low: int) -> tuple[Floats, int]:
    """Without the ends that hold next to nothing, so that many looks stay cheap."""
    kept = np.nonzero(mass > _NEGLIGIBLE * 1e-3)[0]
    if not len(kept):
        return np.zeros(1), low
    return mass[kept[0] : kept[-1] + 1], low + int(kept[0])
