"""A folder of RobustBench's ``model_info`` files to entries, corrections and boards (Croce et al. 2021).

Its numbers come without examples, dates and checkpoints: an entry is what RobustBench says, and nothing that could be
checked here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from robustsuite.errors import InputError, RobustsuiteError
from robustsuite.leaderboard.importing import BoardSeed, Import, Kept, duplicates, source_files
from robustsuite.leaderboard.robustbench_file import EXAMPLES, read_file
from robustsuite.results.published import ImportedEntry
from robustsuite.results.records import Problem
from robustsuite.results.schema import Flag
from robustsuite.threat import Eps

BUDGETS: Mapping[tuple[str, str], str] = {
    ("cifar10", "Linf"): "8/255",
    ("cifar10", "L2"): "0.5",
    ("cifar100", "Linf"): "8/255",
    ("imagenet", "Linf"): "4/255",
}
_MOST_BYTES = 1 << 16


def read(root: Path, board: str | None = None, utc: str = "") -> Import:
    """Everything that a folder with ``<dataset>/<threat>/*.json`` below it says, or one such folder.

    ``board`` is the id to use where all files belong together (`InputError` otherwise); else it is
    ``robustbench-<dataset>-<norm>``. ``utc`` dates the corrections: the source has no dates, so it is empty unless the
    caller knows better, and the same files give the same bytes. Files that cannot be used are named in the result.
    """
    kept, problems, n_read = [], [], 0
    for path, problem in source_files(root, lambda p: p.suffix == ".json", _MOST_BYTES):
        n_read += 1
        try:
            if problem:
                problems.append(problem)
            else:
                kept.append(read_file(path, board, utc))
        except RobustsuiteError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path} ")))
    places = {(k.board, k.entry.data_name, k.entry.norm): "" for k in kept}
    if board is not None and len(places) > 1:
        found = ", ".join(f"{data}/{norm}" for _, data, norm in places)
        raise InputError(f"one board was named, but the files belong to {len(places)}: {found}.")
    kept, second = duplicates(kept)
    for place in places:
        places[place] = _budget(place, [k.entry for k in kept if k.board == place[0]])
    kept = [_compared(k, places[k.board, k.entry.data_name, k.entry.norm]) for k in kept]
    return Import(n_read, tuple(kept), tuple(_seed(*p, eps) for p, eps in places.items()), tuple(problems + second))


def published_order(kept: Iterable[Kept]) -> list[Kept]:
    """As on RobustBench's page: by the external evaluation or else AutoAttack's, equal ones by file name."""
    return sorted(kept, key=lambda k: (-Decimal(k.entry.details["ranked_by"]), k.entry.id))


def _budget(place: tuple[str, str, str], entries: Sequence[ImportedEntry]) -> str:
    """The eps of the board: RobustBench's own, and of a threat model that it has added since what most entries say."""
    _, data_name, norm = place
    said = Counter(entry.eps or "" for entry in entries)
    return BUDGETS.get((data_name, norm)) or max(sorted(said), key=lambda eps: said[eps])


def _compared(kept: Kept, budget: str) -> Kept:
    own = kept.entry.eps or ""
    differs = Eps.parse(own) != Eps.parse(budget)
    evidence = f"evaluated at eps {own}; the board is about {budget}" if differs else f"evaluated at eps {budget}"
    flag = Flag(name="other_eps", raised=differs, evidence=evidence)
    return replace(kept, entry=kept.entry.model_copy(update={"flags": (*kept.entry.flags, flag)}))


def _seed(board: str, data_name: str, norm: str, eps: str) -> BoardSeed:
    return BoardSeed(
        board,
        f"RobustBench: {data_name}, {norm}",
        f"As reported by RobustBench (its model_info files) on {EXAMPLES[data_name]} examples of {data_name}, and "
        "ranked as on its page: by the external evaluation where there is one, else by AutoAttack's. Nothing was "
        "verified here.",
        data_name,
        norm,
        eps,
    )
