"""Running a run again from scratch: some of its blocks, or all of it, and comparing what comes out."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustsuite import SEMANTICS_VERSION
from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContradictionError, IncompleteError, UsageError
from robustsuite.evaluation.agreement import OUTCOMES, Allowance, allowance
from robustsuite.evaluation.cascade import Cascade, Parts, Share, run_blocks
from robustsuite.evaluation.evaluator import Prepared, bench_of, evaluate, prepare, torch_threads
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.progress import Progress
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.recertify import choose_blocks
from robustsuite.evaluation.sampling import sample
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.tail import RUN_ALL_ABOVE
from robustsuite.models.classifier import Classifier
from robustsuite.results.arithmetic import Finding
from robustsuite.results.gallery import GALLERY
from robustsuite.results.ledger import AUDIT, CLEAN, OVERLAP, REST, VERDICT, Ledger, Outcome
from robustsuite.results.schema import Record
from robustsuite.results.stored import StoredRun, find_run
from robustsuite.threat import ThreatModel

_DECIDED = (Outcome.BROKEN, Outcome.CERTIFIED)
_SHOWN = 10


def prepare_again(record: Record, model: Classifier, data: Dataset, plugins: dict[str, str]) -> Prepared:
    """A record's own request, ready to run; ``model`` inside its wrap already, as the record says.

    ``plugins``: hashes of the loaded files. Raises `UsageError` when this version would make another request of the
    record: its outcomes could not be compared.
    """
    request = record.request
    if request.semantics_version != SEMANTICS_VERSION:
        raise UsageError(
            f"the run has semantics version {request.semantics_version}, this suite {SEMANTICS_VERSION}: its attacks "
            f"differ. Install robustsuite {record.provenance.suite_version} to run it again."
        )
    if plugins != request.plugins:
        raise UsageError(
            f"the run had the plugin files {_named(request.plugins)}, here are {_named(plugins)}. Give --plugin FILE "
            "for each of them, unchanged."
        )
    made = prepare(
        model,
        request.model,
        data,
        ThreatModel.parse(f"{request.threat.norm}:{request.threat.eps}"),
        request.protocol,
        seed=request.seed,
        slots=request.slots,
        threads=request.threads,
        precision=request.precision,
        channels_last=request.channels_last,
        plugins=plugins,
    )
    # Another device is another request, but its outcomes may be compared; block sizes hang on nothing else.
    here = made.request.model_copy(update={"device": request.device, "block_size": request.block_size})
    if here.run_key != request.run_key:
        raise UsageError(f"run {record.run_key} is {here.run_key} here: what its stages do by default has changed.")
    return dataclasses.replace(made, request=request)


def _named(plugins: dict[str, str]) -> str:
    return ", ".join(f"{name} ({sha[:12]})" for name, sha in sorted(plugins.items())) or "(none)"


def rerun_blocks(path: Path, prepared: Prepared, count: int, seed: int, progress: Progress) -> list[Finding]:
    """Level 2: whole blocks again, from nothing through every stage, until they hold ``count`` examples.

    The record's own hash chooses the blocks, with ``seed``: a verifier's own seed is one that nobody could prepare
    for. Slots and threads are the run's, so that every row is computed as it was, and an example is compared by
    whether it is broken, certified or neither. Audits and overlaps, which decide nothing, are left out. Which examples
    a thinned-out tail sampled is taken from the record, after it was found to be what the record's survivors give;
    whether suspicions called for more stages is the record's word, which level 3 looks at.
    """
    run = find_run(path)
    record, ledger = run.record, run.ledger()
    n = record.request.data.n
    blocks = Blocks(n, record.request.block_size)
    purpose = f"rerun/{record.content_sha256}/{seed}"
    chosen = choose_blocks(blocks, np.ones(n, bool), count, purpose)
    with torch_threads(record.request.threads), tempfile.TemporaryDirectory() as scratch:
        bench = bench_of(prepared, progress)
        again = _Subset(bench, prepared, ledger, Path(scratch), tuple(chosen))
        findings = [*again.tail_sample()]
        outcomes = again.run()
    here = np.zeros(n, bool)
    for block in chosen:
        here[blocks.positions(block)] = True
    allowed = allowance(record, prepared.model.device, OUTCOMES)
    stored = {name: ledger.outcome(name) for name in outcomes}
    what = f"({len(chosen)} of {blocks.count} blocks)"
    return [*findings, _agreement("subset again", stored, outcomes, here, allowed, what)]


def rerun_all(path: Path, prepared: Prepared, progress: Progress) -> list[Finding]:
    """Level 3: the whole run again in a directory that is thrown away, and every outcome compared.

    Where it must agree to the bit, the hash of the outcome must too; elsewhere it is only reported.
    """
    run = find_run(path)
    record, ledger = run.record, run.ledger()
    with tempfile.TemporaryDirectory() as scratch:
        with suppress(IncompleteError, ContradictionError):  # it is sealed all the same
            evaluate(prepared, Path(scratch), progress=progress)
        fresh = find_run(Path(scratch) / prepared.request.run_key)
        outcomes = {name: fresh.ledger().outcome(name) for name in _deciding(fresh.ledger())}
    allowed = allowance(record, prepared.model.device, OUTCOMES)
    stored = {name: ledger.outcome(name) for name in _deciding(ledger)}
    everything = np.ones(record.request.data.n, bool)
    found = _agreement("everything again", stored, outcomes, everything, allowed, "")
    return [found, _same_outcome(run, fresh.record, allowed)]


class _Subset:
    """The stages of a run on some of its blocks."""

    def __init__(
        self, bench: Bench, prepared: Prepared, ledger: Ledger, scratch: Path, chosen: tuple[int, ...]
    ) -> None:
        request = prepared.request
        self.bench, self.ledger = bench, ledger
        self.protocol = request.protocol.model_copy(update={"contributions": False})
        self.stages, self.parts = prepared.stages, Parts.of(prepared.stages, request.protocol)
        self.store = LedgerStore(scratch, _Chosen(request.data.n, request.block_size, chosen=chosen))

    def run(self) -> dict[str, np.ndarray]:
        """The outcomes by stage, uint8 ``[N]``; 0 outside of the blocks."""
        Cascade(self.bench, self.store, self.stages, self.protocol).run()
        self.outcomes = {name: self._read(name) for name in (CLEAN, *(s.name for s in self.parts.cascade))}
        tail = [s.name for s in self.parts.tail]
        if tail:
            for prefix in ("", REST):
                self._tail(prefix, self._seen([prefix + name for name in tail]))
        for stage in self.parts.flagged:
            if stage.name in self.ledger.stages:
                self._stage(stage, "", self._undecided())
        return self.outcomes

    def tail_sample(self) -> Iterator[Finding]:
        """Whether the record's tail ran on the sample that its seed draws of the survivors."""
        count, tail = self.protocol.tail_sample, [s.name for s in self.parts.tail]
        if not tail or count is None:
            return
        before = ~_with(self.ledger, (CLEAN, *(s.name for s in self.parts.cascade)), _DECIDED)
        expected = sample(self.bench, before, count, "tail")
        broken = _with(self.ledger, [t for t in tail if t in self.ledger.stages], (Outcome.BROKEN,))
        rest = before & ~expected & (int((broken & expected).sum()) > RUN_ALL_ABOVE * expected.sum())
        ok = bool((self._seen(tail) == expected).all() and (self._seen([REST + t for t in tail]) == rest).all())
        detail = f"{int(expected.sum())} of {int(before.sum())} survivors, as the seed draws them"
        yield Finding("tail sample", ok, detail if ok else "not the one that the seed draws of the survivors")

    def _tail(self, prefix: str, eligible: np.ndarray) -> None:
        for stage in self.parts.tail:
            if prefix + stage.name in self.ledger.stages:
                self._stage(stage, prefix, eligible & self._undecided())

    def _stage(self, stage: Stage, prefix: str, eligible: np.ndarray) -> None:
        run_blocks(self.bench, stage, Share(self.store, eligible, prefix))
        self.outcomes[prefix + stage.name] = self._read(prefix + stage.name)

    def _seen(self, names: list[str]) -> np.ndarray:
        """What the record's stages of these names worked on, bool ``[N]``."""
        known = [self.ledger.outcome(name) != Outcome.SKIPPED for name in names if name in self.ledger.stages]
        return np.logical_or.reduce(known) if known else np.zeros(self.store.blocks.n, bool)

    def _undecided(self) -> np.ndarray:
        seen = self.outcomes[CLEAN] != Outcome.SKIPPED
        return seen & ~np.logical_or.reduce([np.isin(o, _DECIDED) for o in self.outcomes.values()])

    def _read(self, name: str) -> np.ndarray:
        out = np.zeros(self.store.blocks.n, np.uint8)
        for block in self.store.blocks.mine():
            found = self.store.read(name, block)
            assert found is not None
            out[self.store.blocks.positions(block)] = found[0].outcome
        return out


