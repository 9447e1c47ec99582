"""Verdicts as data: what was claimed, what came out, and the runs that say so."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from robustsuite.errors import InputError
from robustsuite.leaderboard.submission import add_run
from robustsuite.reproduction.claim import Claim, Setting, find_claim, known_claims
from robustsuite.reproduction.verdict import Comparison, Word, compare, overall
from robustsuite.results.arithmetic import Finding
from robustsuite.results.schema import Part
from robustsuite.results.store import json_bytes, read_json, write_atomic
from robustsuite.results.stored import check_stored, find_run
from robustsuite.results.validation import validated

RUNS = "runs"
_SAID = {"best": {"clean": "clean_accuracy", "robust": "robust_accuracy"}, "last": {"last_robust": "robust_accuracy"}}


class Outcome(Part):
    """One training: its quantities by name, and the run keys of what they were measured with."""

    seed: int
    quantities: dict[str, float]
    runs: dict[str, str]


class Report(Part):
    """A claim put to the test; the verdict follows from the outcomes."""

    name: str
    claim: Claim
    setting: Setting
    method: tuple[Outcome, ...]
    baseline: tuple[Outcome, ...]
    verdict: Word

    def comparisons(self) -> list[Comparison]:
        """Every expectation, compared again."""
        return _comparisons(self.claim, self.method, self.baseline)


def report_of(name: str, claim: Claim, setting: Setting, sides: Sequence[Sequence[dict[str, Any]]]) -> Report:
    """The report on what `Experiment.quantities` gave for both sides, each with its ``seed``."""
    method, baseline = ([_outcome(found) for found in side] for side in sides)
    verdict = overall(_comparisons(claim, method, baseline))
    return Report(
        name=name, claim=claim, setting=setting, method=tuple(method), baseline=tuple(baseline), verdict=verdict
    )


def _comparisons(claim: Claim, *sides: Sequence[Outcome]) -> list[Comparison]:
    method, baseline = ([outcome.quantities for outcome in side] for side in sides)
    return [compare(expectation, method, baseline) for expectation in claim.expects]


def _outcome(found: dict[str, Any]) -> Outcome:
    numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and k != "seed"}
    return Outcome(seed=found["seed"], quantities=numbers, runs=found["runs"])


def publish(report: Report, runs: Path, folder: Path) -> list[Path]:
    """Write a report and the records that it rests on into ``folder``, and the table of all reports; the new files."""
    written: list[Path] = []
    for outcome in (*report.method, *report.baseline):
        for key in outcome.runs.values():
            written += add_run(find_run(runs / key), folder / RUNS)[1]
    path = folder / f"{report.name}.json"
    body = report.model_dump(mode="json", by_alias=True)
    write_atomic(path, json_bytes(body, str(path)))
    table = folder / "README.md"
    write_atomic(table, markdown(read_reports(folder)).encode())
    return [*written, path, table]


def read_reports(folder: Path) -> list[Report]:
    """All reports of a folder, by name; raises `InputError` for a file that is none."""
    paths = sorted(folder.glob("*.json"))
    return [validated(Report, read_json(path), str(path), "a report on a claim") for path in paths]


def check_reports(folder: Path) -> Iterator[Finding]:
    """Whether every verdict follows from its outcomes, these from the records, and claims are those of the suite."""
    reports = read_reports(folder)
    if not reports:
        raise InputError(f"{folder} holds no report on a claim; write one with `robustsuite reproduce NAME --to DIR`.")
    for report in reports:
        claim, setting = find_claim(report.name) if report.name in known_claims().claims else (None, None)
        same = (claim, setting) == (report.claim, report.setting)
        yield Finding(report.name, same, "the claim is the suite's" if same else "the suite states another claim")
        verdict = overall(report.comparisons())
        yield Finding(report.name, verdict == report.verdict, f"{verdict} follows from the outcomes")
        for outcome in (*report.method, *report.baseline):
            yield from _checked(folder, report.name, outcome)
    table = folder / "README.md"
    fresh = table.exists() and table.read_text(encoding="utf-8") == markdown(reports)
    yield Finding("README.md", fresh, "the table is that of the reports" if fresh else "is not what the reports give")


def _checked(folder: Path, name: str, outcome: Outcome) -> Iterator[Finding]:
    for which, key in outcome.runs.items():
        run = find_run(folder / RUNS / f"{key}.json")
        bad = [f for f in check_stored(run) if not f.ok]
        wrong = [
            f"{quantity} {outcome.quantities.get(quantity)}"
            for quantity, metric in _SAID[which].items()
            if (there := run.record.metric(metric)) is None or there.value != outcome.quantities.get(quantity)
        ]
        detail = "; ".join([*(f"{f.name}: {f.detail}" for f in bad), *(f"the record does not say {w}" for w in wrong)])
        yield Finding(f"{name}, seed {outcome.seed}, {which}", not detail, detail or f"run {key} holds and says so")


def markdown(reports: Sequence[Report]) -> str:
    """A table of all verdicts, and below it the numbers."""
    counts = {word: sum(r.verdict == word for r in reports) for word in get_args(Word)}
    lines = [
        "# Claims put to the test",
        "",
        "Written by `robustsuite reproduce NAME --to DIR`, checked by `robustsuite reproduce --check DIR`. Method and "
        "baseline have the same budget, data and seeds, and the hyper-parameters that they publish; nothing is tuned. "
        "Published epochs are taken as shares of the training, published step sizes as multiples of eps. The interval "
        "is Student's 95 % interval of the mean difference over the seeds; a claim is reproduced where all of it lies "
        "on the claimed side, contradicted where all of it lies on the other. At this scale neither says much of the "
        "scale of the papers.",
        "",
        ", ".join(f"{count} {word}" for word, count in counts.items()) + ".",
        "",
        "| method | against | setting | claim | verdict |",
        "|---|---|---|---|---|",
    ]
    for report in reports:
        claim = report.claim
        cells = [claim.method.name, claim.baseline.name, f"{report.setting.title}, {report.setting.threat}"]
        lines.append(f"| {' | '.join([*cells, f'{claim.claim} ({claim.source})', report.verdict])} |")
    for report in reports:
        lines += ["", f"**{report.name}**", "", *(f"- {comparison}" for comparison in report.comparisons())]
    return "\n".join(lines) + "\n"
