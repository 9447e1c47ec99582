"""What the certificates of a run say beyond eps: the certified-accuracy curve, abstentions, the average radius."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.cli import console, values
from robustsuite.errors import UsageError

if TYPE_CHECKING:
    from robustsuite.results.curve import Proofs
    from robustsuite.results.schema import Metric, Record

ALL = "all"
_UNRANKED = "not for ranking: a constant classifier's grows without limit; compare certified accuracy at fixed radii"


def document(directory: Path, record: "Record", radii: str | None = None) -> dict[str, Any] | None:
    """The curve as JSON, at ``radii`` too (``0.1,0.2``, or ``all`` with every example); None where nothing is proved.

    Raises `UsageError` when radii are asked for that the run cannot tell.
    """
    from robustsuite.results.curve import AT, average_certified_radius, full_curve, read_proofs
    from robustsuite.results.statistics import metric

    proofs = read_proofs(directory, record)
    if proofs is None:
        if radii:
            raise UsageError(f"{directory} has no certificates to take --radii from: no certifier ran, or no ledger.")
        return None
    stages = [s for s in record.stages if s.kind == "certifier" and s.n_in]
    abstained = metric("abstention_rate", int(proofs.abstained.sum()), len(proofs.radius))
    body = {
        "grid": [_point(m.name.removeprefix(AT), m) for m in record.metrics if m.name.startswith(AT)],
        "largest": float(proofs.radius.max()),
        "abstained": abstained.model_dump(mode="json"),
        "guarantees": {s.name: s.guarantee for s in stages},
        "passes_per_example": {s.name: (s.forward + s.backward) / s.n_in for s in stages},
        "average_certified_radius": {"value": average_certified_radius(proofs.radius), "note": _UNRANKED},
    }
    if radii == ALL:
        body["curve"] = [_point(r, m) for r, m in full_curve(proofs.radius)]
        body["examples"] = list(proofs.rows())
    elif radii:
        body["at"] = _asked(proofs, radii)
    return body


def parse_radii(text: str) -> list[tuple[str, float]]:
    """``0.1,2/255`` as texts and numbers; raises `UsageError`."""
    from robustsuite.threat import Eps

    try:
        return [(radius, float(Eps.parse(radius))) for radius in values.names([text])]
    except UsageError as error:
        raise UsageError(f"--radii wants numbers such as 0.1,0.25 or 2/255, or 'all'; got '{text}'.") from error


def parse_family(text: str) -> tuple[str, float]:
    """``holm`` or ``holm:0.01`` as the rule and the failure probability, 0.001 by default; raises `UsageError`."""
    rule, _, probability = text.partition(":")
    try:
        return rule, float(probability or 0.001)
    except ValueError as error:
        raise UsageError(f"--family wants holm, bonferroni or holm:0.01, got '{text}'.") from error


def together(directory: Path, record: "Record", family: str, radii: str | None = None) -> dict[str, Any]:
    """Certified accuracy of all certificates together as JSON: at ``radii``, else on the norm's grid and at eps."""
    from robustsuite.evaluation.family_wise import certified_together
    from robustsuite.results.curve import GRID

    threat = record.request.threat
    text = ",".join(dict.fromkeys([threat.eps, *GRID[threat.norm]])) if radii in (None, ALL) else radii
    at = sorted(parse_radii(text), key=lambda point: point[1])
    found = certified_together(directory, record, [r for _, r in at], *parse_family(family))
    points = [_point(name, metric) for (name, _), metric in zip(at, found.metrics, strict=True)]
    return {"rule": found.rule, "failure_probability": found.failure_probability, "tested": found.tested, "at": points}


def show_together(directory: Path, record: "Record", family: str, radii: str | None = None) -> None:
    """Print them."""
    body = together(directory, record, family, radii)
    console.say(
        f"certified accuracy of {body['tested']} certificates together ({body['rule']}): at each radius alone, one or "
        f"more of them are false with probability at most {body['failure_probability']:g}"
    )
    _table(body["at"] if radii else _until_zero(body["at"]))


def _asked(proofs: "Proofs", radii: str) -> list[dict[str, Any]]:
    from robustsuite.results.curve import AT, certified_at
    from robustsuite.results.statistics import metric

    n = len(proofs.radius)
    return [_point(text, metric(AT + text, certified_at(proofs.radius, r), n)) for text, r in parse_radii(radii)]


def _point(radius: str | float, metric: "Metric") -> dict[str, Any]:
    return {"radius": radius, "value": metric.value, "ci95": list(metric.ci95), "n": metric.n}


def show(directory: Path, record: "Record", radii: str | None = None) -> None:
    """Print the curve, on the fixed grid or at ``radii``; nothing for certificates at eps alone."""
    from robustsuite.results.curve import AT

    if not radii and not any(m.name.startswith(AT) for m in record.metrics):
        return
    body = document(directory, record, radii)
    if body is None:
        return
    points = body.get("curve", body.get("at", body["grid"]))
    guarantees = ", ".join(sorted(set(body["guarantees"].values())))
    console.say(f"certified accuracy by radius ({record.request.threat.norm}, {guarantees}):")
    _table(_until_zero(points) if points is body["grid"] else points)
    rate = body["abstained"]
    count = round(rate["value"] * rate["n"])
    passes = ", ".join(f"{p:,.0f} passes an example by {name}" for name, p in body["passes_per_example"].items())
    console.say(f"abstained on {count} of {rate['n']} ({100 * rate['value']:.1f} %); {passes}")
    average = body["average_certified_radius"]
    console.say(f"average certified radius {average['value']:.4f} ({average['note']})")


def _table(points: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("radius", justify="right")
    table.add_column("at least", justify="right")
    table.add_column("95 % interval")
    for p in points:
        radius = p["radius"] if isinstance(p["radius"], str) else f"{p['radius']:.6g}"
        lower, upper = p["ci95"]
        table.add_row(radius, f"{100 * p['value']:.1f} %", f"[{100 * lower:.1f}, {100 * upper:.1f}]")
    console.stdout().print(table)


def _until_zero(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The grid up to the first radius at which nothing is proved."""
    last = next((i for i, p in enumerate(points) if p["value"] == 0), len(points) - 1)
    return points[: last + 1]
