"""Boards to files: Markdown, CSV, JSON, LaTeX. The same records give the same bytes."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from robustsuite.errors import InputError, UsageError
from robustsuite.leaderboard.board import METRICS, Board, Row, boards
from robustsuite.leaderboard.display import PERCENTAGES, describe, table_rows, visible
from robustsuite.results.schema import Record
from robustsuite.results.store import json_bytes, write_atomic

BOARD_VERSION = 1
GENERATED = "<!-- Written by `robustsuite board build` from the records; edits here are lost. -->"
_RANKING = (
    "Sorted by the lower end of the 95 % interval (Clopper-Pearson) of robust accuracy, then by clean accuracy. A rank "
    "is 1 + the number of entries whose interval lies entirely above; `=` marks entries that share a rank because "
    "their intervals overlap. Entries without a rank are incomplete, unreliable, randomized or in conflict, as their "
    "notes say."
)


def build(
    records: Iterable[Record], out_dir: str | Path, formats: Sequence[str] = ("md", "csv", "json", "tex")
) -> list[Path]:
    """Write every board of ``records`` in every format, and an index `README.md`; return the paths written.

    Raises `InputError` when there is no record or ``out_dir`` has a README of its own, `UsageError` for an unknown
    format, `PrerequisiteError` when the disk refuses.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"no table format '{name}'. Available: {', '.join(FORMATS)}.")
    built, out_dir = boards(records), Path(out_dir)
    index = out_dir / "README.md"
    if index.exists() and GENERATED.encode() not in index.read_bytes():
        raise InputError(f"{index} was not written by `robustsuite board build`; choose another folder for the tables.")
    written = []
    for board in built:
        for name in dict.fromkeys(formats):
            written.append(out_dir / f"{board.id}.{name}")
            write_atomic(written[-1], FORMATS[name](board).encode(errors="replace"))
    write_atomic(index, _index(built, list(dict.fromkeys(formats))).encode(errors="replace"))
    return [*written, index]


_MARKDOWN = {c: "\\" + c for c in "\\`*_[]|~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _markdown_text(text: str) -> str:
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


def to_markdown(board: Board) -> str:
    """A page with the facts, the aligned table, the rule of ranking and the conflicts."""
    parts = [GENERATED, f"# {board.id}"]
    parts.append("\n".join(f"- {title}: {_markdown_text(text)}" for title, text in describe(board).items()))
    rows = [{t: x if t in PERCENTAGES else _markdown_text(x) for t, x in row.items()} for row in table_rows(board)]
    parts += [_pipe_table(rows), _RANKING]
    if board.conflicts:
        lines = (f"- {_markdown_text(visible(str(c), None))}" for c in board.conflicts)
        parts.append("Conflicts (one request, different outcomes; at least one is wrong):\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(board: Board) -> str:
    """One line an entry, raw fractions; text that a spreadsheet would run as a formula gets a leading quote."""
    import pandas as pd

    rows = [{k: _no_formula(v) if isinstance(v, str) else v for k, v in _flat(row).items()} for row in board.rows]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "rank": row.rank,
        "tied": row.tied,
        "name": row.label,
        "defense": row.defense,
        "arch": row.arch,
    }
    for name, metric in zip(METRICS, (row.clean, row.robust, row.certified), strict=True):
        lower, upper = metric.ci95 if metric else (None, None)
        flat |= {name: metric.value if metric else None, f"{name}_lower": lower, f"{name}_upper": upper}
    return flat | {
        "certifier": "; ".join(plugin for plugin, _ in row.certifiers),
        "guarantee": "; ".join(guarantee for _, guarantee in row.certifiers),
        "gap": row.gap,
        "n": row.n,
        "status": row.status,
        "unreliable": row.unreliable,
        "randomized": row.randomized,
        "flags": "; ".join(row.flags),
        "notes": "; ".join(row.notes),
        "run_key": row.run_key,
        "weights_sha256": row.weights_sha256,
        "suite_version": row.suite_version,
    }


def _no_formula(text: str) -> str:
    line = visible(text, None)
    return "'" + line if line.startswith(tuple("=+-@＝＋－＠")) else line


def to_json(board: Board) -> str:
    """The whole board as data: metrics as ``{name, value, ci95, n}`` with values in [0,1]."""
    body = {
        "kind": "board",
        "board_version": BOARD_VERSION,
        "id": board.id,
        "data": {"name": board.data_name, "subset": board.subset, "n": board.n, "fingerprint": board.fingerprint},
        "threat": {"norm": board.norm, "eps": board.eps},
        "protocol": board.protocol.model_dump(mode="json"),
        "rows": [_json_row(row) for row in board.rows],
        "conflicts": [{"run_key": c.run_key, "name": c.name, "outcomes": list(c.outcomes)} for c in board.conflicts],
    }
    return json_bytes(body, f"board {board.id}").decode()


def _json_row(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "tied": row.tied,
        "name": row.label,
        "defense": row.defense,
        "arch": row.arch,
        "metrics": [metric.model_dump(mode="json") for metric in row.metrics],
        "certifiers": [{"name": plugin, "guarantee": guarantee} for plugin, guarantee in row.certifiers],
        "gap": row.gap,
        "n": row.n,
        "status": row.status,
        "unreliable": row.unreliable,
        "randomized": row.randomized,
        "flags": list(row.flags),
        "notes": list(row.notes),
        "run_key": row.run_key,
        "outcome_sha256": row.outcome_sha256,
        "weights_sha256": row.weights_sha256,
        "suite_version": row.suite_version,
    }


def to_latex(board: Board) -> str:
    """A booktabs table for a paper (needs ``\\usepackage{booktabs}``); what the record says is escaped."""
    import pandas as pd

    columns = ("Rank", "Model", "Defense", "Architecture", "Clean %", "Robust %", "Certified %", "Certifier", "Notes")
    frame = pd.DataFrame([{c: row[c] for c in columns} for row in table_rows(board)], columns=list(columns))
    facts = describe(board)
    comment = "\n".join(f"% {title}: {text}" for title, text in facts.items())
    return f"{comment}\n{frame.to_latex(index=False, escape=True, column_format='l' * len(columns))}"


FORMATS: dict[str, Callable[[Board], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json, "tex": to_latex}


def _index(built: Sequence[Board], formats: Sequence[str]) -> str:
    rows = []
    for board in built:
        facts = {title: _markdown_text(text) for title, text in describe(board).items()}
        files = ", ".join(f"[{name}]({board.id}.{name})" for name in formats)  # an id is safe in a link
        ranked = sum(row.rank is not None for row in board.rows)
        rows.append({"Board": board.id, **facts, "Entries": f"{len(board.rows)} ({ranked} ranked)", "Files": files})
    return f"{GENERATED}\n\n# Leaderboards\n\n{_pipe_table(rows)}\n"
