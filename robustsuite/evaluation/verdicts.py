"""Three verdicts on a randomised model: expected, majority-vote and worst-of-K robust accuracy.

A stage of its own that attacks nobody: fresh draws on the strongest point that any stage has found for an example.
Draws that chose a point flatter it, so they do not count again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from robustsuite.errors import IncompleteError
from robustsuite.evaluation.ledger import LedgerStore, Note
from robustsuite.evaluation.pending import left_path
from robustsuite.evaluation.stages import Bench
from robustsuite.results.ledger import CLEAN, VERDICT, Outcome, StageLedger
from robustsuite.results.store import read_arrays


def run_verdicts(bench: Bench, store: LedgerStore, stages: Sequence[str]) -> StageLedger:
    """Count the wrong draws (``extra["wrong"]``) at every example's strongest point, over the blocks of the shard.

    ``stages`` names the attacks to choose from: the point with the most wrong draws before the judge, the first one of
    equals; the image itself where nothing beats it, and so for clean errors, which nobody attacked. Points go to
    ``adversarials/verdict``. No outcome is changed by this stage: all of its examples count as survivors. Blocks that
    are there are read back.
    """
    whole = StageLedger.empty(store.blocks.n)
    whole.extra["wrong"] = np.zeros(store.blocks.n, np.int64)
    for block in store.blocks.mine():
        found = store.read(VERDICT, block)
        if found is None:
            points = _strongest(store, stages, block)
            part = recount(bench, store.blocks.positions(block), points)
            store.write(VERDICT, block, part, points, Note(slots=bench.slots))
        else:
            part = found[0]
        whole.put(store.blocks.positions(block), part)
    return whole


def recount(bench: Bench, positions: np.ndarray, points: dict[int, np.ndarray]) -> StageLedger:
    """The verdicts on ``positions`` at their ``points``, or at the images where there is none."""
    x, y, ids, _ = bench.rows(positions.tolist())
    x_adv = x.clone()
    for row, position in enumerate(positions):
        if position in points:
            x_adv[row] = torch.from_numpy(points[position].copy())
    verdicts = bench.jury(VERDICT).exact(x, y, ids, x_adv)
    part = StageLedger.empty(len(positions))
    part.outcome[:] = Outcome.SURVIVED
    part.distance[:] = [v.distance for v in verdicts]
    part.margin[:] = [v.margin for v in verdicts]
    part.predicted[:] = [v.predicted for v in verdicts]
    part.forward[:] = bench.model.per_decision
    part.extra["wrong"] = np.array([v.wrong for v in verdicts], np.int64)
    return part


def read_points(path: Path) -> dict[int, np.ndarray]:
    """The points of a file in ``adversarials/`` by position; none where there is no file."""
    if not path.exists():
        return {}
    arrays, _ = read_arrays(path)
    return dict(zip(arrays["position"].tolist(), arrays["x_adv"], strict=True))


def _strongest(store: LedgerStore, stages: Iterable[str], block: int) -> dict[int, np.ndarray]:
    points: dict[int, np.ndarray] = {}
    most = _wrong(store, CLEAN, block)
    for stage in stages:
        wrong = _wrong(store, stage, block)
        for path in (store.adversarials_path(stage, block), left_path(store, stage, block)):
            for position, x_adv in read_points(path).items():
                if wrong[position] > most[position]:
                    points[position], most[position] = x_adv, wrong[position]
    return points


def _wrong(store: LedgerStore, stage: str, block: int) -> dict[int, int]:
    """Wrong draws by position."""
    found = store.read(stage, block)
    if found is None:
        raise IncompleteError(f"block {block} of stage '{stage}' is missing or damaged; run the command again.")
    return dict(zip(store.blocks.positions(block).tolist(), found[0].extra["wrong"].tolist(), strict=True))
