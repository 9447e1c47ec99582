"""Boards as Markdown pages, and the index over them."""

from collections.abc import Sequence

from robustsuite.leaderboard.display import PERCENTAGES, correction_text, describe, table_rows, visible
from robustsuite.leaderboard.row import Board

GENERATED = "<!-- Written by `robustsuite board build` from the records; edits here are lost. -->"
EMPTY = "There are no entries yet."
_RANKS = (
    "A rank is 1 + the number of entries whose interval lies entirely above; `=` marks entries that share a rank "
    "because their intervals overlap."
)
_RANKING = (
    "Sorted by the lower end of the 95 % interval (Clopper-Pearson) of robust accuracy, then by clean accuracy. "
    f"{_RANKS} Entries without a rank are incomplete, unreliable, randomized or in conflict, as their notes say."
)
_VERIFIED = (
    "Sorted by the lower end of the 95 % interval (Clopper-Pearson) of best known robust accuracy, then by clean "
    "accuracy. Best known: examples that no run of the same weights and no correction has broken. "
    f"{_RANKS} Entries of one group overlap with its best. Better than: how many of the other ranked entries an exact "
    "McNemar test on the same examples sets it above, at 5 % after Holm's correction for all pairs. Entries without a "
    "rank are unverified, incomplete, unreliable, randomized or invalidated, as their notes say."
)
_REPORTED = (
    "The numbers are the source's own: nothing here was evaluated or verified by this suite, and nothing is ranked by "
    "it. `Reported` is the place in the source's order: by best known robust accuracy, which is what the source "
    "measured, or the lower number that it has accepted since. Intervals (Clopper-Pearson, 95 %) follow from the "
    "number of examples that the source states."
)
_MARKDOWN = {c: "\\" + c for c in "\\`*_[]|~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def to_markdown(board: Board) -> str:
    """A page with the facts, the aligned table, the rule of ranking, corrections and conflicts."""
    parts = [GENERATED, f"# {_text(visible(board.title, None)) or board.id}"]
    if board.description:
        parts.append(_text(visible(board.description, None)))
    parts.append("\n".join(f"- {title}: {_text(text)}" for title, text in describe(board).items()))
    rows = [{t: x if t in PERCENTAGES else _text(x) for t, x in row.items()} for row in table_rows(board)]
    parts += [_pipe_table(rows) if rows else EMPTY, _rule(board)]
    corrections = [f"- {_text(correction_text(row, c))}" for row in board.rows for c in row.corrections]
    if corrections:
        parts.append("Corrections:\n\n" + "\n".join(corrections))
    if board.conflicts:
        lines = (f"- {_text(visible(str(c), None))}" for c in board.conflicts)
        parts.append("Conflicts (one request, different outcomes; at least one is wrong):\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def index(built: Sequence[Board], formats: Sequence[str]) -> str:
    """The page over all boards."""
    rows = []
    for board in built:
        facts = {title: _text(describe(board).get(title, "")) for title in ("Data", "Threat model", "Protocol")}
        files = ", ".join(f"[{name}]({board.id}.{name})" for name in formats)  # an id is safe in a link
        ranked = sum(row.rank is not None for row in board.rows)
        rows.append({"Board": board.id, **facts, "Entries": f"{len(board.rows)} ({ranked} ranked)", "Files": files})
    return f"{GENERATED}\n\n# Leaderboards\n\n{_pipe_table(rows)}\n"


def _rule(board: Board) -> str:
    if board.ranking == "reported":
        return _REPORTED
    return _VERIFIED if board.title else _RANKING


def _text(text: str) -> str:
    """Literal text: no table cell, emphasis, HTML, link or address that becomes one by itself."""
    return text.translate(str.maketrans(_MARKDOWN)).replace("://", "&#58;//").replace("www.", "www&#46;")


def _pipe_table(rows: Sequence[dict[str, str]]) -> str:
    """Aligned table of cells that are Markdown already."""
    titles = list(rows[0])
    cells = [titles, *(list(row.values()) for row in rows)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(titles))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
