"""Two entries side by side, and in words whether one may be called better."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsuite.errors import InputError
from robustsuite.leaderboard.board import defined_board
from robustsuite.leaderboard.display import table_rows, visible
from robustsuite.leaderboard.paired import compare
from robustsuite.leaderboard.published import read_published
from robustsuite.leaderboard.row import Board, Comparison, Row

_SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Pair:
    """Two entries of a board; ``test`` is None where their examples are not known."""

    board: Board
    first: Row
    second: Row
    test: Comparison | None

    @property
    def verdict(self) -> str:
        """Whether one of the two may be called better than the other, and why, in one sentence."""
        doubtful = [row for row in (self.first, self.second) if row.rank is None]
        if self.test is None:
            unknown = [row.label for row in (self.first, self.second) if not row.kept]
            return f"Neither may be called better: it is not known which examples {' and '.join(unknown)} keeps."
        evidence = (
            f"p = {self.test.p_value:.3g}, {self.test.adjusted:.3g} after Holm's correction for all pairs of the board"
        )
        if doubtful:
            why = "; ".join(f"{row.label} is not ranked ({', '.join(row.notes)})" for row in doubtful)
            return f"Neither may be called better: {why}. The test alone gives {evidence}."
        if self.test.better is None:
            return f"Neither may be called better: such a difference is within chance at the 5 % level ({evidence})."
        winner, loser = (self.first, self.second) if self.test.better == self.first.key else (self.second, self.first)
        return f"{winner.label} may be called better than {loser.label}: {evidence}."


def find(folder: Path, first: str, second: str, board: str | None) -> Pair:
    """The pair on a board of a published folder, by run key (or its first digits), id or name.

    Raises `InputError` for entries that are not there, not told apart, on no common board, or one and the same.
    """
    published = read_published(folder)
    known = [b.definition.id for b in published.boards]
    if board is not None and board not in known:
        raise InputError(f"{folder} has no board '{board}'. Its boards: {', '.join(known) or 'none'}.")
    built = [defined_board(b) for b in published.boards if board in (None, b.definition.id)]
    both = [b for b in built if _matches(b, first) and _matches(b, second)]
    if not both:
        where = f"the board '{board}'" if board else f"one board of {folder}"
        missing = [name for name in (first, second) if not any(_matches(b, name) for b in built)]
        reason = f"there is no entry {' and no '.join(missing)}" if missing else "they answer different questions"
        raise InputError(f"'{first}' and '{second}' are not on {where}: {reason}.")
    if len(both) > 1:
        raise InputError(f"both are on {', '.join(b.id for b in both)}; choose one with --board.")
    one, other = (_only(both[0], name) for name in (first, second))
    if one.key == other.key:
        raise InputError(f"'{first}' and '{second}' are the same entry, {one.key}.")
    return Pair(both[0], one, other, compare(_with_pair(both[0], one, other), one.key, other.key))


def lines(pair: Pair) -> list[str]:
    """The pair for a terminal: the table's columns side by side, the 2x2 table, the verdict."""
    texts = dict(zip((row.key for row in pair.board.rows), table_rows(pair.board), strict=True))
    one, other = texts[pair.first.key], texts[pair.second.key]
    width = max(map(len, one))
    column = max(len(text) for text in one.values())
    out = [pair.board.id, ""]
    shown = [title for title in one if one[title] or other[title]]
    out += [f"{title:<{width}}  {one[title]:<{column}}  {other[title]}" for title in shown]
    if test := pair.test:
        a, b = visible(pair.first.label, 40), visible(pair.second.label, 40)
        out += ["", f"{'examples':<14}{'B keeps':>10}{'B loses':>10}      A: {a}, B: {b}"]
        out += [f"{'A keeps':<14}{test.both:>10}{test.only_first:>10}"]
        out += [f"{'A loses':<14}{test.only_second:>10}{test.neither:>10}"]
    return [*out, "", visible(pair.verdict, None)]


def document(pair: Pair) -> dict[str, Any]:
    """The pair as data."""
    test = vars(pair.test) | {"better": pair.test.better} if pair.test else None
    entries = [{"key": row.key, "name": row.label, "rank": row.rank} for row in (pair.first, pair.second)]
    return {"board": pair.board.id, "entries": entries, "test": test, "verdict": pair.verdict}


def _with_pair(board: Board, one: Row, other: Row) -> list[Row]:
    """What the correction counts: the board's ranked entries, and the two."""
    pair = (one.key, other.key)
    return [row for row in board.rows if row.kept and (row.rank is not None or row.key in pair)]


def _matches(board: Board, name: str) -> list[Row]:
    exact = [row for row in board.rows if name in (row.key, row.label)]
    named = [row for row in board.rows if row.record and row.record.request.model.name == name]
    begun = [row for row in board.rows if len(name) >= _SHORTEST_PREFIX and row.key.startswith(name)]
    return exact or named or begun


def _only(board: Board, name: str) -> Row:
    found = _matches(board, name)
    if len(found) > 1:
        raise InputError(f"'{name}' may be {', '.join(row.key for row in found[:5])}; give more of the run key.")
    return found[0]
