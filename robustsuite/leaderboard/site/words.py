"""What a board, a number and a mark mean, in plain words; numbers as texts."""

from urllib.parse import urlsplit

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Board, Cost, Row
from robustsuite.results.schema import Metric

LEVELS = {
    0: ("level 0", "arithmetic", "hashes and every number checked"),
    1: ("level 1", "predictions", "weights, clean predictions and stored adversarial images checked"),
    2: ("level 2", "subset run again", "a seeded subset was run again"),
    3: ("level 3", "all run again", "everything was run again"),
}
"""How far an entry was verified: its number, in a word and in full."""

_ATTACKER = {
    "Linf": "change every pixel by up to {eps}",
    "L2": "change an image by up to {eps} in Euclidean distance (L2, over all pixels)",
    "L1": "change an image by up to {eps} in total (L1, summed over all pixels)",
}
_RULES = {
    "verified": (
        "Ranked by what holds: the lower end of the 95 % interval of the best known robust accuracy, then clean "
        "accuracy. Entries whose intervals overlap share a rank, marked “=”. Unverified entries say so; partial, "
        "randomised and unreliable ones are shown without a rank."
    ),
    "reported": (
        "In the source's own order. The numbers are the source's: nothing in this table was measured or verified here."
    ),
}


def title(board: Board) -> str:
    """The board's heading."""
    return visible(board.title or board.id, None)


def question(board: Board) -> str:
    """What the board answers, as a question that needs no notation."""
    move = _ATTACKER.get(board.norm, "change images within {eps}") if board.eps else "change the images"
    asked = "Which models still answer correctly when an attacker may " + move.format(eps=board.eps) + "?"
    return visible(asked, None)


def examples(board: Board) -> str:
    """The examples that were asked about."""
    chosen = "" if board.subset in ("", "all") else f" ({board.subset})"
    return visible(f"{f'{board.n:,} images of ' if board.n else ''}{board.data_name}{chosen}", None)


def rule(board: Board) -> str:
    """How the board is ordered."""
    return _RULES.get(board.ranking, _RULES["verified"])


def decimals(board: Board) -> int:
    """Digits behind the point of a percentage: a source's two are kept, and n examples give no more than one."""
    return 2 if board.ranking == "reported" or board.n > 5000 else 1


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign; empty where there is none."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def interval(metric: Metric | None, digits: int = 1) -> str:
    """The ends of the 95 % interval as percentages."""
    return "" if metric is None else f"[{percent(metric.ci95[0], digits)}, {percent(metric.ci95[1], digits)}]"


def attacked(row: Row) -> Metric | None:
    """What nobody has broken; what the entry's own attacks left where nothing else is known."""
    return row.best_known or row.robust


def headline(row: Row) -> Metric | None:
    """The number that an entry is known by: robust accuracy or, where nobody has attacked it, what is proved."""
    return attacked(row) or row.certified


def remarks(row: Row, longest: int | None = 160) -> list[str]:
    """The notes that no mark says already."""
    said = {row.status, "unverified", "randomized", "unreliable", f"not verified: {row.provenance}"}
    return [visible(note, longest) for note in row.notes if note not in said and not note.startswith("flag: ")]


def certificate(row: Row) -> str:
    """Who proved it, and what kind of proof that is."""
    return ", ".join(visible(f"{name} ({kind})" if kind else name) for name, kind in row.certifiers)


def verified(row: Row) -> str:
    """How far the entry was verified, in one phrase."""
    return "not verified" if row.level is None else f"{LEVELS[row.level][0]}: {LEVELS[row.level][2]}"


def marks(row: Row) -> list[tuple[str, str]]:
    """(kind, words) of what a reader must know before the number; kinds only choose a colour."""
    found: list[tuple[str, str]] = []
    if row.record is None and row.provenance != "run":
        found.append(("quiet", f"reported by {row.provenance}"))
    elif row.level is None:
        found.append(("warn", "unverified"))
    if row.status not in ("complete", "imported"):
        found.append(("bad", row.status))
    if row.randomized:
        found.append(("warn", "randomised"))
    if row.unreliable:
        found.append(("bad", "unreliable"))
    found += [("bad", f"flag: {name.replace('_', ' ')}") for name in row.flags]
    lowered = sum(c.action != "annotate" for c in row.corrections)
    if lowered:
        found.append(("warn", "corrected" if lowered == 1 else f"corrected {lowered} times"))
    return [(kind, visible(words, 60)) for kind, words in found]


def count(number: int) -> str:
    """A large count with its unit: 1.2 M."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def cost(spent: Cost | None) -> str:
    """Passes, time and device."""
    if spent is None:
        return ""
    return visible(f"{count(spent.forward + spent.backward)} passes, {duration(spent.seconds)}, {spent.device}", 80)


def web(link: str) -> str:
    """The address when a browser may follow it (http or https), else an empty text."""
    try:
        parts = urlsplit(link.strip())
    except ValueError:
        return ""
    return link.strip() if parts.scheme in ("http", "https") and parts.netloc else ""