@dataclass(frozen=True)
class _Chosen(Blocks):
    """Some blocks of a run. A shard like any other, so that the cascade leaves the audit to a sealing."""

    shard: tuple[int, int] = (0, 2)
    chosen: tuple[int, ...] = ()

    def mine(self) -> list[int]:
        return list(self.chosen)


def _agreement(
    name: str,
    stored: dict[str, np.ndarray],
    again: dict[str, np.ndarray],
    among: np.ndarray,
    allowed: Allowance,
    what: str,
) -> Finding:
    """Compare what became of the examples in ``among``: broken, certified, neither, or not finished."""
    before, after = _fates(stored), _fates(again)
    different = np.flatnonzero(among & (before != after))
    m, most = int(among.sum()), allowed.most(int(among.sum()))
    detail = f"{m - len(different)} of {m} outcomes agree {what}".rstrip()
    if len(different):
        shown = ", ".join(f"{p} was {_FATES[before[p]]}, is {_FATES[after[p]]}" for p in different[:_SHOWN])
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        detail += f"; positions {shown}{more}"
    if allowed.rate:
        detail += (
            f". On another machine {most} may differ ({allowed}); a run with 5 % false outcomes would pass with a "
            f"probability of {allowed.missed(m, 0.05):.2g}"
        )
    else:
        detail += ". On the machine that made the run none may differ"
    return Finding(name, len(different) <= most, detail)


