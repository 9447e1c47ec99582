"""Whether a published folder holds: what a repository runs on every contribution, without models, data or torch."""

from collections.abc import Iterator
from pathlib import Path

from robustsuite.leaderboard.add_only import changes, unchanged
from robustsuite.leaderboard.board import defined_board
from robustsuite.leaderboard.check_run import check_run
from robustsuite.leaderboard.export import FORMATS, contents
from robustsuite.leaderboard.known_files import strangers
from robustsuite.leaderboard.published import (
    ATTESTATIONS,
    BOARDS,
    CORRECTIONS,
    IMPORTED,
    RUNS,
    STATEMENT,
    UNUSABLE,
    Published,
    PublishedBoard,
    files,
    in_words,
    load_attestation,
    load_imported,
    read_published,
)
from robustsuite.results.arithmetic import Finding
from robustsuite.results.published import Correction
from robustsuite.results.schema import canonical

TABLES = "tables"


def check_folder(root: Path, against: str | None = None) -> list[Finding]:
    """Everything that can be checked of a published folder; ``against``: a commit whose files must be here unchanged.

    Raises `InputError` when ``root`` is no published folder or ``against`` no commit.
    """
    published = read_published(root)
    findings = list(_definitions(published))
    for board in published.boards:
        findings += _runs(root, board)
        findings += _imported(root, board)
        findings += _corrections(root, board)
        findings += _attestations(root, board)
    findings += _noted(published, findings)
    findings += _one("folder", strangers(root), "nothing in it that is not known")
    if against is not None:
        findings += _one(f"add-only since {against}", changes(root, against), "no published file changed or deleted")
    findings.append(_tables(published, against))
    return findings


def _definitions(published: Published) -> Iterator[Finding]:
    for path in files(published.root / BOARDS, "*.yaml"):
        problem = next((p.reason for p in published.problems if p.path == path), None)
        yield Finding(f"{BOARDS}/{path.name}", problem is None, problem or "a definition")


def _runs(root: Path, board: PublishedBoard) -> Iterator[Finding]:
    folder, bad, count = f"{RUNS}/{board.definition.id}", 0, 0
    for path in files(root / RUNS / board.definition.id):
        count += 1
        for finding in check_run(path, board.definition):
            if not finding.ok:
                bad += 1
                yield Finding(f"{folder}/{path.name}: {finding.name}", False, finding.detail)
    if count and not bad:
        yield Finding(folder, True, f"{count} runs: names, hashes, pictures, and every number from its verdicts")
    protocols = {canonical(e.record.request.protocol.model_dump(exclude={"contributions"})) for e in board.entries}
    sizes = {e.record.request.data.n for e in board.entries}
    if len(sizes) > 1:
        yield Finding(f"{folder}: data", False, f"one fingerprint for {sorted(sizes)} examples; at least one is false")
    if len(protocols) > 1:
        detail = f"{len(protocols)} different protocols call themselves so; pin one with protocol.sha256"
        yield Finding(f"{folder}: protocol", False, detail)


def _imported(root: Path, board: PublishedBoard) -> Iterator[Finding]:
    folder = f"{IMPORTED}/{board.definition.id}"
    paths = files(root / IMPORTED / board.definition.id)
    bad = 0
    for path in paths:
        try:
            load_imported(path)
        except UNUSABLE as error:
            bad += 1
            yield Finding(f"{folder}/{path.name}", False, in_words(error))
    if paths and not bad:
        yield Finding(folder, True, f"{len(paths)} imported entries")


