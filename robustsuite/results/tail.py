"""What a random sample of the survivors says of the whole protocol."""

import numpy as np

from robustsuite.results.ledger import AUDIT, REST, Outcome
from robustsuite.results.schema import TailPart

_CONFIDENCE = 0.95


def summary(outcomes: dict[str, np.ndarray], tail: list[str], before: np.ndarray) -> TailPart:
    """What the sample says; ``outcomes`` by ledger name, ``before`` bool ``[N]`` the survivors of the other stages.

    What those stages have certified counts as robust.
    """
    n = len(before)
    rest_run = any(REST + name in outcomes for name in tail)
    names = [name for stage in tail for name in (stage, REST + stage) if name in outcomes]
    seen = np.logical_or.reduce([outcomes[name] != Outcome.SKIPPED for name in names])
    broken = np.logical_or.reduce([outcomes[name] == Outcome.BROKEN for name in names])
    proofs = [part == Outcome.CERTIFIED for name, part in outcomes.items() if not name.startswith(AUDIT)]
    proved = int((np.logical_or.reduce(proofs) & ~before).sum())
    survivors, sampled, hits = int(before.sum()), int(seen.sum()), int(broken.sum())
    upper = (proved + survivors - hits) / n
    lower = (proved + survivors - most(survivors, sampled, hits)) / n
    estimate = (proved + survivors * (1 - hits / sampled)) / n if sampled else upper
    return TailPart(
        survivors=survivors,
        sampled=sampled,
        broken=hits,
        rest_run=rest_run,
        estimate=min(max(estimate, lower), upper),
        lower=lower,
        upper=upper,
    )


def most(survivors: int, sampled: int, broken: int) -> int:
    """The most breakable examples among the survivors that the sample is compatible with, at 95 % (one-sided).

    The largest K for which a draw of ``sampled`` without replacement shows ``broken`` or fewer of them with a
    probability above 5 %: the exact hypergeometric limit. With everything sampled it is ``broken`` itself.
    """
    from scipy.stats import hypergeom

    low, high = broken, survivors - (sampled - broken)
    while low < high:  # P(X <= broken) falls as K grows
        middle = (low + high + 1) // 2
        if hypergeom.cdf(broken, survivors, middle, sampled) > 1 - _CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return low
