"""The rows of a board's table as the page and its script need them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Board, Row
from robustsuite.leaderboard.site import words
from robustsuite.results.schema import Metric


@dataclass(frozen=True)
class Column:
    """One column: its class in the page, title, what it means, and whether larger comes first when it is sorted."""

    id: str
    title: str
    help: str
    number: bool
    fixed: bool = False
    """Never hidden, never empty."""


@dataclass(frozen=True)
class Bar:
    """The bracket in a row, in percent of the bar's width."""

    certified: float
    attacked: float
    low: float
    high: float
    clean: float | None


@dataclass(frozen=True)
class Line:
    """One row of the table: texts, marks, and the facts that sorting and filtering go by."""

    page: str
    rank: str
    spoken_rank: str
    name: str
    under: str
    marks: list[tuple[str, str]]
    new_group: bool
    bar: Bar | None
    cells: dict[str, tuple[str, str, str]]
    """Column to (text, small text, sort value)."""
    facts: dict[str, str]
    """What the filters and the new ranks need."""


_COLUMNS = (
    Column("rank", "Rank", "1 + the number of entries whose interval lies entirely above", True, fixed=True),
    Column("model", "Model", "", False, fixed=True),
    Column("best", "Robust", "Best known robust accuracy: what nobody has broken, with its 95 % interval", True),
    Column("bracket", "Bracket", "Certified to robust to clean, from 0 to 100 %", False),
    Column("certified", "Certified", "Share of examples proved robust", True),
    Column("gap", "Gap", "Neither broken nor proved: robust less certified", True),
    Column("clean", "Clean", "Accuracy without an attack", True),
    Column("own", "Own attacks", "What the entry's own evaluation left", True),
    Column("better", "Better than", "Entries that it may be called better than (exact McNemar test, Holm)", True),
    Column("verified", "Verified", "How far the result was checked by somebody again", True, fixed=True),
    Column("defense", "Defense", "", False),
    Column("arch", "Architecture", "", False),
    Column("params", "Parameters", "Size of the network", True),
    Column("extra", "Extra data", "Trained with data beyond the training set", False),
    Column("division", "Division", "closed: training data and architecture are fixed; open: free", False),
    Column("cost", "Passes", "Forward and backward passes of the evaluation", True),
    Column("n", "Images", "Examples that the numbers are over", True),
    Column("source", "Source", "Who measured it", False),
    Column("venue", "Published", "", False),
    Column("notes", "Notes", "", False),
)
_MAY_BE_COMMON = frozenset({"arch", "params", "extra", "division", "source"})
_SYNONYMS = {
    "reported": "rank",
    "best known": "best",
    "robust": "own",
    "passes": "cost",
    "seconds": "cost",
    "device": "cost",
    "venue": "venue",
}
"""Titles of the exported tables' columns that are called otherwise here."""


def columns(board: Board) -> list[Column]:
    """The columns that the board names or, where it names none, those that have content."""
    known = {c.id: c.id for c in _COLUMNS} | {c.title.lower(): c.id for c in _COLUMNS} | _SYNONYMS
    named = {known.get(title.lower().removesuffix(" %"), "") for title in board.columns} - {""}
    filled = {c.id for c in _COLUMNS if c.fixed or any(_told(board, row, c.id) for row in board.rows)}
    always = {c.id for c in _COLUMNS if c.fixed} | {"bracket"}
    same = {title for title, _ in in_common(board)}
    kept = [c for c in _COLUMNS if c.id in filled and (not named or c.id in named | always)]
    return [c for c in kept if c.title not in same]


def in_common(board: Board) -> list[tuple[str, str]]:
    """(title, text) of what all entries have in common: said once, above the table."""
    if len(board.rows) < 2:
        return []
    common = []
    for column in _COLUMNS:
        texts = {_CELLS[column.id](board, row)[0] for row in board.rows} if column.id in _MAY_BE_COMMON else set()
        if len(texts) == 1 and (text := texts.pop()):
            common.append((column.title, text))
    return common


def lines(board: Board, pages: Sequence[str]) -> list[Line]:
    """The table in the board's order; ``pages`` are the file names of the entries."""
    shown, before = [], None
    wins = Counter(c.better for c in board.comparisons)
    tested = Counter(key for c in board.comparisons for key in (c.first, c.second))
    for row, page in zip(board.rows, pages, strict=True):
        place = row.group if row.group is not None else row.rank
        line = _line(board, row, page, new_group=bool(shown) and place != before)
        if tested[row.key]:
            better = (f"{wins[row.key]} of {tested[row.key]}", "", str(wins[row.key]))
            line = replace(line, cells=line.cells | {"better": better})
        shown.append(line)
        before = place
    return shown


