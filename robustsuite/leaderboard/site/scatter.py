"""Clean against robust accuracy, every entry a point that links to its page, with the Pareto front.

Drawn as SVG on the server: it is complete without scripts, prints, follows the page's colours, and its points are
links that a keyboard reaches. A chart library would weigh more than the table and add nothing to that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Board, Row
from robustsuite.leaderboard.site import words
from robustsuite.leaderboard.site.axes import Axis, axis

WIDTH, HEIGHT = 640, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 16, 50
_LETTER, _LINE, _MOST_WHISKERS = 6.6, 15.0, 40


@dataclass(frozen=True)
class Point:
    """One entry; pixels, and the texts that a reader gets."""

    key: str
    page: str
    x: float
    y: float
    y_low: float
    y_high: float
    shape: str
    """``proof``, ``plain``, or ``edge`` for a point that lies beyond the axes."""
    ranked: bool
    front: bool
    text: str
    """Name and both numbers: the point's accessible name."""
    label: str
    """Written beside the points of the front where there is room; else empty."""
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Scatter:
    """Everything that the template draws."""

    width: int
    height: int
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    front: str
    """Path of the Pareto front."""
    summary: str
    beyond: int
    """Points that lie beyond the axes, so that the others have room."""

    @property
    def whiskers(self) -> list[Point]:
        """The points whose intervals are drawn: those of the front alone where all would hide each other."""
        crowded = len(self.points) > _MOST_WHISKERS
        return [p for p in self.points if p.shape != "edge" and (p.front or not crowded)]


def scatter(board: Board, pages: Sequence[str]) -> Scatter | None:
    """The chart of a board; ``pages`` are the file names of its rows. None with fewer than two points."""
    shown = [(row, page) for row, page in zip(board.rows, pages, strict=True) if row.clean and words.attacked(row)]
    if len(shown) < 2:
        return None
    rows = [row for row, _ in shown]
    x = axis(_main([_clean(r) for r in rows]), _LEFT, WIDTH - _RIGHT, ceiling=1.0)
    inner = _main([_robust(r)[1] for r in rows])
    y = axis([v for r in rows if _robust(r)[1] >= min(inner) for v in _robust(r)], HEIGHT - _BOTTOM, _TOP, ceiling=1.0)
    best = pareto([(_clean(r), _robust(r)[1]) if _counts(board, r) else (-1.0, -1.0) for r in rows])
    points = [_point(board, r, p, x, y, i in best) for i, (r, p) in enumerate(shown)]
    points = sorted(_labelled(points), key=lambda p: (p.front, p.ranked))  # the front is drawn over the others
    front = sorted((p for p in points if p.front), key=lambda p: p.x)
    names = ", ".join(p.text for p in front[:5])
    more = f" and {len(front) - 5} more" if len(front) > 5 else ""
    summary = f"{len(points)} entries. On the Pareto front: {names}{more}." if front else f"{len(points)} entries."
    beyond = sum(p.shape == "edge" for p in points)
    return Scatter(WIDTH, HEIGHT, x, y, tuple(points), _path(front, x, y), summary, beyond)


def _main(values: Sequence[float]) -> list[float]:
    """The values above Tukey's lower outer fence: a model that learned nothing must not squeeze the others."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return [v for v in ordered if v >= low - 3 * max(high - low, 0.01)]


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points that no other is at least as good as in both, and better in one; (-1, -1) never counts."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    best, front, highest = -1.0, set(), None
    for i in order:
        clean, robust = points[i]
        if clean < 0:
            continue
        if robust > best or (clean, robust) == highest:
            front.add(i)
            best, highest = robust, (clean, robust)
    return front


def _counts(board: Board, row: Row) -> bool:
    """Whether the entry may be on the front: ranked, or on a board of reported numbers not called unreliable."""
    return row.rank is not None or (board.ranking == "reported" and not row.unreliable)


def _clean(row: Row) -> float:
    return row.clean.value if row.clean else 0.0


def _robust(row: Row) -> tuple[float, float, float]:
    metric = words.attacked(row)
    return (metric.ci95[0], metric.value, metric.ci95[1]) if metric else (0.0, 0.0, 0.0)


def _point(board: Board, row: Row, page: str, x: Axis, y: Axis, front: bool) -> Point:
    low, value, high = _robust(row)
    digits, name = words.decimals(board), visible(row.label, 60)
    outside = _clean(row) < x.low or value < y.low
    parts = [f"{name}: clean {words.percent(_clean(row), digits)} %", f"robust {words.percent(value, digits)} %"]
    if row.certified:
        parts.append(f"certified {words.percent(row.certified.value, digits)} %")
    return Point(
        key=page,
        page=page,
        x=x.at(_clean(row)),
        y=y.at(value),
        y_low=y.at(low),
        y_high=y.at(high),
        shape="edge" if outside else "proof" if row.certified and row.certified.value > 0 else "plain",
        ranked=_counts(board, row),
        front=front,
        text=", ".join(parts),
        label=visible(row.label, 26),
        label_x=0.0,
        label_y=0.0,
        anchor="start",
    )


def _labelled(points: Sequence[Point]) -> list[Point]:
    """Labels for the front where they cover neither a point nor another label."""
    taken = [(p.x - 5, p.y - 5, p.x + 5, p.y + 5) for p in points]
    out = []
    for p in points:
        place = _place(p, taken) if p.front and p.shape != "edge" else None
        if place is None:
            out.append(replace(p, label=""))
            continue
        x, y, anchor, box = place
        taken.append(box)
        out.append(replace(p, label_x=x, label_y=y, anchor=anchor))
    return out


def _place(
    p: Point, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, str, tuple[float, float, float, float]] | None:
    wide = len(p.label) * _LETTER
    for dx, dy, anchor in ((9, 4, "start"), (-9, 4, "end"), (7, -8, "start"), (-7, -8, "end"), (7, 17, "start")):
        left = p.x + dx if anchor == "start" else p.x + dx - wide
        box = (left, p.y + dy - _LINE + 3, left + wide, p.y + dy + 3)
        inside = box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            return round(p.x + dx, 1), round(p.y + dy, 1), anchor, box
    return None


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _path(front: Sequence[Point], x: Axis, y: Axis) -> str:
    """Steps: left of a point and below it, the point is at least as good."""
    if not front:
        return ""
    path = f"M{x.start:g} {front[0].y:g}"
    for p, after in zip(front, [*front[1:], None], strict=True):
        path += f"H{p.x:g}V{after.y if after else y.start:g}"
    return path
