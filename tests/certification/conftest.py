import numpy as np
import pytest

from robustsuite.certification.smoothing_stopping import GridStop


@pytest.fixture
def play():
    """A procedure on independent votes with known probabilities; smallest bounds, samples used, all n votes.

    ``ended``: also the votes at the look that ended each count.
    """

    def run(bounds, wanted, tails, seed, futility=0.001, ended=False):
        generator = np.random.Generator(np.random.Philox(seed))
        stop = GridStop(bounds, wanted, futility, len(tails))
        votes, used = np.zeros(len(tails), np.int64), np.zeros(len(tails), np.int64)
        active, before = np.arange(len(tails)), 0
        for look, now in enumerate(bounds.times):
            votes += (now - before) - generator.binomial(now - before, tails)
            used[active], before = now, now
            active = active[~stop(active, look, votes[active])]
        return (stop.best, used, votes, stop.votes) if ended else (stop.best, used, votes)

    return run
