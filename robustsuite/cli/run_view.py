"""A run as people and as programs read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.cli import certificates_view, console, radii_view

if TYPE_CHECKING:
    from rich.table import Table

    from robustsuite.evaluation.evaluator import Run
    from robustsuite.results.schema import Metric, Record, StageResult, TailPart

_BOUNDS = {
    "robust_accuracy": "at most",
    "certified_accuracy": "at least",
    "expected_robust_accuracy": "at most",
    "majority_robust_accuracy": "at most",
    "worst_of_k_robust_accuracy": "at most",
}


def show(run: "Run", *, as_json: bool, recalled: bool = False) -> None:
    """What a call of the evaluator gave: a sealed run (``recalled``: it was there before), or a shard of one."""
    if run.record is None:
        _show_shard(run, as_json)
    elif as_json:
        console.emit(document(run.record, run.directory, resumed=run.resumed))
    else:
        note = "already complete" if recalled else "resumed" if run.resumed else ""
        _show_record(run.record, run.directory, note)


def show_stored(
    directory: Path, *, as_json: bool = False, radii: str | None = None, family: str | None = None
) -> dict[str, Any] | None:
    """Show a sealed run read back from its directory (or from the record's file), or return its JSON document.

    ``radii``: at which to give the certified accuracy, ``0.1,0.2`` or ``all``. ``family``: ``holm`` or ``bonferroni``
    over the certificates, ``holm:0.01`` for another failure probability than 0.001.
    """
    from robustsuite.results.records import load_record

    record = load_record(directory)
    home = directory if directory.is_dir() else directory.parent
    if as_json:
        body = document(record, home, resumed=True, radii=radii)
        return {**body, "together": radii_view.together(home, record, family, radii)} if family else body
    _show_record(record, home, radii=radii)
    if family:
        radii_view.show_together(home, record, family, radii)
    return None


def document(record: "Record", directory: Path, *, resumed: bool, radii: str | None = None) -> dict[str, Any]:
    """The run as one JSON document."""
    from robustsuite.results.certificates import certificate_diagnostics

    body = record.model_dump(mode="json")
    return {
        "run_key": record.run_key,
        "run_dir": str(directory),
        "status": record.status,
        "resumed": resumed,
        "metrics": body["metrics"],
        "threat": body["request"]["threat"],
        "protocol": {"name": record.request.protocol.name, "version": record.request.protocol.version},
        "stages": body["stages"],
        "flags": body["flags"],
        "unreliable": record.unreliable,
        "tail": body["tail"],
        "certificates": certificate_diagnostics(directory, record),
        "radii": radii_view.document(directory, record, radii),
        "contradictions": body["contradictions"],
        "stage_seconds": body["host"]["stage_seconds"],
        "record": str(directory / "record.json"),
    }


def percent(metric: "Metric | None") -> str:
    """``77.5 % [71.1, 83.1]``, empty where there is no such metric."""
    if metric is None:
        return ""
    lower, upper = metric.ci95
    return f"{100 * metric.value:.1f} % [{100 * lower:.1f}, {100 * upper:.1f}]"


def _show_shard(run: "Run", as_json: bool) -> None:
    blocks = f"{run.missing_blocks} block{'s' if run.missing_blocks != 1 else ''}"
    message = f"this shard is done; {blocks} of other shards {'are' if run.missing_blocks != 1 else 'is'} missing."
    if as_json:
        body = {"run_key": run.directory.name, "run_dir": str(run.directory), "status": "shard"}
        console.emit({**body, "resumed": run.resumed, "missing_blocks": run.missing_blocks, "message": message})
        return
    console.say(f"{message}\nRun directory: {run.directory}")
    console.say("Next: run the other shards; the last one seals the record (the command without --shard does too).")


def _show_record(record: "Record", directory: Path, note: str = "", radii: str | None = None) -> None:
    request, out = record.request, console.stdout()
    subset = "" if request.data.subset == "all" else f" ({request.data.subset})"
    wrap = request.model.wrap or {}
    subject = f"{wrap['name']}({request.model.name})" if wrap else request.model.name
    state = "" if record.status == "complete" else f", {record.status.upper()}"
    console.say(
        f"{subject} on {request.data.name}{subset}, n = {request.data.n}, {request.threat.norm} eps "
        f"{request.threat.eps}, protocol {request.protocol.name} version {request.protocol.version}{state}"
        f"{f' ({note})' if note else ''}"
    )
    if request.model.eot:
        eot, draws = request.model.eot, request.model.draws
        console.say(f"a random model: attacks see means over {eot} draws, verdicts count K = {draws} others")
    out.print(_metrics(record))
    if record.tail:
        console.say(_tail(record.tail))
    out.print(_stages(record))
    certificates_view.show(directory, record)
    radii_view.show(directory, record, radii)
    for flag in record.flags:
        if flag.raised:
            console.say(f"flag {flag.name}: {flag.evidence}. {flag.remedy}".rstrip())
    if record.unreliable:
        console.say("unreliable: gradient attacks cannot be trusted on this model; no board ranks this run.")
    for c in record.contradictions:
        console.say(
            f"contradiction: example {c.example} is certified by '{c.certified_by}' (radius {c.radius:g}) and broken "
            f"by '{c.broken_by}' (distance {c.distance:g}); its x_adv is in {directory}/adversarials/{c.broken_by}"
        )
    console.say(f"Run directory: {directory}")
    if record.status == "complete":
        console.say(f"Next: robustsuite verify {directory}, or robustsuite board build {directory.parent}")


def _metrics(record: "Record") -> "Table":
    from rich import box
    from rich.table import Table

    from robustsuite.results.curve import AT

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for metric in record.metrics:
        if metric.name.startswith(AT):  # the curve has a table of its own
            continue
        name = metric.name.replace("_", " ")
        table.add_row(name, _BOUNDS.get(metric.name, ""), percent(metric), f"n = {metric.n}")
    return table


def _stages(record: "Record") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for title in ("in", "broke", "alone", "certified", "errors", "audited", "forward", "backward", "seconds"):
        table.add_column(title, justify="right")
    table.add_column("note")
    seconds = record.host.stage_seconds
    for s in record.stages:
        counts = [f"{c:,}" for c in (s.n_in, s.n_broken, s.n_certified, s.n_error, s.n_audited, s.forward, s.backward)]
        counts.insert(2, "" if s.n_exclusive is None else f"{s.n_exclusive:,}")
        took = f"{seconds.get(s.name, 0.0):.1f}"
        table.add_row(s.name, *counts, took, _note(s))
    return table


def _note(stage: "StageResult") -> str:
    if stage.status != "done":
        return f"{stage.status}: {stage.reason}"
    return f"{stage.n_refused} refused" if stage.n_refused else stage.guarantee


def _tail(tail: "TailPart") -> str:
    """What the sampled tail says, in a sentence."""
    seen = f"the tail ran on {tail.sampled} of {tail.survivors} survivors and broke {tail.broken}"
    if tail.sampled == tail.survivors:
        why = ", so many in its sample that the rest followed" if tail.rest_run else ""
        return f"{seen}{why}: nothing is estimated."
    return (
        f"{seen}: the whole protocol's robust accuracy is estimated at {100 * tail.estimate:.1f} %, at least "
        f"{100 * tail.lower:.1f} % (95 %, one-sided), at most {100 * tail.upper:.1f} %."
    )
