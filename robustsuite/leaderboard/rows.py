"""One row an entry: what a record or an imported entry says, and why it may not be ranked."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robustsuite.leaderboard.curves import record_curves
from robustsuite.leaderboard.known import Known, known_share
from robustsuite.leaderboard.published import Entry, Reported
from robustsuite.leaderboard.row import Cost, Row
from robustsuite.results.flags import is_unreliable
from robustsuite.results.published import Correction
from robustsuite.results.schema import Metric, Record

METRICS = ("clean_accuracy", "robust_accuracy", "certified_accuracy")


def record_row(record: Record, reasons: Sequence[str] = ()) -> Row:
    """A run as its record describes it; ``reasons`` not to rank it come on top of the record's own."""
    model, data = record.request.model, record.request.data
    clean, robust, certified = (record.metric(name) for name in METRICS)
    reasons = [*reasons, *_reasons_not_to_rank(record)]
    flags = tuple(f.name for f in record.flags if f.raised)
    notes = [
        *reasons,
        *(f"flag: {name}" for name in flags),
        *(f"plugin: {name}" for name in sorted(record.request.plugins)),
    ]
    done = (s for s in record.stages if s.kind == "certifier" and s.status == "done")
    return Row(
        rank=None if reasons else 0,  # filled in by the ranking, which knows the others
        tied=False,
        label=model.name,
        defense=" + ".join(filter(None, (_part_name(model.defense), _part_name(model.wrap)))),
        arch=model.arch or "",
        clean=clean,
        robust=robust,
        certified=certified,
        certifiers=tuple(dict.fromkeys((s.plugin, s.guarantee) for s in done)),
        gap=gap(robust, certified),
        n=data.n,
        status=record.status,
        unreliable=is_unreliable(record),
        randomized=model.randomized,
        flags=flags,
        notes=tuple(notes),
        run_key=record.run_key,
        outcome_sha256=record.outcome_sha256,
        weights_sha256=model.weights_sha256,
        suite_version=record.provenance.suite_version,
        key=record.run_key,
        fidelity=_fidelity(model.defense),
        n_params=model.n_params,
        curves=record_curves(record),
        cost=_cost(record),
        record=record,
    )


def published_row(entry: Entry, known: Known | None, minimum: int, *, closed: bool) -> Row:
    """A published run with what is known beyond its record: what nobody has broken, verification and corrections.

    ``minimum``: the level from which the board ranks. ``closed``: the run belongs to its closed division.
    """
    row = record_row(entry.record, [*_unverified(entry, minimum), *corrected(entry.corrections)])
    best = known.metric if known else None
    return replace(
        row,
        notes=(*row.notes, *_remarks(entry.corrections)),
        unreliable=row.unreliable or any(c.action == "unreliable" for c in entry.corrections),
        best_known=best,
        gap=gap(best or row.robust, row.certified),
        level=entry.level,
        division="closed" if closed else "open",
        extra_data=False if closed else None,
        curves=entry.curves or row.curves,
        corrections=entry.corrections,
        gallery=entry.gallery,
        kept=np.packbits(known.kept).tobytes() if known else b"",
    )


def imported_row(reported: Reported, eps: str, *, among_verified: bool = True) -> Row:
    """A number that somebody else measured: never ranked with what was verified; ``eps`` is the board's."""
    entry = reported.entry
    clean, robust, certified = (entry.metric(name) for name in METRICS)
    flags = tuple(f.name for f in entry.flags if f.raised)
    unreliable = entry.unreliable or any(c.action == "unreliable" for c in reported.corrections)
    notes = [
        *([f"not verified: {entry.provenance}"] if among_verified else []),
        *reported.doubts,
        *corrected(reported.corrections),
        *(["unreliable"] if entry.unreliable else []),
        *([f"eps {entry.eps}"] if entry.eps and entry.eps != eps else []),
        *(f"flag: {name}" for name in flags),
        *_remarks(reported.corrections),
    ]
    best = best_reported(robust, reported.corrections)
    measured = next((m for m in (robust, clean, certified, *entry.metrics) if m), None)
    return Row(
        rank=None,
        tied=False,
        label=entry.name,
        defense="",
        arch=entry.architecture,
        clean=clean,
        robust=robust,
        certified=certified,
        certifiers=(),
        gap=gap(best, certified),
        n=measured.n if measured else 0,
        status="imported",
        unreliable=unreliable,
        randomized=False,
        flags=flags,
        notes=tuple(notes),
        run_key="",
        outcome_sha256="",
        weights_sha256="",
        suite_version="",
        best_known=best,
        key=entry.id,
        provenance=entry.provenance,
        extra_data=entry.extra_data,
        authors=entry.authors,
        venue=entry.venue,
        link=entry.link,
        curves=entry.curves,
        corrections=reported.corrections,
        imported=entry,
    )


