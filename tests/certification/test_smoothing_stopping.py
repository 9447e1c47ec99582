"""Early ends against full counts: samples saved, and nothing lost but what futility allows."""

import copy

import numpy as np
import pytest
from scipy import signal, stats

from robustsuite.certification.smoothing_bounds import make_bounds
from robustsuite.certification.smoothing_stopping import GridStop
from robustsuite.models.smoothed import proportion_upper_tail

N, ALPHA = 100_000, 0.001
GRID = np.arange(0, 4.01, 0.25)


def published(data, sigma, copies=10):
    """``1 - p`` of Cohen et al.'s images, an abstention as p = 1/2, and which of them are right."""
    log = data / "smoothing/cifar10/resnet110" / f"noise_{sigma:.2f}" / "test" / f"sigma_{sigma:.2f}"
    predict, radius, correct = np.genfromtxt(log, skip_header=1, usecols=(2, 3, 4)).T
    tails = np.where(predict < 0, 0.5, stats.norm.sf(radius / sigma))
    return np.repeat(tails, copies), np.repeat((predict >= 0) & (correct == 1), copies)


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
def test_the_whole_curve_costs_less_than_half_and_stays(shared_data, play, sigma):
    tails, right = published(shared_data, sigma)
    wanted = np.minimum(stats.norm.sf(GRID / sigma), np.nextafter(0.5, 0))
    best, used, votes = play(make_bounds("staged", N, ALPHA, 0.0), wanted, tails, seed=1)
    fixed = proportion_upper_tail(votes, N, ALPHA)
    assert used.mean() + 100 < (N + 100) / 2
    for tail in wanted:  # 0.1 points of these images, plus what 5000 draws leave to chance
        assert ((best <= tail) & right).mean() >= ((fixed <= tail) & right).mean() - 0.0015


@pytest.mark.parametrize(
    ("sigma", "radius"), [(0.12, 0.25), (0.25, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0), (1.0, 2.0)]
)
def test_one_radius_costs_a_fifteenth_and_stays(shared_data, play, sigma, radius):
    tails, right = published(shared_data, sigma)
    tail = float(stats.norm.sf(radius / sigma))
    best, used, votes = play(make_bounds("radius", N, ALPHA, tail), np.array([tail]), tails, seed=2)
    fixed = proportion_upper_tail(votes, N, ALPHA)
    assert used.mean() + 100 < (N + 100) / 15
    assert ((best <= tail) & right).mean() >= ((fixed <= tail) & right).mean() - 0.0015


