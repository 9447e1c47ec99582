"""`robustsuite reproduce`: a paper's claim, put to the test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsuite.cli import checks, console
from robustsuite.cli.options import Json
from robustsuite.errors import UsageError

if TYPE_CHECKING:
    from robustsuite.reproduction.report import Report


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A claim; leave it out to list them.")] = None,
    seeds: Annotated[int, typer.Option(min=3, help="How many seeds both sides are trained with.")] = 3,
    images: Annotated[
        str | None, typer.Option(metavar="DATA", help="The images, for claims whose data does not come with the suite.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Trainings and runs.")] = Path("reproduction"),
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Publish verdict and records here.")] = None,
    check: Annotated[Path | None, typer.Option("--check", metavar="DIR", help="Check published verdicts.")] = None,
    as_json: Json = False,
) -> None:
    """Train a method and the baseline of its paper at one budget, evaluate both, and say whether the claim holds.

    Killed at any moment, the same command goes on where it was.
    """
    if check is not None:
        from robustsuite.reproduction.report import check_reports

        checks.tell(check, list(check_reports(check)), as_json)
        return
    if name is None:
        _list(as_json)
        return
    from robustsuite.reproduction.claim import find_claim
    from robustsuite.reproduction.experiment import Experiment
    from robustsuite.reproduction.report import publish, report_of

    claim, setting = find_claim(name)
    if setting.data is None and images is None:
        raise UsageError(f"the claim '{name}' is about {setting.title}, which does not come with the suite: --images.")
    experiment = Experiment(claim, setting, out, images)
    sides: list[list[dict]] = [[], []]
    for seed in range(seeds):
        for found, side in zip(sides, (claim.method, claim.baseline), strict=True):
            found.append(experiment.quantities(side, seed, console.log) | {"seed": seed})
    report = report_of(name, claim, setting, sides)
    written = publish(report, out / "runs", to) if to is not None else []
    if as_json:
        console.emit(report.model_dump(mode="json", by_alias=True) | {"files": [str(path) for path in written]})
        return
    _show(report)
    for path in written:
        console.say(f"wrote {path}")


def _show(report: "Report") -> None:
    claim = report.claim
    console.say(f"Claim: {claim.claim} ({claim.source})")
    against = f"{claim.method.name} against {claim.baseline.name}"
    console.say(f"{against}, {len(report.method)} seeds, {report.setting.title}, {report.setting.threat}:")
    for comparison in report.comparisons():
        console.say(f"  {comparison}")
    console.say(f"Verdict: {report.verdict}")


def _list(as_json: bool) -> None:
    from robustsuite.reproduction.claim import known_claims

    claims = known_claims().claims
    if as_json:
        console.emit({name: claim.model_dump(mode="json", by_alias=True) for name, claim in sorted(claims.items())})
        return
    for name, claim in sorted(claims.items()):
        console.say(f"{name}: {claim.claim} ({claim.source}; {claim.method.name} against {claim.baseline.name})")