def _line(board: Board, row: Row, page: str, *, new_group: bool) -> Line:
    rank = row.reported_rank if board.ranking == "reported" else row.rank
    tied = row.tied and board.ranking != "reported"
    defense = "" if row.label.startswith(row.defense) else row.defense
    under = " · ".join(visible(text, 60) for text in (defense, row.authors) if text)
    return Line(
        page=page,
        rank="–" if rank is None else f"{rank}{'=' if tied else ''}",
        spoken_rank="not ranked" if rank is None else f"{rank}, shared" if tied else str(rank),
        name=visible(row.label),
        under=under,
        marks=[mark for mark in words.marks(row) if board.ranking != "reported" or mark[0] != "quiet"],
        new_group=new_group,
        bar=_bar(row),
        cells={c.id: _CELLS[c.id](board, row) for c in _COLUMNS if c.id in _CELLS},
        facts=_facts(row, rank),
    )


def _facts(row: Row, rank: int | None) -> dict[str, str]:
    best = words.attacked(row)
    facts = {
        "rank": "" if rank is None else str(rank),
        "low": repr(best.ci95[0]) if best else "",
        "high": repr(best.ci95[1]) if best else "",
        "arch": visible(row.arch, 60),
        "extra": "" if row.extra_data is None else "yes" if row.extra_data else "no",
        "kind": "certified" if row.certified and row.certified.value > 0 else "empirical",
        "level": "" if row.level is None else str(row.level),
        "division": row.division,
    }
    return {k: v for k, v in facts.items() if v != ""}


def _bar(row: Row) -> Bar | None:
    head = words.headline(row)
    if head is None:
        return None
    shares = (row.certified.value if row.certified else 0.0, head.value, *head.ci95)
    certified, attacked, low, high = (round(100 * v, 1) for v in shares)
    return Bar(certified, attacked, low, high, round(100 * row.clean.value, 1) if row.clean else None)


_Cell = tuple[str, str, str]


def _metric(board: Board, metric: Metric | None, *, bare: bool = False) -> _Cell:
    if metric is None:
        return "", "", ""
    digits = words.decimals(board)
    small = "" if bare else words.interval(metric, digits)
    return words.percent(metric.value, digits), small, f"{metric.value:.6g}"


def _verified(board: Board, row: Row) -> _Cell:
    if row.level is None:
        return "no", "", "-1"
    return words.LEVELS[row.level][0], words.LEVELS[row.level][1], str(row.level)


def _own(board: Board, row: Row) -> _Cell:
    """Only where it differs from the best known: somebody else has broken more."""
    differs = row.robust and row.best_known and row.robust.value != row.best_known.value
    return _metric(board, row.robust, bare=True) if differs else ("", "", "")


def _gap(board: Board, row: Row) -> _Cell:
    return words.percent(row.gap, words.decimals(board)), "", "" if row.gap is None else f"{row.gap:.6g}"


def _cost(board: Board, row: Row) -> _Cell:
    if row.cost is None:
        return "", "", ""
    passes = row.cost.forward + row.cost.backward
    return words.count(passes), f"{words.duration(row.cost.seconds)}, {visible(row.cost.device, 24)}", str(passes)


def _text(text: str, longest: int = 60) -> _Cell:
    return visible(text, longest), "", ""


_CELLS: dict[str, Callable[[Board, Row], _Cell]] = {
    "best": lambda board, row: _metric(board, words.attacked(row)),
    "certified": lambda board, row: _metric(board, row.certified),
    "gap": _gap,
    "clean": lambda board, row: _metric(board, row.clean),
    "own": _own,
    "verified": _verified,
    "defense": lambda board, row: _text(row.defense),
    "arch": lambda board, row: _text(row.arch),
    "params": lambda board, row: (words.count(row.n_params) if row.n_params else "", "", str(row.n_params or "")),
    "extra": lambda board, row: _text({True: "yes", False: "no", None: ""}[row.extra_data]),
    "division": lambda board, row: _text(row.division if row.provenance == "run" else ""),
    "cost": _cost,
    "n": lambda board, row: (f"{row.n:,}", "", str(row.n)),
    "venue": lambda board, row: _text(row.venue),
    "source": lambda board, row: _text("" if row.provenance == "run" else row.provenance),
    "better": lambda board, row: ("", "", ""),
    "notes": lambda board, row: _text("; ".join(words.remarks(row)), 160),
}


def _told(board: Board, row: Row, column: str) -> bool:
    """Whether the column says something that is not the same for every row, or in the heading."""
    if column == "n":
        return row.n != board.n
    if column == "bracket":
        return _bar(row) is not None
    if column == "better":
        return bool(board.comparisons)
    if column == "defense":
        return False  # it stands under the name
    return bool(_CELLS[column](board, row)[0])