def test_a_sure_example_stops_at_its_cell_and_a_hopeless_one_at_once():
    bounds = make_bounds("staged", 10_000, ALPHA, 0.0)
    stop = GridStop(bounds, stats.norm.sf(np.array([0.1, 0.5, 1.0])), 0.001, 3)
    n = int(bounds.times[0])
    ended = stop(np.array([0, 1, 2]), 0, np.array([n, n // 2, n // 4]))
    assert ended.tolist() == [False, False, True]
    assert stop.best[0] < 0.5
    assert stop.best[2] > 0.5
    last = len(bounds.times) - 1
    assert stop(np.array([0, 1]), last, np.array([9990, 5000])).tolist() == [True, True]
    assert stop.best[0] < stats.norm.sf(1.0)


def test_the_best_bound_of_all_looks_counts():
    bounds = make_bounds("staged", 1000, 0.01, 0.0)
    stop = GridStop(bounds, np.array([0.4]), 0.001, 1)
    early = len(bounds.times) - 3
    stop(np.array([0]), early, bounds.times[[early]])
    best = float(stop.best[0])
    stop(np.array([0]), early + 1, bounds.times[[early + 1]] - 100)
    assert stop.best[0] == best < 0.05


def reached(bounds, wanted, tail, futility=0.001):
    """Exact, by dynamic programming over failures and radii: how likely each radius is proved, and the mean samples."""
    stop = GridStop(bounds, wanted, futility, 1)
    proved, samples, now = np.zeros(len(wanted) + 1), 0.0, 0
    paths = {0: (np.ones(1), 0)}  # by radii that are proved: probabilities of failures, from the fewest on
    for look, time in enumerate(map(int, bounds.times)):
        spread = 7 * np.sqrt((time - now) * tail) + 25
        first = max(0, int((time - now) * tail - spread))
        step = stats.binom.pmf(
            np.arange(first, min(time - now, int((time - now) * tail + spread)) + 1), time - now, tail
        )
        goes, now = {}, time
        for before, (mass, fewest) in paths.items():
            mass, fewest = signal.convolve(mass, step).clip(min=0), fewest + first
            failures = np.arange(fewest, fewest + len(mass))
            # An example for every number of failures, with the bound that its path has reached.
            each = copy.copy(stop)
            each.best = np.full(len(mass), wanted[before - 1] if before else 1.0)
            each.votes = np.zeros(len(mass), np.int64)
            ended = each(np.arange(len(mass)), look, time - failures) | (look == len(bounds.times) - 1)
            now_proved = (each.best[:, None] <= wanted).sum(1)
            for count in np.unique(now_proved):
                here = now_proved == count
                proved[count] += mass[here & ended].sum()
                samples += time * mass[here & ended].sum()
                left = np.where(here & ~ended, mass, 0.0)
                if left.sum() > 1e-10:
                    goes.setdefault(count, []).append((left, fewest))
        paths = {count: merged(parts) for count, parts in goes.items()}
    return np.cumsum(proved[::-1])[::-1][1:], samples


def merged(parts):
    """The sum of distributions that begin at different counts, without its empty ends."""
    low = min(fewest for _, fewest in parts)
    total = np.zeros(max(fewest + len(mass) for mass, fewest in parts) - low)
    for mass, fewest in parts:
        total[fewest - low :][: len(mass)] += mass
    kept = np.flatnonzero(total > 1e-14)
    return total[kept[0] : kept[-1] + 1], low + int(kept[0])


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_no_cell_of_the_curve_loses_a_tenth_of_a_point(shared_data, sigma):
    """Exactly, on the published probabilities, for the n that is the default and at exactly the stated alpha."""
    n = 10_000
    tails, right = published(shared_data, sigma, copies=1)
    bounds, wanted = make_bounds("staged", n, ALPHA, 0.0), np.minimum(stats.norm.sf(GRID / sigma), np.nextafter(0.5, 0))
    needed = make_bounds("fixed", n, ALPHA, 0.0).votes_needed(wanted)
    wanted, needed = wanted[needed <= n], needed[needed <= n]
    lost, used = np.zeros(len(wanted)), 0.0
    alike, back = np.unique(np.round(np.log(tails), 2), return_inverse=True)
    for i, tail in enumerate(np.exp(alike)):
        likely, samples = reached(bounds, wanted, tail)
        used += samples * (back == i).mean()
        lost += (stats.binom.cdf(n - needed, n, tail) - likely) * (right & (back == i)).mean()
    assert 100 * lost.max() <= 0.1, 100 * lost
    assert used + 100 < (n + 100) / 1.95


def test_one_failure_too_many_in_the_mean_is_none_in_most_cases():
    """Three failures prove a radius, and three were seen early: no more of them is likelier than not."""
    bounds = make_bounds("staged", 10_000, ALPHA, 0.0)
    stop = GridStop(bounds, stats.norm.sf([0.5, 3.0]), 0.001, 1)
    assert int(10_000 - stop.needed[1]) == 3
    look = int(np.searchsorted(bounds.times, 4000))
    assert stop(np.array([0]), look, bounds.times[[look]] - 3).tolist() == [False]
    assert stop(np.array([0]), look, bounds.times[[look]] - 4).tolist() == [True]
