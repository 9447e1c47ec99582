"""An external evaluation: what somebody else's adversarial images do to a run's robust accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.evaluator import torch_threads
from robustsuite.evaluation.external_images import Images
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.verify import bench_of
from robustsuite.models.classifier import Classifier
from robustsuite.results.ledger import AUDIT, CLEAN, Ledger, Outcome
from robustsuite.results.schema import Metric, Record
from robustsuite.results.statistics import metric
from robustsuite.threat import ABSOLUTE_SLACK, RELATIVE_SLACK


@dataclass(frozen=True)
class SetReport:
    """What the judge said of one set of images."""

    name: str
    images: int
    outside_ball: int
    furthest: float
    """The largest distance in the run's norm."""
    outside_box: int
    least: float
    most: float
    """The range of the pixels."""
    fooled: int
    """Inside ball and box, and misclassified."""


@dataclass(frozen=True)
class Contradicted:
    """A certificate that an image refutes."""

    position: int
    certified_by: str
    guarantee: str
    radius: float
    distance: float


@dataclass(frozen=True)
class ExternalEvaluation:
    """All sets together, against what was known."""

    sets: tuple[SetReport, ...]
    before: Metric
    """Robust accuracy as it was known."""
    after: Metric
    newly: tuple[int, ...]
    """Positions that nobody had broken, ascending."""
    contradicted: tuple[Contradicted, ...]


def evaluate_images(
    record: Record,
    ledger: Ledger,
    model: Classifier,
    data: Dataset,
    sets: Sequence[Images],
    known: Sequence[int] = (),
) -> ExternalEvaluation:
    """Judge images as the evaluator judges those of its own attacks, but as they are: nothing is tidied.

    ``known``: positions that corrections have broken already. Only images inside of eps are looked at; one that is
    misclassified contradicts every certificate of its example at eps or with a radius beyond its distance.
    """
    distance = np.full(len(data), np.inf)
    reports = []
    with torch_threads(record.request.threads):
        bench = bench_of(record, model, data)
        for images in sets:
            report, near = _judge(bench, images)
            reports.append(report)
            distance = np.minimum(distance, near)
    broken = np.isfinite(distance)
    before = ledger.any(Outcome.BROKEN)
    before[list(known)] = True
    n, newly = len(data), np.flatnonzero(broken & ~before)
    return ExternalEvaluation(
        sets=tuple(reports),
        before=metric("robust_accuracy", n - int(before.sum()), n),
        after=metric("robust_accuracy", n - int((before | broken).sum()), n),
        newly=tuple(newly.tolist()),
        contradicted=tuple(_contradicted(record, ledger, distance)),
    )


def _judge(bench: Bench, images: Images) -> tuple[SetReport, np.ndarray]:
    """The report, and each example's distance where it is broken, float64 ``[N]``, infinite elsewhere."""
    x, y, ids, _ = bench.rows(images.positions.tolist())
    x_adv = images.x_adv.to(x.device)
    verdicts = bench.judge().exact(x, y, ids, x_adv)
    far = bench.threat.distance(x, x_adv)
    limit = bench.threat.radius * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
    inside_box = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    near = np.full(len(bench.data), np.inf)
    for position, verdict in zip(images.positions.tolist(), verdicts, strict=True):
        if verdict.broken:
            near[position] = verdict.distance
    report = SetReport(
        name=images.name,
        images=len(verdicts),
        outside_ball=int((far > limit).sum()),
        furthest=float(far.max()),
        outside_box=int((~inside_box).sum()),
        least=float(x_adv.min()),
        most=float(x_adv.max()),
        fooled=sum(verdict.broken for verdict in verdicts),
    )
    return report, near


def _contradicted(record: Record, ledger: Ledger, distance: np.ndarray) -> list[Contradicted]:
    """Certificates for the clean class at eps, or with a radius beyond the image's distance."""
    found = []
    for stage in (s for s in record.stages if s.kind == "certifier"):
        for name in (n for n in (stage.name, AUDIT + stage.name) if n in ledger.stages):
            proof = ledger.part(name)
            right = proof.predicted == ledger.arrays[f"{CLEAN}/predicted"]
            inside = proof.radius > distance * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
            refuted = np.isfinite(distance) & ((proof.outcome == Outcome.CERTIFIED) | (right & inside))
            refuted &= ledger.outcome(CLEAN) != Outcome.BROKEN
            for p in np.flatnonzero(refuted).tolist():
                radius, at = float(proof.radius[p]), float(distance[p])
                found.append(Contradicted(p, stage.name, stage.guarantee, radius, at))
    return found
