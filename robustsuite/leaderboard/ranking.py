"""Who comes first, who is tied, who is shown without a rank."""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from robustsuite.leaderboard.row import Row
from robustsuite.results.schema import Metric


def verified(rows: Iterable[Row]) -> list[Row]:
    """Ranked entries by the lower end of best known, then clean accuracy; the others below, in that order too.

    The rank is 1 + the number of entries whose interval lies entirely above: entries that n examples cannot tell
    apart share one. A group begins with the best entry whose interval does not reach the best of the group before.
    """
    ordered = sorted(_distinguished(list(rows)), key=_strength)
    ranked = [row for row in ordered if row.rank is not None]
    intervals = [known.ci95 for row in ranked if (known := best(row))]
    lowers = sorted(lower for lower, _ in intervals)
    ranks = [1 + len(lowers) - bisect_right(lowers, upper) for _, upper in intervals]
    shared = Counter(ranks)
    placed = [
        replace(row, rank=rank, tied=shared[rank] > 1, group=group)
        for row, rank, group in zip(ranked, ranks, _groups(intervals), strict=True)
    ]
    return placed + [row for row in ordered if row.rank is None]


def reported(rows: Iterable[Row]) -> list[Row]:
    """All entries by best known (without one: by certified accuracy), equal ones by their source's file names.

    Imported entries are numbered from 1 on in that order; nothing is ranked.
    """
    ordered = sorted(_distinguished(list(rows)), key=_as_reported)
    placed, number = [], 0
    for row in ordered:
        counts = row.imported is not None and _stated(row) is not None and not _invalid(row)
        number += counts
        placed.append(replace(row, rank=None, reported_rank=number if counts else None))
    return placed


def best(row: Row) -> Metric | None:
    """Best known robust accuracy; the entry's own where nothing else is known."""
    return row.best_known or row.robust


def _groups(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """Group numbers of intervals that come by their lower ends, highest first."""
    groups: list[int] = []
    head = 2.0
    for lower, upper in intervals:
        begins = upper < head
        groups.append((groups[-1] if groups else 0) + begins)
        head = lower if begins else head
    return groups


def _invalid(row: Row) -> bool:
    return any(c.action == "invalidate" for c in row.corrections)


def _stated(row: Row) -> float | None:
    value = best(row) or row.certified
    return value.value if value else None


def _as_reported(row: Row) -> tuple[float, str, str]:
    stated = _stated(row)
    return -(-1.0 if stated is None else stated), row.imported.source_file if row.imported else "", row.key


def _strength(row: Row) -> tuple[float, float, str, str, str]:
    known = best(row)
    lower = known.ci95[0] if known else -1.0
    clean = row.clean.value if row.clean else -1.0
    return -lower, -clean, row.label, row.key, row.outcome_sha256


def _distinguished(rows: Sequence[Row]) -> list[Row]:
    """Names that a reader could take for each other get the key's first digits."""
    seen = Counter(_looks_like(row.label) for row in rows)
    return [
        replace(row, label=f"{row.label} ({row.run_key[:8] or row.key})") if seen[_looks_like(row.label)] > 1 else row
        for row in rows
    ]


def _looks_like(name: str) -> str:
    visible = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c)[0] != "C")
    return " ".join("".join(visible).casefold().split())
