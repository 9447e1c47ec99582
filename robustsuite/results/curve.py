"""What radii prove: certified accuracy at any radius, the average radius, abstentions; derived, never typed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustsuite.results.certificates import read_seconds
from robustsuite.results.ledger import Outcome
from robustsuite.results.schema import Metric, Record
from robustsuite.results.statistics import metric
from robustsuite.results.store import read_arrays
from robustsuite.threat import Eps

GRID: Mapping[str, tuple[str, ...]] = {
    "L2": tuple(f"{quarter / 4:g}" for quarter in range(17)),
    "L1": tuple(f"{half / 2:g}" for half in range(9)),
    "Linf": ("0", "1/255", "2/255", "4/255", "8/255", "16/255", "0.1", "0.2", "0.3", "0.4"),
}
"""The radii that every run of a norm is compared at, as in the literature's tables."""
AT = "certified_accuracy@"
"""What the metric at a radius is called, before the radius."""


def proved_radii(label: np.ndarray, predicted: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The radius of each example within which its label is proved, float64 ``[N]``; 0 for errors and abstentions."""
    return np.where(predicted == label, radius, 0.0)


def certified_at(proved: np.ndarray, radius: float) -> int:
    """Examples that are proved at ``radius``; at 0 those with any proof, since an abstention is an error there too."""
    return int(((proved >= radius) & (proved > 0)).sum())


def curve_metrics(proved: np.ndarray, norm: str, eps: float, kinds: Iterable[str] = ()) -> list[Metric]:
    """Certified accuracy on the norm's `GRID`, with Clopper-Pearson intervals.

    None where every radius is 0 or eps: certificates at eps say nothing of other radii but what follows from there.
    None either where by ``kinds``, those of the stages in their order, an attack comes ahead of a certifier: what it
    breaks at eps is given no radius, so that the curve would sink where nothing was tried.
    """
    order = [kind for kind in kinds if kind in ("attack", "certifier")]
    if np.isin(proved, (0.0, eps)).all() or order != sorted(order, reverse=True):
        return []
    return [metric(AT + text, certified_at(proved, float(Eps.parse(text))), len(proved)) for text in GRID[norm]]


def full_curve(proved: np.ndarray) -> list[tuple[float, Metric]]:
    """Every radius at which the curve falls, ascending, with the certified accuracy up to and at it."""
    return [
        (float(radius), metric(f"{AT}{radius:g}", certified_at(proved, radius), len(proved)))
        for radius in np.unique(proved[proved > 0])
    ]


def average_certified_radius(proved: np.ndarray) -> float:
    """The mean of `proved_radii` (Zhai et al. 2020, MACER): a description, never a ranking.

    The radius of one example grows without limit with its probability, so that a constant classifier of one class in
    K gets any ACR with enough samples (Sun et al. 2024, "Average Certified Radius is a Poor Metric").
    """
    return float(proved.mean())


@dataclass(frozen=True)
class Proofs:
    """The best certificate of each example of a sealed run; all arrays ``[N]``, in the order of the data."""

    id: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    """Of the best certificate; -1 where no certifier named a class."""
    radius: np.ndarray
    """Proved for the label, by `proved_radii`."""
    certifier: list[str]
    """Whose certificate that is; empty where there is none."""
    abstained: np.ndarray
    """No class came from the clean pass, or from any certifier that saw the example."""
    seconds: np.ndarray
    """That the certifiers took for the example, all together; 0 where the run has kept no times."""

    def rows(self) -> Iterator[dict[str, object]]:
        """One row an example."""
        columns = zip(self.id, self.label, self.predicted, self.radius, self.certifier, self.seconds, strict=True)
        for example, (key, label, predicted, radius, certifier, seconds) in enumerate(columns):
            yield {
                "example": example,
                "id": int(key),
                "label": int(label),
                "predicted": int(predicted),
                "radius": float(radius),
                "certifier": certifier,
                "seconds": float(seconds),
            }


def read_proofs(run_dir: Path, record: Record) -> Proofs | None:
    """The certificates of a sealed run from its ledger; None when it has no certifier or its ledger is not there."""
    names = [s.name for s in record.stages if s.kind == "certifier" and s.status != "skipped"]
    path = run_dir / "verdicts.safetensors"
    if not names or not path.exists():
        return None
    arrays, _ = read_arrays(path)
    label, n = arrays["label"], len(arrays["label"])
    radius, predicted = np.zeros(n), np.full(n, -1)
    certifier, seen = np.full(n, "", object), np.zeros(n, bool)
    for name in names:
        own, answer = arrays[f"{name}/radius"], arrays[f"{name}/predicted"]
        proved = proved_radii(label, answer, own)
        better = proved > radius
        predicted = np.where(better | (predicted < 0), answer, predicted)
        radius, certifier[better] = np.maximum(radius, proved), name
        seen |= arrays[f"{name}/outcome"] != Outcome.SKIPPED
    abstained = (seen & (predicted < 0)) | (arrays["clean/predicted"] < 0)
    times = read_seconds(run_dir)
    seconds = sum((times[name] for name in names if name in times), np.zeros(n))
    return Proofs(arrays["id"], label, predicted, radius, list(certifier), abstained, seconds)
