"""Every procedure's error: exact over all paths, and simulated with its early ends; bounds against brute force."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from robustsuite.certification.smoothing_bounds import BettingLooks, geometric, log_wealth, make_bounds
from robustsuite.certification.smoothing_exact import crossing_probability
from robustsuite.models.smoothed import proportion_upper_tail

MODES = ("fixed", "staged", "radius", "anytime")
ALPHA = 0.001


def limits(bounds, tail):
    """The most failures at each look for which the bound is at or below ``tail``."""
    out = []
    for look, n in enumerate(bounds.times):
        low, high = -1, int(n)
        while low < high:  # among many candidates at a time
            tried = np.unique(np.linspace(low + 1, high, 200).astype(int))
            claims = bounds.tails(n - tried, look) <= tail
            low, high = max([low, *tried[claims]]), min([high, *(tried[~claims] - 1)])
        out.append(low)
    return np.array(out)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("z", [0.05, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("n", [1000, 100_000])
def test_a_false_claim_has_at_most_the_stated_probability(mode, z, n):
    tail = float(stats.norm.sf(z))
    bounds = make_bounds(mode, n, ALPHA, tail)
    error = crossing_probability(bounds.times, limits(bounds, tail), tail)
    assert error <= ALPHA
    if mode in ("staged", "radius") and n > 1000:  # and it is no waste: dependence between looks is made use of
        assert error > 0.65 * ALPHA


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("z", [0.1, 1.0, 2.5])
def test_ten_thousand_trials_with_early_ends(mode, z, play):
    tail = float(stats.norm.sf(z))
    bounds = make_bounds(mode, 20_000, ALPHA, tail)
    wanted = (
        np.array([tail]) if mode == "radius" else np.unique(stats.norm.sf(np.append(np.arange(0.05, 4, 0.5), z)))[::-1]
    )
    best, used, _ = play(bounds, wanted, np.full(10_000, tail), seed=int(10 * z))
    wrong = int((best <= tail).sum())
    assert stats.binomtest(wrong, 10_000, ALPHA, alternative="greater").pvalue > 1e-4
    assert used.max() <= 20_000
    if mode != "fixed":
        assert used.mean() < 20_000


@pytest.mark.parametrize("mode", ["staged", "anytime"])
def test_looks_hold_together_under_a_stop_that_waits_for_failure(mode):
    """The worst rule: go on until some look claims too much."""
    tail, trials, alpha = 0.2, 10_000, 0.05
    bounds = make_bounds(mode, 2000, alpha, tail)
    generator = np.random.Generator(np.random.Philox(5))
    more = np.diff(bounds.times, prepend=0)
    votes = np.cumsum(generator.binomial(more, 1 - tail, (trials, len(more))), axis=1)
    found = np.stack([bounds.tails(votes[:, k], k) for k in range(len(more))], 1)
    wrong = int((found <= tail).any(1).sum())
    assert stats.binomtest(wrong, trials, alpha, alternative="greater").pvalue > 1e-4
    assert wrong > 0


def test_one_look_is_clopper_pearson_bit_for_bit():
    votes = np.arange(0, 1001, 13)
    assert (make_bounds("fixed", 1000, ALPHA, 0.0).tails(votes, 0) == proportion_upper_tail(votes, 1000, ALPHA)).all()
    staged = make_bounds("staged", 1000, ALPHA, 0.0)
    assert sum(staged.failures) == pytest.approx(ALPHA)
    last = len(staged.times) - 1
    assert (staged.tails(votes, last) == proportion_upper_tail(votes, 1000, staged.failures[-1])).all()


@pytest.mark.parametrize(("votes", "n", "tail"), [(90, 100, 0.3), (100, 100, 0.05), (60, 100, 0.5), (990, 1000, 0.03)])
def test_wealth_is_the_mixture_of_likelihood_ratios(votes, n, tail):
    def weighted(p):
        return math.exp(votes * math.log(p / (1 - tail)) + (n - votes) * math.log((1 - p) / tail)) * prior(p)

    def prior(p):
        return 1 / math.sqrt(p * (1 - p))

    points = [min(votes / n, 0.999)]
    mixture = quad(weighted, 1 - tail, 1 - 1e-13, points=points, limit=500)[0] / quad(prior, 1 - tail, 1)[0]
    assert log_wealth(np.array([votes]), n, np.array([tail]))[0] == pytest.approx(math.log(mixture), rel=1e-4)


def test_wealth_has_mean_one_at_the_edge():
    for n, tail in ((1, 0.3), (7, 0.5), (40, 0.1)):
        votes = np.arange(n + 1)
        wealth = np.exp(log_wealth(votes, n, np.full(n + 1, tail)))
        assert (stats.binom.pmf(votes, n, 1 - tail) * wealth).sum() == pytest.approx(1, rel=1e-9)


def test_the_betting_bound_is_the_first_that_is_not_refuted():
    bounds = BettingLooks(np.array([500]), 0.01)
    tails = np.geomspace(1e-6, 0.999, 4000)
    for votes in (0, 260, 400, 495, 500):
        refuted = log_wealth(np.full(4000, votes), 500, tails) >= bounds.threshold
        got = float(bounds.tails(np.array([votes]), 0)[0])
        above = tails >= got
        assert refuted[above & (tails > 1 - votes / 500)].all()
        assert not refuted[(tails < got * (1 - 1e-9)) & (tails > 1 - votes / 500)].any()
    assert bounds.tails(np.array([0]), 0)[0] == 1.0


def test_the_cut_off_prior_loses_little_of_the_largest_radius():
    """3.81 sigma with Clopper-Pearson, 3.65 with the whole of Jeffreys's prior."""
    tail = BettingLooks(np.array([100_000]), ALPHA).tails(np.array([100_000]), 0)[0]
    assert stats.norm.isf(tail) == pytest.approx(3.773, abs=5e-4)


