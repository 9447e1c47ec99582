"""The page of one entry: everything its record says, put into tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Board, Row
from robustsuite.leaderboard.site import words
from robustsuite.leaderboard.site.command import command
from robustsuite.leaderboard.site.curves import CurveChart, entry_charts
from robustsuite.leaderboard.site.pictures import Shown, shown
from robustsuite.results.schema import Flag, Metric, Record, StagePlan, StageResult

_MOST_PICTURES = 12
_TITLES = {
    "clean_accuracy": "Clean accuracy",
    "robust_accuracy": "Robust accuracy, own attacks",
    "certified_accuracy": "Certified accuracy",
}


@dataclass(frozen=True)
class Number:
    """One metric as a line of the table of numbers."""

    title: str
    value: str
    interval: str
    n: str


@dataclass(frozen=True)
class Stage:
    """One stage: its plan with every parameter, and what it did."""

    result: StageResult
    plan: StagePlan | None
    params: str
    seconds: str


@dataclass(frozen=True)
class Entry:
    """What the template of an entry's page shows."""

    row: Row
    page: str
    name: str
    numbers: list[Number]
    stages: list[Stage]
    flags_raised: list[Flag]
    flags_passed: list[Flag]
    facts: list[tuple[str, list[tuple[str, str]]]]
    """Groups of (name, value): model, data, run, software."""
    pictures: list[Shown]
    charts: list[CurveChart]
    command: list[str]
    record: Record | None


def entry(board: Board, row: Row, page: str, protocol_file: str) -> Entry:
    """The page's content; ``protocol_file`` is the file that the command names."""
    record = row.record
    flags = record.flags if record else row.imported.flags if row.imported else ()
    return Entry(
        row=row,
        page=page,
        name=visible(row.label, None),
        numbers=_numbers(board, row),
        stages=_stages(record) if record else [],
        flags_raised=[f for f in flags if f.raised],
        flags_passed=[f for f in flags if not f.raised],
        facts=_facts(row),
        pictures=[shown(p) for p in row.gallery[:_MOST_PICTURES]],
        charts=entry_charts(board, page, row.curves),
        command=[visible(part, None) for part in command(record, protocol_file)] if record else [],
        record=record,
    )


def _numbers(board: Board, row: Row) -> list[Number]:
    digits = words.decimals(board)
    listed: list[tuple[str, Metric | None]] = [("Best known robust accuracy", row.best_known)]
    source = row.record.metrics if row.record else row.imported.metrics if row.imported else row.metrics
    listed += [(_TITLES.get(m.name, _readable(m.name)), m) for m in source]
    numbers = [
        Number(title, f"{words.percent(m.value, digits)} %", words.interval(m, digits), f"{m.n:,}")
        for title, m in listed
        if m is not None
    ]
    if row.gap is not None:
        numbers.append(Number("Gap, neither broken nor proved", f"{words.percent(row.gap, digits)} %", "", ""))
    if row.imported and row.imported.average_radius is not None:
        numbers.append(Number("Average certified radius", f"{row.imported.average_radius:.4g}", "", ""))
    return numbers


def _readable(name: str) -> str:
    plain, _, at = name.partition("@")
    words_ = plain.replace("_", " ").capitalize()
    return visible(f"{words_} at radius {at}" if at else words_, 80)


def _stages(record: Record) -> list[Stage]:
    plans = {plan.name: plan for plan in record.request.protocol.stages}
    return [_stage(result, plans.get(result.name), record) for result in record.stages]


def _stage(result: StageResult, plan: StagePlan | None, record: Record) -> Stage:
    seconds = record.host.stage_seconds.get(result.name)
    params = ", ".join(f"{name} = {_text(value)}" for name, value in plan.params.items()) if plan else ""
    return Stage(result, plan, visible(params, None), "" if seconds is None else words.duration(seconds))


def _facts(row: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    record, imported = row.record, row.imported
    groups: list[tuple[str, Mapping[str, Any]]] = []
    if imported:
        body = imported.model_dump(mode="json", exclude={"metrics", "curves", "flags", "details", "link"})
        groups += [("As the source says", body), ("More from the source", imported.details)]
    if record:
        request, made = record.request, record.provenance
        run = request.model_dump(mode="json", exclude={"model", "data", "protocol", "threat", "plugins"})
        keys = {"run_key": record.run_key, "outcome_sha256": record.outcome_sha256}
        host = record.host.model_dump(mode="json", exclude={"stage_seconds", "hostname_sha256"})
        groups = [
            ("Model", request.model.model_dump(mode="json", exclude={"defense"})),
            ("Training, as its author says", request.model.defense or {}),
            ("Data", request.data.model_dump(mode="json")),
            ("Threat model", request.threat.model_dump(mode="json")),
            ("Run", {**keys, "content_sha256": record.content_sha256, **run}),
            ("Plugin files (sha256)", request.plugins),
            ("Software", {"robustsuite": made.suite_version, "python": made.python, **made.packages}),
            ("Source tree", made.git),
            ("Determinism", made.determinism),
            ("Machine and time", host),
        ]
    listed = [(title, [(visible(k, 60), visible(_text(v), 2000)) for k, v in _flat(body)]) for title, body in groups]
    return [(title, rows) for title, rows in listed if rows]


def _flat(body: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted names; what is empty is left out."""
    flat: list[tuple[str, Any]] = []
    for key, value in body.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            flat.append((f"{prefix}{key}", value))
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
