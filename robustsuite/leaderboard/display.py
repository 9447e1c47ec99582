"""Boards as people read them: texts for the cells of any table, on a page or a terminal."""

import unicodedata
from collections import Counter

from robustsuite.leaderboard.row import Board, Row
from robustsuite.results.published import Correction
from robustsuite.results.schema import Metric

PERCENTAGES = ("Clean %", "Robust %", "Best known %", "Certified %")
"""Columns whose text is made of numbers alone: ``60.5 [53.4, 67.3]``."""
COLUMNS = (
    "Rank",
    "Reported",
    "Group",
    "Model",
    "Defense",
    "Fidelity",
    "Architecture",
    "Extra data",
    "Clean %",
    "Robust %",
    "Best known %",
    "Certified %",
    "Certifier",
    "Gap %",
    "n",
    "Verified",
    "Better than",
    "Division",
    "Passes",
    "Seconds",
    "Device",
    "Source",
    "Venue",
    "Notes",
    "Suite",
    "Run",
)
"""Every column that a board may show, in the order in which it does."""
_PLAIN = frozenset(COLUMNS) - {
    "Reported",
    "Group",
    "Fidelity",
    "Extra data",
    "Best known %",
    "Verified",
    "Better than",
    "Division",
    "Passes",
    "Seconds",
    "Device",
    "Source",
    "Venue",
}
"""What a board without a definition shows even where it is empty."""
LEVELS = ("arithmetic", "predictions", "subset", "all")
"""What was checked at each level of verification."""

_LONGEST_CELL = 120

_WHEN = {"always": "", "supported": " (when supported)", "flagged": " (when a suspicion is raised)"}


def table_rows(board: Board) -> list[dict[str, str]]:
    """The board as people read it: column title to text, free of control characters, escaped for no format yet.

    The columns that its definition names, else those that have content.
    """
    wins, losses = _better(board)
    rows = [_display(board, row, wins.get(row.key, 0), losses.get(row.key, 0)) for row in board.rows]
    filled = {title for row in rows for title, text in row.items() if text}
    shown = board.columns or [t for t in COLUMNS if t in filled or (not board.title and t in _PLAIN)]
    return [{title: row[title] for title in shown} for row in rows]


def describe(board: Board) -> dict[str, str]:
    """What the board is about, in words: title of the fact to text, free of control characters."""
    subset = f", {board.subset}" if board.subset not in ("", "all") else ""
    size = f", {board.n} examples" if board.n else ""
    fingerprint = f" (fingerprint {board.fingerprint[:16]})" if board.fingerprint else ""
    facts = {
        "Data": f"{board.data_name}{subset}{size}{fingerprint}",
        "Threat model": f"{board.norm}, eps {board.eps}" if board.eps else board.norm,
    }
    if board.protocol:
        stages = ", ".join(s.name + _WHEN[s.when] for s in board.protocol.stages)
        facts["Protocol"] = f"{board.protocol.name} version {board.protocol.version}: {stages}"
    return {title: visible(text, None) for title, text in facts.items()}


def correction_text(row: Row, correction: Correction) -> str:
    """One correction of an entry as a line."""
    value = "" if correction.robust_accuracy is None else f" to {100 * correction.robust_accuracy:g} %"
    count = f" ({len(correction.examples)} examples)" if correction.examples else ""
    said = f"{row.label}: {correction.action}{value}{count}: {correction.reason} ({correction.by}, {correction.utc})"
    return visible(said, None)


def _display(board: Board, row: Row, wins: int, losses: int) -> dict[str, str]:
    metrics = (row.clean, row.robust, row.best_known, row.certified)
    texts = {
        "Rank": _rank(row) if board.ranking == "verified" else "",
        "Reported": _number(row.reported_rank),
        "Group": _number(row.group) if board.title else "",
        "Model": row.label,
        "Defense": row.defense,
        "Fidelity": row.fidelity,
        "Architecture": row.arch,
        "Extra data": {True: "yes", False: "no", None: ""}[row.extra_data],
        **dict(zip(PERCENTAGES, map(_percent, metrics), strict=True)),
        "Certifier": ", ".join(f"{name} ({guarantee})" if guarantee else name for name, guarantee in row.certifiers),
        "Gap %": "" if row.gap is None else f"{100 * row.gap:.1f}",
        "n": _number(row.n or None),
        "Verified": _verified(board, row),
        "Better than": f"{wins} of {wins + losses}" if board.comparisons and row.rank is not None else "",
        "Division": row.division if board.title and row.provenance == "run" else "",
        **_cost(row),
        "Source": "" if row.provenance == "run" else row.provenance,
        "Venue": row.venue,
        "Notes": "; ".join(row.notes),
        "Suite": row.suite_version,
        "Run": row.run_key,
    }
    return {title: visible(text) for title, text in texts.items()}


def _rank(row: Row) -> str:
    return "-" if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _verified(board: Board, row: Row) -> str:
    if not board.title:
        return ""
    return "no" if row.level is None else f"{row.level}: {LEVELS[row.level]}"


def _cost(row: Row) -> dict[str, str]:
    cost = row.cost
    if cost is None or not cost.forward:
        return {"Passes": "", "Seconds": "", "Device": ""}
    seconds = (f"{cost.seconds:.0f}" if cost.seconds >= 100 else f"{cost.seconds:.3g}") if cost.seconds else ""
    return {"Passes": str(cost.forward + cost.backward), "Seconds": seconds, "Device": cost.device}


def _better(board: Board) -> tuple[Counter[str], Counter[str]]:
    """How many other entries each one may be called better than, and how many not."""
    wins, losses = Counter[str](), Counter[str]()
    for comparison in board.comparisons:
        for key in (comparison.first, comparison.second):
            wins[key] += comparison.better == key
            losses[key] += comparison.better != key
    return wins, losses


def _percent(metric: Metric | None) -> str:
    if metric is None:
        return ""
    lower, upper = metric.ci95
    return f"{100 * metric.value:.1f} [{100 * lower:.1f}, {100 * upper:.1f}]"


def visible(text: str, longest: int | None = _LONGEST_CELL) -> str:
    """One line without control, bidi or unpaired characters, so that no name can redraw the table around it."""
    line = " ".join(text.split())
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in line)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"