def test_looks_end_at_n_and_are_as_far_apart_as_asked():
    for n in (1, 15, 20, 21, 400, 100_000):
        for ratio in (1.1, 1.25):
            times = geometric(n, ratio, 20)
            assert times[-1] == n
            assert (np.diff(times) > 0).all()
            assert times[0] >= min(n, 19)


@pytest.mark.parametrize("mode", MODES)
def test_votes_needed_is_the_smallest_count_that_proves(mode):
    bounds, tails = make_bounds(mode, 2000, ALPHA, 0.2), np.array([0.2, 0.05, 0.01, 1e-9])
    wanted = tails[:1] if mode == "radius" else tails
    for need, tail in zip(bounds.votes_needed(wanted), wanted, strict=True):
        last = len(bounds.times) - 1
        if need <= 2000:
            assert bounds.tails(np.array([need]), last)[0] <= tail
        assert bounds.tails(np.array([need - 1]), last)[0] > tail
    if mode != "radius":
        assert bounds.votes_needed(tails)[-1] == 2001


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("z", [0.3, 2.0])
def test_p_values_are_no_smaller_than_they_may_be(mode, z, play):
    """At the edge of what is false, with all early ends: p <= a with probability at most a, for every a."""
    tail, trials = float(stats.norm.sf(z)), 20_000
    bounds = make_bounds(mode, 3000, 0.05, tail)
    wanted = np.array([tail]) if mode == "radius" else stats.norm.sf([0.1, 0.25, z, z + 1])
    _, used, _, votes = play(bounds, wanted, np.full(trials, tail), seed=4, ended=True)
    p = np.ones(trials)
    for look, n in enumerate(bounds.times):
        p[used == n] = bounds.p_values(votes[used == n], look, np.array([tail]))[:, 0]
    for level in (0.002, 0.01, 0.05, 0.2):
        wrong = int((p <= level).sum())
        assert stats.binomtest(wrong, trials, level, alternative="greater").pvalue > 1e-4
    assert (p <= 0.2).any()


def test_p_values_say_what_the_bounds_say():
    votes, tails = np.arange(400, 1001, 7), np.array([0.5, 0.3, 0.05])
    one = make_bounds("fixed", 1000, ALPHA, 0.0)
    reference = [[stats.binomtest(int(k), 1000, 1 - t, alternative="greater").pvalue for t in tails] for k in votes]
    assert one.p_values(votes, 0, tails) == pytest.approx(np.array(reference), rel=1e-9)
    for mode in ("fixed", "staged", "anytime"):
        bounds = make_bounds(mode, 1000, ALPHA, 0.0)
        for look, n in enumerate(bounds.times):
            few = np.unique(np.minimum(votes, n))
            claimed = bounds.tails(few, look)[:, None] <= tails
            assert ((bounds.p_values(few, look, tails) <= ALPHA) == claimed).all()


def test_the_exact_test_has_no_p_value_beyond_its_radius_and_none_where_it_gave_up():
    bounds = make_bounds("radius", 1000, ALPHA, 0.2)
    early, last = len(bounds.times) - 4, len(bounds.times) - 1
    enough = bounds.times[early] - bounds.limits[early]
    p = bounds.p_values(np.array([enough, enough - 1]), early, np.array([0.3, 0.2, 0.1]))
    assert (p[0, :2] <= ALPHA).all()
    assert p[0, 2] == 1
    assert (p[1] == 1).all()
    least = bounds.times[last] - bounds.limits[last]
    found = bounds.p_values(np.array([least, least - 1, 0]), last, np.array([0.2]))[:, 0]
    assert found[0] <= ALPHA < found[1] < 2 * ALPHA
    assert found[2] == pytest.approx(1)
