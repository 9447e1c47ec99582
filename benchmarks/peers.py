"""Both sides of a comparison, stage by stage: the suite and PyPI's pyautoattack on one loaded network.

Passes are counted in examples and are exact; times are this machine's, so quote their ratio.
"""

import logging
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.models.reference import LoadedModel
from robustsuite.results.schema import ProtocolPart
from robustsuite.threat import ThreatModel

Row = dict[str, Any]


class Counted(nn.Module):
    """Counts the examples that pass forward and backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.forwards += x.shape[0]
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, grad: Tensor) -> None:
        self.backwards += grad.shape[0]


def ours(
    loaded: LoadedModel, data: Dataset, threat: ThreatModel, protocol: ProtocolPart, *, seed: int = 0, **options: Any
) -> list[Row]:
    """Robust accuracy, passes and seconds after each stage; the extra passes of audits are in the last row.

    Exclusive contributions are not looked for: the reference does not either.
    """
    protocol = protocol.model_copy(update={"contributions": False})
    with tempfile.TemporaryDirectory() as runs:
        prepared = prepare(loaded.classifier, loaded.part, data, threat, protocol, seed=seed, **options)
        record = evaluate(prepared, Path(runs)).record
    assert record is not None
    out, left = [], len(data)
    for stage in record.stages:
        left -= stage.n_broken
        seconds = record.host.stage_seconds.get(stage.name, 0.0)
        out.append(row(stage.name, left / len(data), stage.forward, stage.backward, seconds))
    return [*out, total(out) | {"executed": (record.host.executed_forward, record.host.executed_backward)}]


def theirs(
    loaded: LoadedModel, data: Dataset, threat: ThreatModel, *, seed: int = 0, batch_size: int = 250
) -> list[Row]:
    """The same of pyautoattack's `standard`, read from its own log.

    Fewer than ten classes make it crash (its target lists are fixed), so they are cut to the classes that there are.
    """
    from pyautoattack import AutoAttack

    counted = Counted(loaded.classifier.module)
    out: list[Row] = []
    start = time.perf_counter()
    before = [start, 0, 0]

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            found = re.search(r"robust accuracy after ([\w-]+): ([\d.]+)%", text) or re.search(
                r"(initial) accuracy: ([\d.]+)%", text
            )
            if found:
                now = [time.perf_counter(), counted.forwards, counted.backwards]
                name = "clean" if found[1] == "initial" else found[1].lower()
                spent = [a - b for a, b in zip(now, before, strict=True)]
                out.append(row(name, float(found[2]) / 100, spent[1], spent[2], spent[0]))
                before[:] = now

    logger = logging.getLogger("auto-attack")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    watch = Watch()
    logger.addHandler(watch)
    device = loaded.classifier.device
    attack = AutoAttack(counted, norm=threat.norm, eps=threat.radius, version="standard", seed=seed, device=device)
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, loaded.classifier.num_classes - 1)
    attack.run_standard_evaluation(data.x, data.y, batch_size=batch_size)
    logger.removeHandler(watch)
    return [*out, total(out)]


def row(stage: str, accuracy: float, forward: int, backward: int, seconds: float) -> Row:
    return {"stage": stage, "accuracy": accuracy, "forward": forward, "backward": backward, "seconds": seconds}


def total(rows: list[Row]) -> Row:
    sums = {k: sum(r[k] for r in rows) for k in ("forward", "backward", "seconds")}
    return row("total", rows[-1]["accuracy"], **sums)


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}\n{'stage':12} {'accuracy':>9} {'forward':>11} {'backward':>10} {'seconds':>8}")
    for r in rows:
        numbers = f"{r['accuracy']:9.1%} {r['forward']:11,} {r['backward']:10,} {r['seconds']:8.1f}"
        print(f"{r['stage']:12} {numbers}")
