"""`robustsuite verify`: check a run again, from its files alone up to running all of it again."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console, external, values
from robustsuite.cli.loading import Subject, load_plugins, spec_of, subject_of, wrapped
from robustsuite.cli.options import Device, Json, Plugins
from robustsuite.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from robustsuite.results.arithmetic import Finding
    from robustsuite.results.schema import Record
    from robustsuite.results.stored import StoredRun

_AGAIN, _IMAGES, _SAY = "Running again", "Somebody's adversarial images", "Publishing what was found"


def verify(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, its record.json, or a published RUN_KEY.json.")
    ],
    level: Annotated[
        int,
        typer.Option(
            min=0,
            max=3,
            help="0: files and arithmetic. 1: weights, clean predictions, adversarial examples, some certificates. "
            "2: part of it run again. 3: all of it.",
        ),
    ] = 1,
    model: Annotated[str | None, typer.Option(metavar="PATH", help="Where the model's file lies now.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="DATA", help="Where the data lies now.")] = None,
    device: Device = "cpu",
    plugin: Plugins = [],  # noqa: B006  (typer's way to say: none given)
    certificates: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, rich_help_panel=_AGAIN, help="Certificates of each certifier to prove again, at least."
        ),
    ] = 20,
    examples: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=_AGAIN, help="Examples that level 2 runs again, in whole blocks."
        ),
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            min=0, rich_help_panel=_AGAIN, help="Chooses level 2's blocks, with the record's hash: take your own."
        ),
    ] = 0,
    adv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_IMAGES,
            help="Judge these instead: AutoAttack's .pt, .npy, .npz (x_adv, position) or .safetensors.",
        ),
    ] = None,
    correct: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=_SAY, help="Write a correction for what --adv newly breaks."),
    ] = None,
    attest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=_SAY, help="Write an attestation, if everything held."),
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", rich_help_panel=_SAY, help="Who says so.")] = "",
    board: Annotated[
        str | None,
        typer.Option(metavar="B", rich_help_panel=_SAY, help="The run's board, where its place does not tell."),
    ] = None,
    utc: Annotated[
        str | None,
        typer.Option(metavar="TIME", rich_help_panel=_SAY, help="2030-01-31T12:00:00Z; now, if not said."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run again, on a freshly loaded model and data.

    Level 0 needs neither. Certificates and level 2's blocks are chosen by the record's hash. On the machine that made
    the run everything must agree to the bit; elsewhere as many outcomes may differ as an exact binomial bound allows,
    which is printed. With --adv, images that somebody else made are checked, and lower the run's robust accuracy where
    they break what nobody has broken. Exits with 6 when something does not hold.
    """
    from robustsuite.results.statements import check_time
    from robustsuite.results.stored import find_run

    if bool(attest or correct) != bool(by):
        raise UsageError("--attest DIR and --correct DIR need --by NAME, and --by one of them.")
    if (correct and not adv) or (attest and adv):
        raise UsageError("--correct goes with --adv FILE, --attest with a verification without it.")
    stored = find_run(run)
    home = _board(stored, board) if attest or correct else ""
    if utc:
        check_time(utc)
    attested = _to_attest(attest, home, stored.record, level) if attest else None
    if adv is not None:
        subject = _load(stored.record, model, data, values.device_of(device), load_plugins(plugin))
        saying = external.Saying(correct, home, by, utc) if correct else None
        external.judge(stored, subject, adv, saying, as_json=as_json)
        return
    if level == 0:
        from robustsuite.results.stored import check_stored

        findings = check_stored(stored)
    else:
        subject = _load(stored.record, model, data, values.device_of(device), load_plugins(plugin))
        findings = _with_model(run, subject, level, certificates, examples, seed)
    ok = all(f.ok for f in findings)
    written = _attest(attested, attest, home, level, by, utc, findings) if attest and attested and ok else None
    _show(stored, level, findings, written, as_json=as_json)


