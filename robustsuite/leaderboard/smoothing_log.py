"""One certification log of randomised smoothing: tab-separated lines of ``certify.py`` (Cohen et al. 2019).

Columns: idx, label, predict (-1 abstains), radius (three significant digits), correct, time. A line that cannot be read
is named and left out; what contradicts itself proves nothing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import expm1, log, log1p
from pathlib import Path

import numpy as np

from robustsuite.errors import InputError
from robustsuite.results.schema import Flag
from robustsuite.results.store import read_bytes

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,2})?|[+-]?(nan|inf)", re.IGNORECASE)
_CLOCK = re.compile(r"(?:([0-9]{1,4}) days?, )?([0-9]{1,4}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,9})?)")
_DIGITS = 3
_SHOWN = 5


@dataclass(frozen=True)
class Line:
    """One readable line. ``least`` is the smallest radius that is printed as ``radius``; 0 where that is none."""

    number: int
    idx: int
    label: int
    predicted: int
    radius: float
    least: float
    correct: int
    seconds: float

    @property
    def has_radius(self) -> bool:
        """Whether the radius is a finite number that is not negative."""
        return 0 <= self.radius < float("inf")

    @property
    def contradicts_itself(self) -> bool:
        """``correct`` is not what label and prediction say, or an abstention claims something."""
        return self.correct != (self.predicted == self.label) or (self.predicted < 0 and self.radius > 0)

    @property
    def right(self) -> bool:
        """The label was predicted, and the whole line says so."""
        return self.predicted == self.label and self.correct == 1

    @property
    def proved(self) -> float:
        """The radius within which the label is proved; 0 where it is not."""
        return self.radius if self.right and self.has_radius else 0.0


@dataclass(frozen=True)
class Log:
    """The lines of one file, one an example, in the file's order."""

    lines: tuple[Line, ...]
    unparsable: tuple[str, ...]
    """What cannot be read: the line's number and why."""
    repeated: tuple[int, ...]
    """Numbers of lines about an example that an earlier line is about; left out."""
    cut: bool
    """The file does not end with the end of a line."""

    @property
    def idx(self) -> np.ndarray:
        """Positions in the test set, int64 ``[N]``."""
        return np.array([line.idx for line in self.lines], dtype=np.int64)

    @property
    def label(self) -> np.ndarray:
        """Labels, int64 ``[N]``."""
        return np.array([line.label for line in self.lines], dtype=np.int64)

    @property
    def predicted(self) -> np.ndarray:
        """Classes, int64 ``[N]``; -1 abstains."""
        return np.array([line.predicted for line in self.lines], dtype=np.int64)

    @property
    def right(self) -> np.ndarray:
        """Where the label was predicted, bool ``[N]``."""
        return np.array([line.right for line in self.lines])

    @property
    def proved(self) -> np.ndarray:
        """Radii within which the label is proved, float64 ``[N]``."""
        return np.array([line.proved for line in self.lines])


def read_log(path: Path) -> Log:
    """Read a log; raises `InputError` when it has another header or not one readable line."""
    text = read_bytes(path).decode("utf-8", "replace")
    first, *rest = text.split("\n")
    if tuple(first.strip().split("\t")) != COLUMNS:
        raise InputError(f"begins with {first[:60]!r}, expected the columns {', '.join(COLUMNS)} with tabs between.")
    lines: dict[int, Line] = {}
    unparsable, repeated = [], []
    for number, words in enumerate(rest, 2):
        if not words.strip():
            continue
        try:
            line = _line(number, words.rstrip("\r").split("\t"))
        except InputError as error:
            unparsable.append(f"line {number} {error}")
            continue
        if line.idx in lines:
            repeated.append(number)
        lines.setdefault(line.idx, line)
    if not lines:
        raise InputError(f"has no readable line ({'; '.join(unparsable[:_SHOWN]) or 'there is none at all'}).")
    return Log(tuple(lines.values()), tuple(unparsable), tuple(repeated), not text.endswith("\n"))


def _line(number: int, fields: Sequence[str]) -> Line:
    if len(fields) != len(COLUMNS):
        raise InputError(f"has {len(fields)} fields of {len(COLUMNS)}")
    idx, label, predicted, correct = (_integer(fields[i], COLUMNS[i]) for i in (0, 1, 2, 4))
    if idx < 0 or label < 0 or predicted < -1 or correct not in (0, 1):
        raise InputError(f"has idx {idx}, label {label}, predict {predicted}, correct {correct}")
    if not _NUMBER.fullmatch(fields[3]):
        raise InputError(f"has the radius {fields[3][:40]!r}")
    radius = float(fields[3])
    return Line(number, idx, label, predicted, radius, _least(fields[3]), correct, _seconds(fields[5]))


