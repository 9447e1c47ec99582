"""What the page that compares two entries needs: names, numbers, and which examples each entry keeps."""

import base64
from collections.abc import Sequence
from typing import Any

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.paired import comparable
from robustsuite.leaderboard.row import Board, Row
from robustsuite.leaderboard.site import words
from robustsuite.results.schema import Metric


def payload(board: Board, pages: Sequence[str]) -> dict[str, Any]:
    """JSON for the page's script; metrics as [value, lower, upper], ``kept`` as base64 of the packed bits.

    The entries that have ``kept`` are those that Holm's correction is over.
    """
    tested = {row.key for row in comparable(board.rows)}
    entries = [_entry(board, row, page, row.key in tested) for row, page in zip(board.rows, pages, strict=True)]
    return {"n": board.n, "digits": words.decimals(board), "entries": entries}


def _entry(board: Board, row: Row, page: str, tested: bool) -> dict[str, Any]:
    rank = row.reported_rank if board.ranking == "reported" else row.rank
    facts = {
        "Rank": "not ranked" if rank is None else f"{rank}{'=' if row.tied else ''}",
        "Marks": ", ".join(text for _, text in words.marks(row)),
        "Verified": words.verified(row),
        "Defense": visible(row.defense, 80),
        "Architecture": visible(row.arch, 80),
        "Parameters": words.count(row.n_params) if row.n_params else "",
        "Extra data": {True: "yes", False: "no", None: ""}[row.extra_data],
        "Division": visible(row.division, 40),
        "Certifier": visible(words.certificate(row), 120),
        "Cost": words.cost(row.cost),
        "Authors": visible(row.authors, 160),
        "Published": visible(row.venue, 80),
        "Notes": visible("; ".join(words.remarks(row)), 400),
    }
    metrics = {"best": words.attacked(row), "certified": row.certified, "clean": row.clean, "own": row.robust}
    body: dict[str, Any] = {
        "id": page,
        "name": visible(row.label, 80),
        "facts": {title: text for title, text in facts.items() if text},
        "numbers": {name: _numbers(m) for name, m in metrics.items() if m},
    }
    if tested:
        body["kept"] = base64.b64encode(row.kept).decode()
    return body


def _numbers(metric: Metric) -> list[float]:
    return [float(f"{value:.6g}") for value in (metric.value, *metric.ci95)]