def _with_model(
    run: Path, subject: Subject, level: int, certificates: int, examples: int, seed: int
) -> "list[Finding]":
    from robustsuite.evaluation.recertify import recertify
    from robustsuite.evaluation.rerun import prepare_again, rerun_all, rerun_blocks
    from robustsuite.evaluation.verify import verify as check

    model, data = subject.classifier, subject.data
    record, findings = check(run, model, data, subject.part.weights_sha256)
    if not all(f.ok for f in findings):  # on other weights or data there is nothing to run again
        return findings
    findings += recertify(run, model, data, certificates)
    if level > 1:
        prepared = prepare_again(record, model, data, subject.plugins)
        with console.progress() as progress:
            if level == 2:
                findings += rerun_blocks(run, prepared, examples, seed, progress)
            else:
                findings += rerun_all(run, prepared, progress)
    return findings


def _show(
    stored: "StoredRun", level: int, findings: "list[Finding]", attestation: Path | None, *, as_json: bool
) -> None:
    ok, key = all(f.ok for f in findings), stored.record.run_key
    if as_json:
        lines = [dataclasses.asdict(f) for f in findings]
        document = {"run_key": key, "run_dir": str(stored.folder), "level": level, "ok": ok, "findings": lines}
        console.emit(document | ({"attestation": str(attestation)} if attestation else {}))
        raise typer.Exit(0 if ok else 6)
    for f in findings:
        console.say(str(f))
    if not ok:
        raise VerificationError("; ".join(f"{f.name}: {f.detail}" for f in findings if not f.ok))
    console.say(f"Run {key} holds.")
    if attestation:
        console.say(f"Attested in {attestation}.")


def _attest(
    record: "Record",
    folder: Path,
    board: str,
    level: int,
    by: str,
    utc: str | None,
    findings: "list[Finding]",
) -> Path:
    import robustsuite
    from robustsuite.results.published import Attestation
    from robustsuite.results.statements import utc_now, write_attestation

    said = Attestation(
        run_key=record.run_key,
        content_sha256=record.content_sha256,
        level=level,
        by=by,
        utc=utc or utc_now(),
        suite_version=robustsuite.__version__,
        findings=tuple(f"{f.name}: {f.detail}" for f in findings),
    )
    return write_attestation(folder, board, said)


def _to_attest(folder: Path, board: str, record: "Record", level: int) -> "Record":
    """The record that the attestation will be of. What speaks against it is said before anything is run."""
    from robustsuite.results.statements import attestation_path, published_as

    path = attestation_path(folder, board, record.run_key, level)
    if path.exists():
        raise UsageError(f"{path} is there already, and is never edited: leave --attest out, or give another --level.")
    return published_as(folder, board, record)


def _board(stored: "StoredRun", named: str | None) -> str:
    """The board that a statement is about."""
    if named and stored.board and named != stored.board:
        raise UsageError(f"{stored.path} is published on the board {stored.board}, not on {named}; leave --board out.")
    board = named or stored.board
    if not board:
        raise UsageError(f"{stored.path} is not in a published folder: say with --board B which board it is about.")
    return board


def _load(record: "Record", model: str | None, data: str | None, device: str, plugins: dict[str, str]) -> Subject:
    from robustsuite.data.reference import load_data
    from robustsuite.models.randomized import sampled

    part = record.request.data
    source = data or part.source
    examples = load_data(source, split=part.split, subset=part.subset, num_classes=part.num_classes)
    subject = subject_of(spec_of(record.request.model, model), examples, device, plugins)
    # The record's word, not the sidecar's: a certifier may have put the model into a smoothed one.
    wrap = _found_here(record.request.model.wrap, subject.part.wrap)
    classifier, _ = sampled(wrapped(subject.classifier, wrap), record.request.model)
    return dataclasses.replace(subject, classifier=classifier)


def _found_here(recorded: dict[str, Any] | None, here: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record's wrap, with the files that it names where the model's sidecar has the same ones now."""
    moved = {
        key: value
        for key, value in (here or {}).items()
        if recorded and (pinned := recorded.get(f"{key}_sha256")) and pinned == (here or {}).get(f"{key}_sha256")
    }
    return recorded and recorded | moved
