"""Records to boards: what may share a table, and what a defined board shows of a published folder."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from robustsuite.errors import InputError
from robustsuite.leaderboard.known import best_known
from robustsuite.leaderboard.paired import comparisons
from robustsuite.leaderboard.published import PublishedBoard, is_published, read_published
from robustsuite.leaderboard.ranking import reported, verified
from robustsuite.leaderboard.row import Board, Conflict, Row
from robustsuite.leaderboard.rows import imported_row, published_row, record_row
from robustsuite.results.records import Problem, find_records
from robustsuite.results.schema import Record, canonical
from robustsuite.threat import Eps

_Group = tuple[str, str, Fraction, str]


def defined_board(published: PublishedBoard) -> Board:
    """The board of a definition, with or without entries; equal content gives an equal board."""
    definition = published.definition
    rule, minimum = definition.ranking.rule, definition.ranking.minimum_level
    known = best_known(published.entries, minimum)
    closed = {e.record.run_key for e in published.entries if definition.closed and not definition.outside(e.record)}
    rows = [
        published_row(entry, known.get(key := entry.record.run_key), minimum, closed=key in closed)
        for entry in published.entries
    ]
    rows += [imported_row(r, definition.eps, among_verified=rule == "verified") for r in published.imported]
    placed = verified(rows) if rule == "verified" else reported(rows)
    first = min((e.record for e in published.entries), key=lambda r: r.run_key, default=None)
    data = definition.data
    return Board(
        id=definition.id,
        data_name=f"{data.name}-{data.split}" if data.split else data.name,
        subset=data.subset,
        fingerprint=data.fingerprint or "",
        n=data.n or (first.request.data.n if first else max((row.n for row in rows), default=0)),
        norm=definition.threat.norm,
        eps=definition.eps,
        protocol=first.request.protocol if first else None,
        rows=tuple(placed),
        conflicts=(),
        title=definition.title,
        description=definition.description,
        ranking=rule,
        columns=definition.columns,
        comparisons=comparisons(placed),
    )


def read_boards(roots: Sequence[Path], *, galleries: bool = False) -> tuple[list[Board], list[Problem]]:
    """The boards that a published folder defines, or those that the runs below ``roots`` give, and what is unusable.

    Pictures only of a published folder, with ``galleries``.
    """
    if len(roots) == 1 and is_published(roots[0]):
        found = read_published(roots[0], galleries=galleries)
        return [defined_board(board) for board in found.boards], found.problems
    records, problems = find_records(roots)
    return boards(records) if records else [], problems


def boards(records: Iterable[Record]) -> list[Board]:
    """All boards of ``records``, ordered by id; the order of the records plays no part.

    Raises `InputError` when there is no record.
    """
    groups: dict[_Group, list[Record]] = defaultdict(list)
    for record in records:
        groups[_group(record)].append(record)
    if not groups:
        raise InputError("there are no records to build a board from; run `robustsuite eval` first, or name its runs.")
    names = {group: _board_name(members) for group, members in groups.items()}
    taken = Counter(names.values())
    built = []
    for group, members in groups.items():
        name = names[group] if taken[names[group]] == 1 else f"{names[group]}-{_digest(group)}"
        built.append(_board(name, members))
    return sorted(built, key=lambda b: b.id)


def _group(record: Record) -> _Group:
    """What must be equal in a table: fingerprint, norm, exact eps, protocol with all its parameters."""
    request = record.request
    eps = Eps.parse(request.threat.eps).fraction
    return (
        request.data.fingerprint,
        request.threat.norm,
        eps,
        canonical(request.protocol.model_dump(mode="json", exclude={"contributions"})).decode(),
    )


def _digest(group: _Group) -> str:
    return hashlib.sha256(canonical([str(part) for part in group])).hexdigest()[:8]


def _data_name(members: Sequence[Record]) -> tuple[str, str]:
    """(name and split, subset). Users may name the same examples differently: the most frequent name wins."""
    data = (r.request.data for r in members)
    counts = Counter((f"{d.name}-{d.split}" if d.split else d.name, d.subset) for d in data)
    return min(counts, key=lambda pair: (-counts[pair], pair))


def _board_name(members: Sequence[Record]) -> str:
    (name, subset), request = _data_name(members), members[0].request
    parts = [
        name,
        *([] if subset in ("", "all") else [subset]),
        request.threat.norm,
        str(Eps.parse(request.threat.eps)),
    ]
    return "-".join(_slug(part) for part in [*parts, request.protocol.name, f"v{request.protocol.version}"])


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:48] or "x"


def _board(board_id: str, members: Sequence[Record]) -> Board:
    kept, conflicts = _without_duplicates(members)
    conflicting = {c.run_key for c in conflicts}
    rows = [_own_row(record, record.run_key in conflicting) for record in kept]
    (name, subset), request = _data_name(members), kept[0].request
    return Board(
        id=board_id,
        data_name=name,
        subset=subset,
        fingerprint=request.data.fingerprint,
        n=request.data.n,
        norm=request.threat.norm,
        eps=str(Eps.parse(request.threat.eps)),
        protocol=request.protocol,
        rows=tuple(verified(rows)),
        conflicts=tuple(conflicts),
    )


def _own_row(record: Record, conflicting: bool) -> Row:
    """A row with a key that is unique even where outcomes of one request differ."""
    if not conflicting:
        return record_row(record)
    outcome = record.outcome_sha256[:8]
    return replace(record_row(record, [f"conflict: outcome {outcome}"]), key=f"{record.run_key}-{outcome}")


def _without_duplicates(members: Sequence[Record]) -> tuple[list[Record], list[Conflict]]:
    """One record a (run key, outcome), in a fixed order; a finished run replaces earlier states of itself."""
    by_key: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(members, key=lambda r: (r.run_key, r.host.created_utc, r.content_sha256)):
        by_key[record.run_key].append(record)
    kept: list[Record] = []
    conflicts: list[Conflict] = []
    for key, runs in by_key.items():
        finished = [r for r in runs if r.status == "complete"] or runs
        different = {_outcome(r): r for r in reversed(finished)}  # reversed: the earliest of equals stays
        outcomes = sorted(r.outcome_sha256 for r in different.values())
        kept += sorted(different.values(), key=lambda r: r.outcome_sha256)
        if len(different) > 1:
            conflicts.append(Conflict(key, tuple(outcomes), finished[0].request.model.name))
    return kept, conflicts


def _outcome(record: Record) -> bytes:
    """What a run found. `outcome_sha256` also covers where model and data lay, which does not make another run."""
    return canonical(
        record.model_dump(mode="json", exclude={"request", "provenance", "host", "outcome_sha256", "content_sha256"})
    )