def gap(known: Metric | None, certified: Metric | None) -> float | None:
    """Best known robust - certified accuracy, where both are there."""
    return known.value - certified.value if known and certified else None


def best_reported(robust: Metric | None, corrections: Sequence[Correction]) -> Metric | None:
    """The lowest that a source or its corrections say, with the interval of its share of the same examples."""
    said = [c.robust_accuracy for c in corrections if c.action == "lower" and c.robust_accuracy is not None]
    if robust is None or not said or min(said) >= robust.value:
        return robust and robust.model_copy(update={"name": "best_known"})
    counted = known_share(round(min(said) * robust.n), robust.n)
    return counted.model_copy(update={"value": min(said)})  # a source's rounding is not ours


def corrected(corrections: Sequence[Correction]) -> list[str]:
    """Corrections that take an entry out of the ranking, in words."""
    names = {"invalidate": "invalidated", "unreliable": "unreliable"}
    return [f"{names[c.action]}: {c.reason}" for c in corrections if c.action in names]


def _remarks(corrections: Sequence[Correction]) -> list[str]:
    names = {"annotate": "remark", "lower": "lowered"}
    return [f"{names[c.action]}: {c.reason}" for c in corrections if c.action in names]


def _unverified(entry: Entry, minimum: int) -> list[str]:
    if entry.level is None:
        return ["unverified", *entry.doubts]
    below = [f"verified to level {entry.level}, the board ranks from {minimum} on"] if entry.level < minimum else []
    return [*below, *entry.doubts]


def _cost(record: Record) -> Cost:
    """What its examples needed: the passes of all stages, audit and overlap included."""
    forward = sum(s.forward + s.extra_forward for s in record.stages)
    backward = sum(s.backward + s.extra_backward for s in record.stages)
    return Cost(forward, backward, record.host.wall_seconds, record.host.device_name)


def _part_name(part: dict[str, Any] | None) -> str:
    """A defense's name and those of its modifiers."""
    part = part or {}
    modifiers = listed if isinstance(listed := part.get("modifiers"), list) else []
    names = [part.get("name", ""), *(m.get("name", "") for m in modifiers if isinstance(m, dict))]
    return " + ".join(name if isinstance(name, str) else json.dumps(name, sort_keys=True) for name in names)


def _fidelity(part: dict[str, Any] | None) -> str:
    """What every part of a defense says that it rests on."""
    known = (part or {}).get("fidelity")
    return "; ".join(f"{name}: {said}" for name, said in known.items()) if isinstance(known, dict) else ""


def _reasons_not_to_rank(record: Record) -> list[str]:
    """Words for every reason, none when the entry takes part in the ranking."""
    robust = record.metric("robust_accuracy")
    checks = [
        (record.status != "complete", record.status),
        (is_unreliable(record), "unreliable"),
        (bool(record.contradictions), "contradiction"),
        (record.request.model.randomized, "randomized"),
        (robust is None, "no robust accuracy"),
        (
            robust is not None and robust.n != record.request.data.n,
            f"covers {robust.n if robust else 0} of {record.request.data.n} examples",
        ),
    ]
    return [words for applies, words in checks if applies]
