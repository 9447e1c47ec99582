"""What `eval`, `certify` and `demo` share: prepare a request, run it (here, or in workers), show what came out."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustsuite.cli import console, values
from robustsuite.cli.loading import load_subject
from robustsuite.cli.options import DataOptions, ModelOptions, RunOptions
from robustsuite.errors import ContradictionError, IncompleteError, UsageError

if TYPE_CHECKING:
    from robustsuite.evaluation.evaluator import Prepared, Run
    from robustsuite.results.schema import ProtocolPart
    from robustsuite.threat import ThreatModel


def command_of(arguments: Sequence[str]) -> str:
    """The command as the record keeps it."""
    return shlex.join(["robustsuite", *arguments])


def choose_protocol(
    tier: str | None,
    protocol: str | None,
    attacks: Sequence[str],
    certifiers: Sequence[str],
    params: Sequence[str],
    around: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> "ProtocolPart":
    """The protocol of a tier, of a file, or of named stages (one of the three), its parameters changed.

    ``around``: certifiers to put ahead of it, and behind its attacks.
    """
    from robustsuite.evaluation.protocol import custom_protocol, load_protocol, with_certifiers, with_params

    attacks, certifiers = values.names(attacks), values.names(certifiers)
    if (tier or protocol) and certifiers:
        raise UsageError(
            "--certifier runs certifiers alone, or ahead of --attack. Beside --tier or --protocol give --certify-first "
            "or --certify-last: ahead of the attacks, or on what survives them."
        )
    if sum(map(bool, (tier, protocol, attacks or certifiers))) > 1:
        raise UsageError("--tier, --protocol and --attack/--certifier name a protocol each; give one of them.")
    if attacks or certifiers:
        chosen = custom_protocol(attacks, certifiers)
    else:
        chosen = load_protocol(protocol or tier or "quick")
    first, last = map(values.names, around)
    return with_params(with_certifiers(chosen, first, last), values.pairs("-A", params))


def adjusted(protocol: "ProtocolPart", tail_sample: int | None, contributions: bool | None) -> "ProtocolPart":
    """The protocol with what the command line says of its tail and of exclusive contributions."""
    from robustsuite.evaluation.protocol import with_tail_sample

    if contributions is not None:
        protocol = protocol.model_copy(update={"contributions": contributions})
    return with_tail_sample(protocol, tail_sample) if tail_sample is not None else protocol


def prepare_run(
    model: ModelOptions,
    data: DataOptions,
    run: RunOptions,
    protocol: "ProtocolPart",
    plugins: dict[str, str] | None = None,
) -> "Prepared":
    """Load everything and build the request; nothing is written. ``plugins``: the hashes of the loaded files."""
    from robustsuite.evaluation.evaluator import prepare
    from robustsuite.evaluation.plan import cores
    from robustsuite.threat import ThreatModel

    if run.threat is None:
        raise UsageError("--threat is missing: say what the attacker may do, such as --threat Linf:8/255 or L2:0.5.")
    threat = ThreatModel.parse(run.threat)
    device = values.device_of(run.device)
    subject = load_subject(model, data, device, plugins or {})
    inside_the_box(threat, subject.data.input_shape)
    threads = run.threads or (max(1, cores() // run.workers) if run.workers > 1 else None)
    return prepare(
        subject.classifier,
        subject.part,
        subject.data,
        threat,
        protocol,
        seed=run.seed,
        slots=run.slots,
        threads=threads,
        precision=run.precision,
        channels_last=run.channels_last,
        plugins=subject.plugins,
    )


def inside_the_box(threat: "ThreatModel", shape: Sequence[int]) -> None:
    """Raise `UsageError` for an eps that no two images are apart: 8 was meant to be 8/255."""
    pixels = math.prod(shape)
    widest = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat.norm]
    if threat.radius > widest:
        whole = threat.eps.fraction.denominator == 1 and threat.radius / 255 <= widest
        hint = f" Did you mean {threat}/255?" if whole else ""
        raise UsageError(
            f"--threat {threat} is larger than the box: images lie in [0,1], so no two of them are further apart than "
            f"{widest:g} in {threat.norm}.{hint}"
        )


def carry_out(prepared: "Prepared", run: RunOptions, arguments: Sequence[str]) -> None:
    """Run and report a prepared request, or only its plan with ``--dry-run``."""
    from robustsuite.cli import plan_view, run_view

    runs, shard = Path(run.out), values.shard_of(run.shard)
    if run.dry_run:
        plan_view.show(prepared, runs, as_json=run.as_json)
        return
    if shard and run.workers > 1:
        raise UsageError("--shard says which part this process does, --workers starts one a part: give one of them.")
    record = runs / prepared.request.run_key / "record.json"
    recalled = record.exists()
    try:
        result = _result(prepared, run, runs, shard, arguments)
    except (IncompleteError, ContradictionError) as error:
        if record.exists():  # the run as far as it is good; what went wrong is said with it
            error.document = run_view.show_stored(record.parent, as_json=run.as_json)
        raise
    run_view.show(result, as_json=run.as_json, recalled=recalled)


def _result(
    prepared: "Prepared", run: RunOptions, runs: Path, shard: tuple[int, int] | None, arguments: Sequence[str]
) -> "Run":
    from robustsuite.evaluation.evaluator import evaluate

    command = command_of(arguments)
    if run.workers > 1 and not (runs / prepared.request.run_key / "record.json").exists():
        done = _in_workers(prepared, run, runs, arguments)
        if done is not None:
            return done
    with console.progress() as progress:
        return evaluate(prepared, runs, shard=shard or (0, 1), progress=progress, command=command)


def _in_workers(prepared: "Prepared", run: RunOptions, runs: Path, arguments: Sequence[str]) -> "Run | None":
    """The same command once a shard, in processes of its own; None when something is left to do here."""
    from robustsuite.evaluation.evaluator import Run
    from robustsuite.evaluation.executors import run_processes
    from robustsuite.evaluation.seal import failure
    from robustsuite.results.records import load_record

    threads = str(prepared.request.threads)
    base = [sys.executable, "-m", "robustsuite", *arguments, "--workers", "1", "--threads", threads]
    commands = [[*base, "--shard", f"{i}/{run.workers}"] for i in range(run.workers)]
    codes = run_processes(commands, lambda worker, line: console.log(f"[{worker + 1}/{run.workers}] {line}"))
    for worker, code in enumerate(codes):
        if code:
            console.warn(f"worker {worker + 1} ended with code {code}; what it left undone is done here.")
    directory = runs / prepared.request.run_key
    if not (directory / "record.json").exists():
        return None
    record = load_record(directory)
    failure(record)
    return Run(directory, record, resumed=False)
