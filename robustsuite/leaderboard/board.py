"""Records to boards: what may share a table, who is ranked, who is tied, who is shown without a rank."""

import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from robustsuite.errors import InputError
from robustsuite.results.schema import Metric, ProtocolPart, Record, canonical
from robustsuite.threat import Eps

METRICS = ("clean_accuracy", "robust_accuracy", "certified_accuracy")


@dataclass(frozen=True)
class Row:
    """One entry. `rank` is None for entries that are shown but not ranked; `notes` say why, and what else to know."""

    rank: int | None
    tied: bool
    label: str
    """The model's name, with the run key's first digits where several entries have the same name."""
    defense: str
    arch: str
    clean: Metric | None
    robust: Metric | None
    certified: Metric | None
    certifiers: tuple[tuple[str, str], ...]
    """(plugin, guarantee) of every certifier that ran."""
    gap: float | None
    """robust - certified: the share of examples that is neither broken nor proved."""
    n: int
    status: str
    unreliable: bool
    randomized: bool
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    run_key: str
    outcome_sha256: str
    weights_sha256: str
    suite_version: str

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the run has, in the table's order."""
        return tuple(m for m in (self.clean, self.robust, self.certified) if m is not None)


@dataclass(frozen=True)
class Conflict:
    """Runs of one request with different outcomes: at least one of them is wrong."""

    run_key: str
    outcomes: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        shown = ", ".join(o[:16] for o in self.outcomes)
        return f"run {self.run_key} ({self.name}) has {len(self.outcomes)} different outcomes: {shown}"


@dataclass(frozen=True)
class Board:
    """Entries that answered one question: the same examples, threat model and protocol."""

    id: str
    data_name: str
    subset: str
    fingerprint: str
    n: int
    norm: str
    eps: str
    protocol: ProtocolPart
    rows: tuple[Row, ...]
    conflicts: tuple[Conflict, ...]


_Group = tuple[str, str, Fraction, str]


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
    rows = [_row(record, record.run_key in conflicting) for record in kept]
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
        rows=tuple(_ranked(_distinguished(rows))),
        conflicts=tuple(conflicts),
    )


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


def _row(record: Record, conflicting: bool) -> Row:
    model, data = record.request.model, record.request.data
    clean, robust, certified = (record.metric(name) for name in METRICS)
    reasons = _reasons_not_to_rank(record, conflicting)
    flags = tuple(f.name for f in record.flags if f.raised)
    notes = [
        *reasons,
        *(f"flag: {name}" for name in flags),
        *(f"plugin: {name}" for name in sorted(record.request.plugins)),
    ]
    done = (s for s in record.stages if s.kind == "certifier" and s.status == "done")
    return Row(
        rank=None if reasons else 0,  # filled in by _ranked, which knows the others
        tied=False,
        label=model.name,
        defense=" + ".join(filter(None, (_part_name(model.defense), _part_name(model.wrap)))),
        arch=model.arch or "",
        clean=clean,
        robust=robust,
        certified=certified,
        certifiers=tuple(dict.fromkeys((s.plugin, s.guarantee) for s in done)),
        gap=robust.value - certified.value if robust and certified else None,
        n=data.n,
        status=record.status,
        unreliable=record.unreliable,
        randomized=model.randomized,
        flags=flags,
        notes=tuple(notes),
        run_key=record.run_key,
        outcome_sha256=record.outcome_sha256,
        weights_sha256=model.weights_sha256,
        suite_version=record.provenance.suite_version,
    )


def _part_name(part: dict[str, object] | None) -> str:
    name = (part or {}).get("name", "")
    return name if isinstance(name, str) else json.dumps(name, sort_keys=True)


def _reasons_not_to_rank(record: Record, conflicting: bool) -> list[str]:
    """Words for every reason, none when the entry takes part in the ranking."""
    robust = record.metric("robust_accuracy")
    checks = [
        (conflicting, f"conflict: outcome {record.outcome_sha256[:8]}"),
        (record.status != "complete", record.status),
        (record.unreliable, "unreliable"),
        (bool(record.contradictions), "contradiction"),
        (record.request.model.randomized, "randomized"),
        (robust is None, "no robust accuracy"),
        (
            robust is not None and robust.n != record.request.data.n,
            f"covers {robust.n if robust else 0} of {record.request.data.n} examples",
        ),
    ]
    return [words for applies, words in checks if applies]


def _distinguished(rows: Sequence[Row]) -> list[Row]:
    """Names that a reader could take for each other get the run key's first digits."""
    seen = Counter(_looks_like(row.label) for row in rows)
    return [
        replace(row, label=f"{row.label} ({row.run_key[:8]})") if seen[_looks_like(row.label)] > 1 else row
        for row in rows
    ]


def _looks_like(name: str) -> str:
    visible = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c)[0] != "C")
    return " ".join("".join(visible).casefold().split())


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Ranked entries by the lower end of robust accuracy, then clean accuracy; the others below, in that order too.

    The rank is 1 + the number of entries whose interval lies entirely above: entries that n examples cannot tell
    apart share one.
    """
    ordered = sorted(rows, key=_strength)
    ranked = [row for row in ordered if row.rank is not None]
    lowers = sorted(row.robust.ci95[0] for row in ranked if row.robust)
    ranks = [1 + len(lowers) - bisect_right(lowers, row.robust.ci95[1]) for row in ranked if row.robust]
    shared = Counter(ranks)
    placed = [replace(row, rank=r, tied=shared[r] > 1) for row, r in zip(ranked, ranks, strict=True)]
    return placed + [row for row in ordered if row.rank is None]


def _strength(row: Row) -> tuple[float, float, str, str, str]:
    lower = row.robust.ci95[0] if row.robust else -1.0
    clean = row.clean.value if row.clean else -1.0
    return -lower, -clean, row.label, row.run_key, row.outcome_sha256
