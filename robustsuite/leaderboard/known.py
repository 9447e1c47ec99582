"""Best known robust accuracy: what no run and no correction has broken, example by example."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustsuite.leaderboard.published import Entry
from robustsuite.results.schema import Metric, Record, canonical
from robustsuite.results.statistics import metric

_DIGITS = 9
_NOT_THE_FUNCTION = {"name", "reference", "format", "defense", "trust_pickle", "load_options", "eot", "n_params"}


@dataclass(frozen=True)
class Known:
    """``kept``: which examples of a model nobody has broken, bool ``[N]``; ``runs``: how many runs that rests on."""

    kept: np.ndarray
    runs: int

    @property
    def metric(self) -> Metric:
        """The share that is kept, with its Clopper-Pearson interval."""
        return known_share(int(self.kept.sum()), len(self.kept))


def known_share(k: int, n: int) -> Metric:
    """Best known ``k / n``. Its interval is rounded: tables are the same bytes whatever release of scipy counts."""
    exact = metric("best_known", k, n)
    lower, upper = (round(end, _DIGITS) for end in exact.ci95)
    return exact.model_copy(update={"ci95": (lower, upper)})


def best_known(entries: Iterable[Entry], minimum_level: int) -> dict[str, Known]:
    """By run key: the pointwise worst case over all runs of the same model, and what corrections have broken beside.

    Entries of a board have examples and threat model in common. A run takes part when it is verified to
    ``minimum_level`` and not invalidated: nobody lowers another's number with a claim. Draws of a randomised model
    are not pooled.
    """
    models: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        if entry.kept is not None:
            models.setdefault((_model(entry.record), len(entry.kept)), []).append(entry)
    return {
        entry.record.run_key: _pooled(entry, [e for e in same if e is not entry and _counts(e, minimum_level)])
        for same in models.values()
        for entry in same
    }


def _pooled(entry: Entry, others: list[Entry]) -> Known:
    assert entry.kept is not None
    kept = entry.kept.copy()
    for other in (entry, *others):
        if other.kept is not None:
            kept &= other.kept
        for correction in other.corrections:
            if correction.action == "lower":
                kept[[i for i in correction.examples if 0 <= i < len(kept)]] = False
    return Known(kept, 1 + len(others))


def _counts(entry: Entry, minimum_level: int) -> bool:
    valid = not any(c.action == "invalidate" for c in entry.corrections)
    return valid and entry.level is not None and entry.level >= minimum_level


def _model(record: Record) -> str:
    """What must be equal for two runs to be of one function: the weights, and everything around them."""
    model = record.request.model
    if model.randomized:
        return f"run {record.run_key}"
    return canonical(model.model_dump(mode="json", exclude=_NOT_THE_FUNCTION)).decode()
