"""When to stop counting votes: the next radius of a table is reached, or is out of reach."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv

from robustsuite.certification.smoothing_bounds import LookBounds
from robustsuite.models.smoothed import Counts

Floats = NDArray[np.float64]


@dataclass
class GridStop:
    """Stop an example whose remaining samples would not lift its radius to a further one of a grid.

    ``tails`` descend: what ``1 - p`` must be bounded by for each radius. Out of reach means: even if p were its upper
    Clopper-Pearson bound at ``futility``, the votes at the last look would not do in half of the cases. (In half, not
    on average: near the largest radius a few failures decide, and an average of 0.9 more is mostly none.) This decides
    what is left unproved, never what is true: the bounds hold under any rule of when to stop. `best` float64 ``[N]`` is
    the smallest bound of each example so far, `votes` int64 ``[N]`` are its votes at the last look.
    """

    bounds: LookBounds
    tails: Floats
    futility: float
    examples: int
    best: Floats = field(init=False)
    votes: Counts = field(init=False)
    needed: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.best, self.votes = np.ones(self.examples), np.zeros(self.examples, np.int64)
        never = self.bounds.times[-1] + 1
        self.needed = np.append(self.bounds.votes_needed(self.tails), never)

    def __call__(self, examples: Counts, look: int, votes: Counts) -> NDArray[np.bool_]:
        """Take the votes of some examples at a look, and say whose count ends."""
        self.votes[examples] = votes
        self.best[examples] = np.minimum(self.best[examples], self.bounds.tails(votes, look))
        reached = (self.best[examples, None] <= self.tails).sum(1)
        now, last = int(self.bounds.times[look]), int(self.bounds.times[-1])
        failures = now - votes
        least = np.where(failures == 0, 0.0, betaincinv(np.maximum(failures, 1), votes + 1, self.futility))
        allowed = last - self.needed[reached] - failures  # among the samples to come
        hope = bdtr(np.maximum(allowed, 0), np.full(len(votes), last - now), least)
        return (allowed < 0) | (hope < 0.5)