def _corrections(root: Path, board: PublishedBoard) -> Iterator[Finding]:
    """Chains, and what they point at. Chains that do not hold are among the problems of reading."""
    definition = board.definition
    folder = f"{CORRECTIONS}/{definition.id}"
    paths = files(root / CORRECTIONS / definition.id)
    runs = {e.record.run_key: (e.record.request.data.n, e.corrections) for e in board.entries}
    imported = {r.entry.id: (0, r.corrections) for r in board.imported}
    for path in paths:
        match = STATEMENT.fullmatch(path.name)
        if match is None or match["entry"] not in runs | imported:
            yield Finding(f"{folder}/{path.name}", False, "it corrects no entry of this board")
    said = [(key, n, c) for key, (n, chain) in (runs | imported).items() for c in chain]
    for key, n, correction in said:
        if problem := _senseless(correction, n, imported=key in imported):
            yield Finding(f"{folder}/{key}-{correction.number}.json", False, problem)
    if said:
        yield Finding(folder, True, f"{len(said)} corrections in unbroken chains")


def _senseless(correction: Correction, n: int, *, imported: bool) -> str:
    """What a correction says that cannot be meant; empty when it makes sense."""
    examples = list(correction.examples)
    if correction.action != "lower":
        odd = bool(examples) or correction.robust_accuracy is not None
        return "only 'lower' names examples or an accuracy" if odd else ""
    if imported:
        stated = correction.robust_accuracy is not None and not examples
        return "" if stated else "'lower' of an imported entry states robust_accuracy, and no examples"
    if not examples or correction.robust_accuracy is not None:
        return "'lower' of a run names the examples that were broken; the accuracy follows from them"
    if examples != sorted(set(examples)) or not 0 <= examples[0] <= examples[-1] < n:
        return f"examples must ascend within 0 and {n - 1}"
    return "" if correction.evidence else "'lower' of a run needs the file of images as evidence"


def _attestations(root: Path, board: PublishedBoard) -> Iterator[Finding]:
    folder = f"{ATTESTATIONS}/{board.definition.id}"
    sealed = {e.record.run_key: e.record.content_sha256 for e in board.entries}
    paths, bad = files(root / ATTESTATIONS / board.definition.id), 0
    for path in paths:
        try:
            said = load_attestation(path)
            problem = "it attests no run of this board" if said.run_key not in sealed else ""
            if not problem and said.content_sha256 != sealed[said.run_key]:
                problem = "it attests another record than the one that is here: content_sha256 differs"
        except UNUSABLE as error:
            problem = in_words(error)
        if problem:
            bad += 1
            yield Finding(f"{folder}/{path.name}", False, problem)
    if paths and not bad:
        yield Finding(folder, True, f"{len(paths)} attestations of the records that are here")


def _noted(published: Published, findings: list[Finding]) -> Iterator[Finding]:
    """Problems of reading that no other check has named."""
    named = " ".join(f.name for f in findings if not f.ok)
    for problem in published.problems:
        name = problem.path.relative_to(published.root).as_posix()
        if name not in named:
            yield Finding(name, False, problem.reason)


def _one(name: str, problems: list[tuple[str, str]], fine: str) -> list[Finding]:
    """A finding a problem, or one that says that there is none."""
    return [Finding(f"{name}: {what}", False, why) for what, why in problems] or [Finding(name, True, fine)]


def _tables(published: Published, against: str | None) -> Finding:
    """The tables are what the folder gives, or not there, or for the next build on the main line."""
    folder = published.root / TABLES
    if not folder.is_dir():
        return Finding(TABLES, True, "none are kept here")
    there = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and not p.is_symlink()}
    formats = [f for f in FORMATS if any(name.endswith(f".{f}") for name in there if name != "README.md")]
    made = contents([defined_board(board) for board in published.boards], formats)
    stale = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
    if not stale:
        return Finding(TABLES, True, f"{len(made)} files, as the records give them")
    if against is not None and unchanged(published.root / TABLES, against):
        return Finding(TABLES, True, f"as at {against}; {len(stale)} files are to be built again after merging")
    names = ", ".join(stale[:5]) + (" and more" if len(stale) > 5 else "")
    return Finding(TABLES, False, f"not what the records give: {names}; run `robustsuite board build` again")
