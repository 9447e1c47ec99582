"""The evaluator: one model, one data set, one protocol, one ledger.

The run's directory is the checkpoint. The same command again resumes it; a finished run is a no-op; another request
is another directory. Shards write into the same directory, and whoever finds all blocks there seals the record.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from robustsuite.certification.base import Certifier
from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError, UsageError
from robustsuite.evaluation.cascade import Cascade, Parts
from robustsuite.evaluation.checks import check_model, refuse
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.plan import build_request
from robustsuite.evaluation.progress import Progress, Silent
from robustsuite.evaluation.protocol import Stage, resolve
from robustsuite.evaluation.seal import failure, seal
from robustsuite.evaluation.stages import Bench
from robustsuite.models.allocator import keep_memory
from robustsuite.models.classifier import Classifier
from robustsuite.models.precision import parse_precision
from robustsuite.models.randomized import sampled
from robustsuite.noise import Noise
from robustsuite.results.ledger import AUDIT, CLEAN, OVERLAP, REST, VERDICT, Outcome
from robustsuite.results.records import load_record
from robustsuite.results.schema import Flag, ModelPart, ProtocolPart, Record, Request
from robustsuite.results.store import read_json, write_json
from robustsuite.threat import ThreatModel


@dataclass(frozen=True)
class Run:
    """The result of a call: the sealed record, or None while blocks of other shards are missing."""

    directory: Path
    record: Record | None
    resumed: bool
    missing_blocks: int = 0


@dataclass(frozen=True)
class Prepared:
    """A request with everything that is needed to run it."""

    request: Request
    stages: list[Stage]
    skipped: dict[str, str]
    """Stages of the protocol that do not apply to this model, with the reason."""
    model: Classifier
    data: Dataset
    threat: ThreatModel


def prepare(
    model: Classifier,
    part: ModelPart,
    data: Dataset,
    threat: ThreatModel,
    protocol: ProtocolPart,
    *,
    seed: int = 0,
    slots: int | None = None,
    threads: int | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    plugins: dict[str, str] | None = None,
) -> Prepared:
    """Resolve the protocol and build the request; nothing is run. Raises before anything is spent."""
    if model.num_classes != data.num_classes:
        raise InputError(
            f"the model has {model.num_classes} classes, the data {data.num_classes}. Give the right "
            "--num-classes or the right checkpoint."
        )
    if model.input_shape != data.input_shape:
        raise InputError(f"the model takes images of shape {model.input_shape}, the data holds {data.input_shape}.")
    protocol, stages = resolve(protocol, threat)
    plain, makers = model, []
    for stage in stages:
        subject = stage.plugin.subject(model) if isinstance(stage.plugin, Certifier) else model
        if subject is not model:
            model, part = subject, part.model_copy(update={"wrap": _wrap_of(stage)})
            makers.append(stage.plan.plugin)
    model, part = sampled(model, part)
    part = part.model_copy(update={"differentiable": model.facts.differentiable})
    searching = parse_precision(precision, model.device)
    model.attacking(searching, channels_last=channels_last)  # refused now, if it is
    request = build_request(
        part,
        data,
        threat,
        protocol,
        seed=seed,
        slots=slots,
        threads=threads,
        precision=searching,
        channels_last=channels_last,
        device=model.device,
        plugins=plugins or {},
    )
    skipped = _unsupported(stages, model, threat, plain, makers)
    return Prepared(request, [s for s in stages if s.plan.name not in skipped], skipped, model, data, threat)


def _unsupported(
    stages: list[Stage], model: Classifier, threat: ThreatModel, plain: Classifier, makers: list[str]
) -> dict[str, str]:
    """Why stages cannot be used on this model; raises `UsageError` for one that was asked for by name.

    ``makers`` are the certifiers that made ``model`` of the user's ``plain`` one.
    """
    skipped = {}
    for stage in stages:
        reason = stage.plugin.unsupported(model, threat) if isinstance(stage.plugin, Certifier) else None
        least = stage.entry.facts.get("min_classes", 2)
        if model.num_classes < least:
            reason = f"it needs at least {least} classes, the model has {model.num_classes}"
        if reason and stage.plan.when == "always":
            name = stage.plan.plugin
            if makers and isinstance(stage.plugin, Certifier) and not stage.plugin.unsupported(plain, threat):
                raise UsageError(
                    f"certifier '{name}' cannot be used beside '{makers[-1]}': that one certifies a classifier of its "
                    f"own, which it makes of the model, and all stages of a run are about the same classifier. Run "
                    f"them apart, one with --certifier {name} and one with --certifier {makers[-1]}."
                )
            raise UsageError(f"{stage.plan.kind} '{name}' cannot be used on this model: {reason}")
        if reason:
            skipped[stage.plan.name] = reason
    if len(skipped) == len(stages):
        raise UsageError(f"no stage of the protocol can be used on this model: {skipped}")
    return skipped


def _wrap_of(stage: Stage) -> dict[str, object]:
    return {"kind": "certifier", "name": stage.plan.plugin, **stage.plan.params}


def evaluate(
    prepared: Prepared,
    runs: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    command: str = "",
) -> Run:
    """Run, resume or recall the run of a request.

    ``shard`` is (index, count). Raises `ContractError` for a model that breaks its contract and `ContradictionError`
    when a certificate and an attack exclude each other; a stage that fails is marked and the rest goes on.
    """
    request, progress = prepared.request, progress or Silent()
    keep_memory()
    run_dir = runs / request.run_key
    if (run_dir / "record.json").exists():
        _same_request(run_dir, request)
        record = load_record(run_dir / "record.json")
        if record.status != "partial":
            failure(record)
            return Run(run_dir, record, resumed=True)
    blocks = Blocks(request.data.n, request.block_size, shard)
    with torch_threads(request.threads), _lock(runs, request.run_key, shard):
        start = time.perf_counter()
        with _lock(runs, request.run_key, "open"):
            flags = _open(run_dir, prepared)
        resumed = any((run_dir / "ledger").rglob("*.safetensors"))
        bench = bench_of(prepared, progress)
        store = LedgerStore(run_dir, blocks)
        cascade = Cascade(bench, store, prepared.stages, request.protocol)
        cascade.run()
        if missing := cascade.missing():
            return Run(run_dir, None, resumed, missing)
        with _lock(runs, request.run_key, "seal"):
            record = seal(
                bench,
                LedgerStore(run_dir, Blocks(blocks.n, blocks.size)),
                prepared.stages,
                request,
                flags,
                skipped=prepared.skipped,
                command=command,
                wall_seconds=time.perf_counter() - start,
            )
    failure(record)
    return Run(run_dir, record, resumed)


def _open(run_dir: Path, prepared: Prepared) -> list[Flag]:
    """Create or check the directory; the model's checks are made once and kept."""
    if not (run_dir / "request.json").exists():
        prepared.model.restart(Noise(prepared.request.seed, "checks"))
        flags = check_model(prepared.model, prepared.data, prepared.request.seed)
        refuse(flags, prepared.model.facts.randomized)
        write_json(run_dir / "checks.json", {"flags": [f.model_dump(mode="json") for f in flags]})
        write_json(run_dir / "request.json", prepared.request.model_dump(mode="json"))
    _same_request(run_dir, prepared.request)
    if (run_dir / "record.json").exists():
        _reopen(run_dir, prepared.stages)
    return [Flag.model_validate(f) for f in read_json(run_dir / "checks.json")["flags"]]


