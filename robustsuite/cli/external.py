"""`robustsuite verify --adv`: what somebody else's adversarial images do to a run's numbers."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.cli import console
from robustsuite.errors import ContradictionError, VerificationError

if TYPE_CHECKING:
    from robustsuite.cli.loading import Subject
    from robustsuite.evaluation.external import ExternalEvaluation, SetReport
    from robustsuite.results.schema import Metric
    from robustsuite.results.stored import StoredRun

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Saying:
    """Where a correction goes, and who says it when."""

    folder: Path
    board: str
    by: str
    utc: str | None


def judge(stored: "StoredRun", subject: "Subject", path: Path, saying: Saying | None, *, as_json: bool) -> None:
    """Judge the images in a file, say what they change, and write the correction.

    Raises `VerificationError` when the run is not what it says or the model and data are others, `ContradictionError`
    when an image refutes a certificate; the correction is written all the same.
    """
    from robustsuite.evaluation.external import evaluate_images
    from robustsuite.evaluation.external_images import read_images

    _check(stored, subject)
    record, ledger = stored.record, stored.ledger()
    found = evaluate_images(
        record,
        ledger,
        subject.classifier,
        subject.data,
        read_images(path, subject.data),
        _corrected(stored, saying),
    )
    written = _correct(stored, path, found, saying) if saying and found.newly else None
    document = _document(stored, path, found, written)
    if not as_json:
        _say(found, str(record.request.threat.eps), record.request.threat.norm, written)
    if found.contradicted:
        first, more = found.contradicted[0], len(found.contradicted) - 1
        error = ContradictionError(
            f"position {first.position} of run {record.run_key} is certified by '{first.certified_by}' "
            f"({first.guarantee}, radius {first.radius:g}), but an image of {path} breaks it at distance "
            f"{first.distance:g}{f', and {more} more are so' if more else ''}. The certifier is unsound, or the model "
            "here is not the one that was certified."
        )
        error.document = document
        raise error
    if as_json:
        console.emit(document)


def _check(stored: "StoredRun", subject: "Subject") -> None:
    """Level 0, and the identity of weights and data: nothing can be said of anything else."""
    from robustsuite.results.stored import check_stored

    bad = [f"{f.name}: {f.detail}" for f in check_stored(stored) if not f.ok]
    request = stored.record.request
    if request.model.weights_sha256 != subject.part.weights_sha256:
        bad.append("weights: these are not the run's; give --model PATH")
    if request.data.fingerprint != subject.data.fingerprint:
        bad.append("data: this is not the run's; give --data DATA")
    if bad:
        raise VerificationError("; ".join(bad))


def _corrected(stored: "StoredRun", saying: Saying | None) -> list[int]:
    """What corrections have broken before."""
    from robustsuite.results.statements import corrections

    folder = saying.folder if saying else stored.root
    board = saying.board if saying else stored.board
    said = corrections(folder, board, stored.record.run_key) if folder and board else []
    n = stored.record.request.data.n
    return sorted({p for c in said if c.action == "lower" for p in c.examples if 0 <= p < n})


def _correct(stored: "StoredRun", path: Path, found: "ExternalEvaluation", saying: Saying) -> Path:
    from robustsuite.results.published import Correction
    from robustsuite.results.schema import FileRef
    from robustsuite.results.statements import utc_now, write_correction

    body, threat = path.read_bytes(), stored.record.request.threat
    evidence = FileRef(path=path.name, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body), role="adversarials")
    return write_correction(
        saying.folder,
        Correction(
            board=saying.board,
            entry=stored.record.run_key,
            number=1,
            utc=saying.utc or utc_now(),
            by=saying.by,
            action="lower",
            reason=f"adversarial images inside {threat.norm}:{threat.eps} break {len(found.newly)} more examples: "
            f"{found.before.value:.2%} becomes {found.after.value:.2%}",
            examples=found.newly,
            evidence=evidence,
        ),
    )


def _document(stored: "StoredRun", path: Path, found: "ExternalEvaluation", written: Path | None) -> dict[str, Any]:
    return {
        "run_key": stored.record.run_key,
        "file": str(path),
        "ok": not found.contradicted,
        "sets": [dataclasses.asdict(s) for s in found.sets],
        "before": found.before.model_dump(mode="json"),
        "after": found.after.model_dump(mode="json"),
        "newly_broken": list(found.newly),
        "contradicted": [dataclasses.asdict(c) for c in found.contradicted],
        "correction": str(written) if written else None,
    }


def _say(found: "ExternalEvaluation", eps: str, norm: str, written: Path | None) -> None:
    for report in found.sets:
        console.say(_in_words(report, f"{norm}:{eps}"))
    console.say(f"Best known robust accuracy of this run: {_figure(found.before)} before, {_figure(found.after)} now.")
    if found.newly:
        shown = ", ".join(map(str, found.newly[:_SHOWN])) + (", ..." if len(found.newly) > _SHOWN else "")
        console.say(f"Newly broken: {len(found.newly)} (positions {shown}).")
    else:
        console.say("Nothing is newly broken: there is nothing to correct.")
    for c in found.contradicted[:_SHOWN]:
        console.say(
            f"CONTRADICTION: position {c.position} is certified by '{c.certified_by}' ({c.guarantee}) with radius "
            f"{c.radius:g} and broken at distance {c.distance:g}."
        )
    if written:
        console.say(f"Corrected in {written}.")


def _in_words(report: "SetReport", threat: str) -> str:
    text = f"{report.name}: {report.fooled} of {report.images} images are adversarial examples inside {threat}"
    if report.outside_ball:
        text += f"; {report.outside_ball} lie outside of the ball, the furthest at {report.furthest:.6g}"
    if report.outside_box:
        text += f"; {report.outside_box} lie outside of the box, pixels go from {report.least:.6g} to {report.most:.6g}"
    return text + "."


def _figure(metric: "Metric") -> str:
    return f"{metric.value:.2%} [{metric.ci95[0]:.2%}, {metric.ci95[1]:.2%}]"
