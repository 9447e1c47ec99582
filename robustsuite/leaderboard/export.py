"""Boards to files: Markdown, CSV, JSON, LaTeX. The same records give the same bytes."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from robustsuite.errors import InputError, UsageError
from robustsuite.leaderboard.board import boards
from robustsuite.leaderboard.display import describe, table_rows, visible
from robustsuite.leaderboard.markdown import EMPTY, GENERATED, index, to_markdown
from robustsuite.leaderboard.row import Board, Row
from robustsuite.results.schema import Metric, Record
from robustsuite.results.store import json_bytes, write_atomic

BOARD_VERSION = 1
_LATEX_LEFT_OUT = frozenset({"Group", "Gap %", "n", "Division", "Passes", "Seconds", "Device", "Suite", "Run"})


def build(
    records: Iterable[Record], out_dir: str | Path, formats: Sequence[str] = ("md", "csv", "json", "tex")
) -> list[Path]:
    """Write every board of ``records`` as `write` does; raises `InputError` too when there is no record."""
    _check(formats)
    return write(boards(records), out_dir, formats)


def write(
    built: Sequence[Board], out_dir: str | Path, formats: Sequence[str] = ("md", "csv", "json", "tex")
) -> list[Path]:
    """Write every board in every format, and an index `README.md`; return the paths written.

    Raises `InputError` when ``out_dir`` has a README of its own, `UsageError` for an unknown format,
    `PrerequisiteError` when the disk refuses.
    """
    _check(formats)
    out_dir = Path(out_dir)
    page = out_dir / "README.md"
    if page.exists() and GENERATED.encode() not in page.read_bytes():
        raise InputError(f"{page} was not written by `robustsuite board build`; choose another folder for the tables.")
    tables = contents(built, formats)
    for name, body in tables.items():
        write_atomic(out_dir / name, body)
    return [out_dir / name for name in tables]


def contents(built: Sequence[Board], formats: Sequence[str] = ("md", "csv", "json", "tex")) -> dict[str, bytes]:
    """What `write` writes: file name to bytes, the index last."""
    wanted = list(dict.fromkeys(formats))
    found = {f"{b.id}.{name}": FORMATS[name](b).encode(errors="replace") for b in built for name in wanted}
    return found | {"README.md": index(built, wanted).encode(errors="replace")}


def _check(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"no table format '{name}'. Available: {', '.join(FORMATS)}.")


def to_csv(board: Board) -> str:
    """One line an entry, raw fractions; text that a spreadsheet would run as a formula gets a leading quote."""
    import pandas as pd

    columns = {name: [_cell(of(row)) for row in board.rows] for name, of in _FIELDS.items()}
    return pd.DataFrame(columns, dtype=object).to_csv(index=False, lineterminator="\n")


def _metric_fields(name: str, of: Callable[[Row], Metric | None]) -> dict[str, Callable[[Row], Any]]:
    return {
        name: lambda row: m.value if (m := of(row)) else None,
        f"{name}_lower": lambda row: m.ci95[0] if (m := of(row)) else None,
        f"{name}_upper": lambda row: m.ci95[1] if (m := of(row)) else None,
    }


_FIELDS: dict[str, Callable[[Row], Any]] = {
    "rank": lambda row: row.rank,
    "tied": lambda row: row.tied,
    "group": lambda row: row.group,
    "reported_rank": lambda row: row.reported_rank,
    "name": lambda row: row.label,
    "defense": lambda row: row.defense,
    "arch": lambda row: row.arch,
    "extra_data": lambda row: row.extra_data,
    **_metric_fields("clean_accuracy", lambda row: row.clean),
    **_metric_fields("robust_accuracy", lambda row: row.robust),
    **_metric_fields("best_known", lambda row: row.best_known),
    **_metric_fields("certified_accuracy", lambda row: row.certified),
    "certifier": lambda row: "; ".join(plugin for plugin, _ in row.certifiers),
    "guarantee": lambda row: "; ".join(guarantee for _, guarantee in row.certifiers),
    "gap": lambda row: row.gap,
    "n": lambda row: row.n,
    "status": lambda row: row.status,
    "level": lambda row: row.level,
    "division": lambda row: row.division,
    "unreliable": lambda row: row.unreliable,
    "randomized": lambda row: row.randomized,
    "forward": lambda row: row.cost and row.cost.forward,
    "backward": lambda row: row.cost and row.cost.backward,
    "seconds": lambda row: row.cost and row.cost.seconds,
    "device": lambda row: row.cost and row.cost.device,
    "n_params": lambda row: row.n_params,
    "flags": lambda row: "; ".join(row.flags),
    "notes": lambda row: "; ".join(row.notes),
    "source": lambda row: row.provenance,
    "venue": lambda row: row.venue,
    "link": lambda row: row.link,
    "key": lambda row: row.key,
    "run_key": lambda row: row.run_key,
    "weights_sha256": lambda row: row.weights_sha256,
    "suite_version": lambda row: row.suite_version,
}


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = visible(value, None)
    return "'" + line if line.startswith(tuple("=+-@＝＋－＠")) else line


def to_json(board: Board) -> str:
    """The whole board as data: metrics as ``{name, value, ci95, n}`` with values in [0,1]."""
    body = {
        "kind": "board",
        "board_version": BOARD_VERSION,
        "id": board.id,
        "title": board.title,
        "description": board.description,
        "ranking": board.ranking,
        "data": {"name": board.data_name, "subset": board.subset, "n": board.n, "fingerprint": board.fingerprint},
        "threat": {"norm": board.norm, "eps": board.eps},
        "protocol": board.protocol.model_dump(mode="json") if board.protocol else None,
        "rows": [_json_row(row) for row in board.rows],
        "conflicts": [{"run_key": c.run_key, "name": c.name, "outcomes": list(c.outcomes)} for c in board.conflicts],
    }
    return json_bytes(body, f"board {board.id}").decode()


def _json_row(row: Row) -> dict[str, Any]:
    metrics = [row.clean, row.robust, row.best_known, row.certified]
    return {
        "rank": row.rank,
        "tied": row.tied,
        "group": row.group,
        "reported_rank": row.reported_rank,
        "name": row.label,
        "key": row.key,
        "source": row.provenance,
        "defense": row.defense,
        "arch": row.arch,
        "n_params": row.n_params,
        "extra_data": row.extra_data,
        "authors": row.authors,
        "venue": row.venue,
        "link": row.link,
        "metrics": [metric.model_dump(mode="json") for metric in metrics if metric],
        "certifiers": [{"name": plugin, "guarantee": guarantee} for plugin, guarantee in row.certifiers],
        "gap": row.gap,
        "n": row.n,
        "status": row.status,
        "level": row.level,
        "division": row.division,
        "unreliable": row.unreliable,
        "randomized": row.randomized,
        "cost": vars(row.cost) if row.cost else None,
        "flags": list(row.flags),
        "notes": list(row.notes),
        "corrections": [c.model_dump(mode="json") for c in row.corrections],
        "run_key": row.run_key,
        "outcome_sha256": row.outcome_sha256,
        "weights_sha256": row.weights_sha256,
        "suite_version": row.suite_version,
    }


def to_latex(board: Board) -> str:
    """A booktabs table for a paper (needs ``\\usepackage{booktabs}``); what the record says is escaped."""
    import pandas as pd

    comment = "\n".join(f"% {title}: {text}" for title, text in describe(board).items())
    rows = table_rows(board)
    if not rows:
        return f"{comment}\n% {EMPTY}\n"
    columns = [title for title in rows[0] if title not in _LATEX_LEFT_OUT]
    frame = pd.DataFrame([{c: row[c] for c in columns} for row in rows], columns=columns)
    return f"{comment}\n{frame.to_latex(index=False, escape=True, column_format='l' * len(columns))}"


FORMATS: dict[str, Callable[[Board], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json, "tex": to_latex}