def _same_request(run_dir: Path, request: Request) -> None:
    path = run_dir / "request.json"
    try:
        stored = Request.model_validate(read_json(path))
    except ValueError as error:
        raise InputError(f"{path} is not a request of this version: {error}. Move the directory away.") from error
    if stored.run_key != request.run_key:
        raise UsageError(
            f"{run_dir} holds the run of another request (its key is {stored.run_key}, this one's {request.run_key}). "
            "Give another -o DIR, or move that directory away; nothing in it was touched."
        )


def _reopen(run_dir: Path, stages: list[Stage]) -> None:
    """A partial run is tried again: failed blocks are forgotten, with what later stages made of them."""
    (run_dir / "record.json").unlink()
    request = Request.model_validate(read_json(run_dir / "request.json"))
    parts = Parts.of(stages, request.protocol)
    # What hangs on the outcome of all blocks is done again as a whole.
    late = [s.name for s in (*parts.tail, *parts.flagged)]
    for pattern in (*late, VERDICT, f"{AUDIT}*", f"{OVERLAP}*", f"{REST}*"):
        for path in [*run_dir.glob(f"ledger/{pattern}/*"), *run_dir.glob(f"adversarials/{pattern}/*")]:
            path.unlink()
    store = LedgerStore(run_dir, Blocks(request.data.n, request.block_size))
    names = [CLEAN, *[s.name for s in parts.cascade]]
    for block in range(store.blocks.count):
        failed = False
        for name in names:
            found = store.read(name, block)
            failed |= found is not None and bool((found[0].outcome == Outcome.ERROR).any())
            if failed:
                store.drop(name, block)


def bench_of(prepared: Prepared, progress: Progress) -> Bench:
    """What the stages of a prepared run work with."""
    request = prepared.request
    return Bench(
        prepared.model,
        prepared.data,
        prepared.threat,
        request.seed,
        request.slots,
        progress,
        request.precision,
        request.channels_last,
    )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's threads are part of the request, because they move the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _lock(runs: Path, key: str, part: tuple[int, int] | str) -> Iterator[None]:
    """One process a shard, one at the sealing; released by the system when a process dies."""
    label = part if isinstance(part, str) else f"{part[0]}-of-{part[1]}"
    folder = runs / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{runs} is not a directory; give another -o DIR.") from error
    lock = FileLock(folder / f"{key}-{label}.lock", timeout=600 if isinstance(part, str) else 0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise UsageError(f"another process is working on run {key} (shard {label}); wait for it.") from error