_FATES = ("undecided", "broken", "certified", "broken and certified", "unfinished")


def _fates(outcomes: dict[str, np.ndarray]) -> np.ndarray:
    """What became of every example, as a place in `_FATES`, int64 ``[N]``."""
    table = np.stack(list(outcomes.values()))
    decided = (table == Outcome.BROKEN).any(0) + 2 * (table == Outcome.CERTIFIED).any(0)
    return np.where((table == Outcome.ERROR).any(0), 4, decided)


def _deciding(ledger: Ledger) -> list[str]:
    """The stages whose outcomes count; the clean pass among them."""
    return [s for s in ledger.stages if s != VERDICT and not s.startswith((AUDIT, OVERLAP))]


def _with(ledger: Ledger, names: tuple[str, ...] | list[str], outcomes: tuple[Outcome, ...]) -> np.ndarray:
    return np.logical_or.reduce([np.isin(ledger.outcome(n), outcomes) for n in names if n in ledger.stages])


def _same_outcome(run: StoredRun, fresh: Record, allowed: Allowance) -> Finding:
    """The hashes of the outcome, the gallery aside: a run has none before it is published."""
    files = tuple(ref for ref in run.record.files if ref.path != GALLERY)
    stored = run.record.model_copy(update={"files": files}).sealed().outcome_sha256
    same, here = stored == fresh.outcome_sha256, fresh.outcome_sha256
    detail = f"equal, {stored[:12]}" if same else f"the record's is {stored[:12]}, this one's {here[:12]}"
    return Finding("outcome_sha256", same or allowed.rate > 0, detail)
