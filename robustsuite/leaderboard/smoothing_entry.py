"""Certification logs to what a board shows: an entry for one log, and one for the best of several at each radius."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustsuite.leaderboard.smoothing_log import Log, flags
from robustsuite.results.curve import AT, GRID, certified_at
from robustsuite.results.published import Curve, CurvePoint, ImportedEntry
from robustsuite.results.radii import report
from robustsuite.results.schema import Flag, Metric, canonical
from robustsuite.results.statistics import interval, metric
from robustsuite.threat import Eps

COHEN = "locuslab/smoothing"
RADII = tuple(float(Eps.parse(text)) for text in GRID["L2"])
RADIUS = "0.5"
"""What `certified_accuracy` without a radius is about: the board's eps."""
_CURVE_STEPS = 20  # to a unit of radius


@dataclass(frozen=True)
class Source:
    """One log, and what its path says: data, architecture, training noise and certification sigma as text."""

    log: Log
    data_name: str
    arch: str
    noise: str
    sigma: str
    file: str
    sha256: str
    by: str
    """Who made it."""

    @property
    def matched(self) -> bool:
        """Certified with the noise that the model was trained with."""
        return float(self.noise) == float(self.sigma)

    def named(self, id: str, name: str, source_file: str, source_sha256: str) -> ImportedEntry:
        """An entry about this model that says nothing yet."""
        paper = self.by == COHEN
        return ImportedEntry(
            id=id,
            provenance=self.by,
            name=name,
            authors="Jeremy Cohen, Elan Rosenfeld, J. Zico Kolter" if paper else "",
            venue="ICML 2019" if paper else "",
            link="https://arxiv.org/abs/1902.02918" if paper else "",
            architecture=self.arch,
            data_name=self.data_name,
            norm="L2",
            eps=RADIUS,
            metrics=(),
            source_file=source_file,
            source_sha256=source_sha256,
        )


def log_entry(source: Source, most_lines: int, n: int, alpha: float) -> ImportedEntry:
    """What one log of ``n`` samples an example at ``alpha`` says; its siblings have ``most_lines`` examples.

    Clean accuracy is that of the smoothed classifier, where an abstention is an error.
    """
    log = source.log
    proved = log.proved
    said = report(log.label, log.predicted, proved, radii=RADII, failure_probability=alpha)
    found = flags(log, most_lines, float(source.sigma), n, alpha)
    name = f"Randomized smoothing, sigma {source.sigma}, trained with noise {source.noise}"
    id = f"{source.arch}-noise_{source.noise}-sigma_{source.sigma}"
    return source.named(id, name, source.file, source.sha256).model_copy(
        update={
            "metrics": (
                metric("clean_accuracy", int(log.right.sum()), len(proved)),
                metric("certified_accuracy", certified_at(proved, float(RADIUS)), len(proved)),
                *said.certified,
                said.abstained,
            ),
            "average_radius": said.average_radius,
            "curves": (_curve(f"sigma {source.sigma}", [proved]),),
            "flags": found,
            "unreliable": any(flag.raised for flag in found),
            "details": {
                "noise": source.noise,
                "sigma": source.sigma,
                "samples": n,
                "alpha": alpha,
                "beyond_doubt": {f"{radius:g}": sure for radius, sure in zip(RADII, said.sure, strict=True) if sure},
                "seconds": round(sum(line.seconds for line in log.lines), 6),
                "positions": _positions(log.idx),
                "proved_radii": " ".join(f"{radius:.12g}" for radius in proved),
            },
        }
    )


def envelope(
    sources: Sequence[Source], entries: Sequence[ImportedEntry], left: Sequence[str], alpha: float
) -> ImportedEntry:
    """The best of several models at each radius, on the same examples; ``left`` names logs that do not fit in.

    It has numbers at radii and on purpose none that a board could order it by: no model has them all.

    With m models each interval is taken at 0.05 / m (Bonferroni), so that the highest of the lower ends and the highest
    of the upper ends hold for the best of the m true shares.
    """
    first, m = sources[0], len(sources)
    proved = [source.log.proved for source in sources]
    sigmas = ", ".join(source.sigma for source in sources)
    files = {source.file: source.sha256 for source in sources}
    doubtful = [entry.id for entry in entries if entry.unreliable]
    chosen = (
        f"no model has this curve: at each radius it is the best of {m} (sigma {sigmas}), chosen after the fact on the "
        f"same examples. The intervals pay for that choice; a certificate may be false with probability {alpha:g} in "
        f"each of the {m}"
    )
    parts = f"made of {', '.join(doubtful)}" if doubtful else "none"
    name = f"Randomized smoothing, upper envelope over sigma {sigmas}"
    sha256 = hashlib.sha256(canonical(files)).hexdigest()
    return first.named(f"{first.arch}-envelope", name, f"{first.data_name}/{first.arch}", sha256).model_copy(
        update={
            "metrics": tuple(_best(proved, radius) for radius in RADII),
            "curves": (_curve(f"envelope over sigma {sigmas}", proved),),
            "flags": (
                Flag(name="selected_after_the_fact", raised=True, evidence=chosen),
                Flag(name="unreliable_parts", raised=bool(doubtful), evidence=parts),
            ),
            "unreliable": bool(doubtful),
            "details": {
                "alpha": alpha,
                "best_sigma": {f"{r:g}": sources[i].sigma for r in RADII if (i := _argmax(proved, r)) is not None},
                "files": files,
                "left_out": list(left),
            },
        }
    )


def _argmax(proved: Sequence[np.ndarray], radius: float) -> int | None:
    counts = [certified_at(one, radius) for one in proved]
    return counts.index(max(counts)) if max(counts) else None


def _best(proved: Sequence[np.ndarray], radius: float) -> Metric:
    """The highest certified accuracy at ``radius`` of arrays ``[N]``; an ordinary metric where there is one array."""
    n, counts = len(proved[0]), [certified_at(one, radius) for one in proved]
    ends = [interval(k, n, 0.025 / len(proved)) for k in counts]
    ci95 = max(low for low, _ in ends), max(high for _, high in ends)
    return Metric(name=f"{AT}{radius:g}", value=max(counts) / n, ci95=ci95, n=n)


def _curve(label: str, proved: Sequence[np.ndarray]) -> Curve:
    """Certified accuracy at even steps up to the largest proved radius, and at that one."""
    top = max(float(one.max()) for one in proved)
    steps = [i / _CURVE_STEPS for i in range(int(top * _CURVE_STEPS) + 1)]
    at = [*steps, *([top] if top > steps[-1] else [])]
    points = ((x, _best(proved, x)) for x in at)
    return Curve(
        kind="certified",
        label=label,
        norm="L2",
        points=tuple(CurvePoint(x=x, value=best.value, ci95=best.ci95) for x, best in points),
    )


def _positions(idx: np.ndarray) -> str | list[int]:
    """``first:end:step`` where that is all, as Python slices; else the list."""
    step = int(idx[1] - idx[0]) if len(idx) > 1 else 1
    even = step > 0 and (np.diff(idx) == step).all()
    return f"{idx[0]}:{idx[-1] + 1}:{step}" if even else idx.tolist()