def _integer(text: str, column: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise InputError(f"has {text[:40]!r} as {column}")
    return int(text)


def _seconds(text: str) -> float:
    """Seconds as a number (``15.4``) or a clock (``0:00:14.206886``): both are in published logs."""
    if _NUMBER.fullmatch(text) and 0 <= float(text) < float("inf"):
        return float(text)
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        raise InputError(f"has the time {text[:40]!r}")
    days, hours, minutes, seconds = clock.groups()
    return int(days or 0) * 86_400 + int(hours) * 3_600 + int(minutes) * 60 + float(seconds)


def _least(text: str) -> float:
    """The smallest number that prints as ``text``: half a unit of the third significant digit below, or of the last."""
    number = Decimal(text)
    if not number.is_finite() or number <= 0:
        return 0.0
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return float(number - Decimal(5).scaleb(min(exponent, number.adjusted() - _DIGITS + 1) - 1))


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """``sigma * Phi^-1(alpha^(1/n))``: what n votes of n give (Cohen et al. 2019, Clopper-Pearson at 1 - alpha)."""
    from scipy.special import ndtri

    return sigma * -float(ndtri(-expm1(log(alpha) / n)))


def needed_alpha(radius: float, sigma: float, n: int) -> float:
    """The failure probability at which n votes of n give ``radius``."""
    from scipy.special import ndtr

    return float(np.exp(n * log1p(-float(ndtr(-radius / sigma)))))


def flags(log: Log, most_lines: int, sigma: float, n: int, alpha: float) -> tuple[Flag, ...]:
    """What is wrong with a log of ``n`` samples an example at ``alpha``; ``most_lines`` is what its siblings have."""
    return (
        _impossible(log, sigma, n, alpha),
        _truncated(log, most_lines),
        _named("unparsable_lines", list(log.unparsable), "left out"),
        _named("repeated_examples", [f"line {number}" for number in log.repeated], "left out"),
        _named(
            "bad_radii",
            [f"line {line.number} ({line.radius})" for line in log.lines if not line.has_radius],
            "no numbers from 0 on; counted as not proved",
        ),
        _named(
            "contradictory_lines",
            [f"line {line.number}" for line in log.lines if line.contradicts_itself],
            "'correct' or the radius is not what label and prediction say; counted as not proved",
        ),
    )


def _named(name: str, found: list[str], meaning: str) -> Flag:
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    evidence = f"{len(found)} ({meaning}): {', '.join(found[:_SHOWN])}{more}" if found else "none"
    return Flag(name=name, raised=bool(found), evidence=evidence)


def _impossible(log: Log, sigma: float, n: int, alpha: float) -> Flag:
    limit = largest_radius(sigma, n, alpha)
    above = [line for line in log.lines if line.has_radius and line.least > limit]
    evidence = f"largest possible {limit:.4g} (sigma {sigma:g}, n={n}, alpha={alpha:g}; printed radii are rounded)"
    if above:
        top = max(above, key=lambda line: line.radius)
        needed = needed_alpha(top.least, sigma, n)
        evidence = (
            f"{len(above)} radii above the {evidence}, {sum(line.proved > 0 for line in above)} of them counted as "
            f"proved; {top.radius:g} needs alpha of {needed:.2g} or more samples"
        )
    remedy = "The log was made with other settings than stated: its confidence is not 1 - alpha." if above else ""
    return Flag(name="impossible_radii", raised=bool(above), evidence=evidence, remedy=remedy)


def _truncated(log: Log, most_lines: int) -> Flag:
    found = []
    if len(log.lines) < most_lines:
        found.append(f"{len(log.lines)} examples, where another log of the same model has {most_lines}")
    if log.cut:
        found.append("the last line has no end")
    missing, first = gaps(log.idx)
    if missing:
        found.append(f"{missing} missing between the others, from idx {first} on")
    evidence = "; ".join(found) or f"{len(log.lines)} examples at even distances"
    return Flag(name="truncated", raised=bool(found), evidence=evidence)


def gaps(idx: np.ndarray) -> tuple[int, int]:
    """How many positions are missing between the first and the last, by the distance of most neighbours; the first."""
    ordered = np.sort(idx)
    steps = np.diff(ordered)
    if not len(steps):
        return 0, 0
    step = Counter(steps.tolist()).most_common(1)[0][0]
    wide = np.flatnonzero(steps > step)
    return int((-(-steps[wide] // step) - 1).sum()), int(ordered[wide[0]] + step) if len(wide) else 0
