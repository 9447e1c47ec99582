"""Curves: accuracy against eps (attacked) and against the radius (certified), as steps drawn on the server."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Board
from robustsuite.leaderboard.site import words
from robustsuite.leaderboard.site.axes import Axis, axis
from robustsuite.results.published import Curve

WIDTH, HEIGHT, MOST = 640, 380, 10
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 16, 50
_TITLES = {"robust": "Robust accuracy against eps", "certified": "Certified accuracy against the radius"}


@dataclass(frozen=True)
class Line:
    """One curve: its path, its style's number, and what it is called."""

    key: str
    page: str
    name: str
    path: str
    band: str
    """Outline of the 95 % band; empty where an interval is not known, or several curves share the chart."""
    style: int


@dataclass(frozen=True)
class CurveChart:
    """Curves of one kind and norm."""

    id: str
    kind: str
    norm: str
    title: str
    width: int
    height: int
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    eps: float | None
    """Pixel of the board's eps on the x axis."""
    eps_text: str
    left_out: int
    summary: str


def board_charts(board: Board, pages: Sequence[str]) -> list[CurveChart]:
    """One chart for each kind and norm, with the first `MOST` entries that have such a curve."""
    named = [
        (page, _name(visible(row.label, 72), curve, row.curves), curve)
        for row, page in zip(board.rows, pages, strict=True)
        for curve in row.curves
    ]
    return _charts(board, named)


def entry_charts(board: Board, page: str, curves: Sequence[Curve]) -> list[CurveChart]:
    """The charts of one entry, with bands where intervals are known."""
    return _charts(board, [(page, visible(c.label, 60) or c.kind, c) for c in curves])


def _name(label: str, curve: Curve, siblings: Sequence[Curve]) -> str:
    same = [c for c in siblings if (c.kind, c.norm) == (curve.kind, curve.norm)]
    return f"{label}, {visible(curve.label, 40)}" if len(same) > 1 else label


def _charts(board: Board, named: Sequence[tuple[str, str, Curve]]) -> list[CurveChart]:
    kinds = dict.fromkeys((c.kind, c.norm) for _, _, c in named)
    charts = []
    for kind, norm in sorted(kinds):
        own = [(page, name, c) for page, name, c in named if (c.kind, c.norm) == (kind, norm) and len(c.points) > 1]
        if own:
            charts.append(_chart(board, kind, norm, own))
    return charts


def _chart(board: Board, kind: str, norm: str, named: Sequence[tuple[str, str, Curve]]) -> CurveChart:
    kept = named[:MOST]
    eps = _eps(board) if norm == board.norm else None
    xs = [p.x for _, _, c in kept for p in c.points] + ([eps] if eps is not None else [])
    x = axis([0.0, *xs], _LEFT, WIDTH - _RIGHT)
    y = axis([0.0, *(p.value for _, _, c in kept for p in c.points)], HEIGHT - _BOTTOM, _TOP, ceiling=1.0)
    lines = [
        Line(page, page, name, _steps(c, x, y), _band(c, x, y) if len(kept) == 1 else "", i)
        for i, (page, name, c) in enumerate(kept)
    ]
    return CurveChart(
        id=f"{kind}-{norm.lower()}",
        kind=kind,
        norm=norm,
        title=f"{_TITLES[kind]} ({norm})",
        width=WIDTH,
        height=HEIGHT,
        x=x,
        y=y,
        lines=tuple(lines),
        eps=None if eps is None else x.at(eps),
        eps_text="" if eps is None else f"the board's eps {visible(board.eps)}",
        left_out=len(named) - len(kept),
        summary="; ".join(_said(name, c) for _, name, c in kept),
    )


def _said(name: str, curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    return f"{name}: {words.percent(first.value)} % at {first.x:g} to {words.percent(last.value)} % at {last.x:g}"


def _eps(board: Board) -> float | None:
    from robustsuite.errors import RobustsuiteError
    from robustsuite.threat import Eps

    try:
        return float(Eps.parse(board.eps))
    except (RobustsuiteError, ValueError):
        return None


def _steps(curve: Curve, x: Axis, y: Axis) -> str:
    return _path(curve.kind, [(x.at(p.x), y.at(p.value)) for p in curve.points])


def _path(kind: str, pixels: Sequence[tuple[float, float]]) -> str:
    """A certified curve falls just behind its radius; an attacked one keeps its value until the next eps."""
    steps = list(dict(pixels).items())  # of points in one pixel column the last one stays
    path = f"M{steps[0][0]:g} {steps[0][1]:g}"
    for (_, before), (px, py) in itertools.pairwise(steps):
        if py == before:
            path += f"H{px:g}"
        else:
            path += f"V{py:g}H{px:g}" if kind == "certified" else f"H{px:g}V{py:g}"
    return path


def _band(curve: Curve, x: Axis, y: Axis) -> str:
    ends = [(p.x, p.ci95) for p in curve.points if p.ci95]
    if len(ends) != len(curve.points):
        return ""
    upper = _path(curve.kind, [(x.at(v), y.at(ci[1])) for v, ci in ends])
    back = [(x.at(v), y.at(ci[0])) for v, ci in reversed(ends)]
    lower = _path("robust" if curve.kind == "certified" else "certified", back)
    return f"{upper}L{lower.removeprefix('M')}Z"
