"""Boards as people read them: texts for the cells of any table, on a page or a terminal."""

import unicodedata

from robustsuite.leaderboard.board import Board, Row
from robustsuite.results.schema import Metric

PERCENTAGES = ("Clean %", "Robust %", "Certified %")
"""Columns whose text is made of numbers alone: ``60.5 [53.4, 67.3]``."""

_LONGEST_CELL = 120

_WHEN = {"always": "", "supported": " (when supported)", "flagged": " (when a suspicion is raised)"}


def table_rows(board: Board) -> list[dict[str, str]]:
    """The board as people read it: column title to text, free of control characters, escaped for no format yet."""
    return [_display(row) for row in board.rows]


def describe(board: Board) -> dict[str, str]:
    """What the board is about, in words: title of the fact to text, free of control characters."""
    subset = f", {board.subset}" if board.subset not in ("", "all") else ""
    facts = {
        "Data": f"{board.data_name}{subset}, {board.n} examples (fingerprint {board.fingerprint[:16]})",
        "Threat model": f"{board.norm}, eps {board.eps}",
        "Protocol": f"{board.protocol.name} version {board.protocol.version}: "
        + ", ".join(s.name + _WHEN[s.when] for s in board.protocol.stages),
    }
    return {title: visible(text, None) for title, text in facts.items()}


def _display(row: Row) -> dict[str, str]:
    texts = {
        "Rank": "-" if row.rank is None else f"{row.rank}{'=' if row.tied else ''}",
        "Model": row.label,
        "Defense": row.defense,
        "Architecture": row.arch,
        **dict(zip(PERCENTAGES, map(_percent, (row.clean, row.robust, row.certified)), strict=True)),
        "Certifier": _certifiers(row),
        "Gap %": "" if row.gap is None else f"{100 * row.gap:.1f}",
        "n": str(row.n),
        "Notes": "; ".join(row.notes),
        "Suite": row.suite_version,
        "Run": row.run_key,
    }
    return {title: visible(text) for title, text in texts.items()}


def _percent(metric: Metric | None) -> str:
    if metric is None:
        return ""
    lower, upper = metric.ci95
    return f"{100 * metric.value:.1f} [{100 * lower:.1f}, {100 * upper:.1f}]"


def _certifiers(row: Row) -> str:
    return ", ".join(f"{plugin} ({guarantee})" if guarantee else plugin for plugin, guarantee in row.certifiers)


def visible(text: str, longest: int | None = _LONGEST_CELL) -> str:
    """One line without control, bidi or unpaired characters, so that no name can redraw the table around it."""
    line = " ".join(text.split())
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in line)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"
