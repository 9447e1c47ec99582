"""Two published checkpoints, stage by stage, beside PyPI's pyautoattack: same model, data, device and threads.

    python benchmarks/published.py [--data ../shared/data] [--only mnist|cifar10] [--json FILE]

Both sides start from the same loaded network in one process, one after the other. Passes are counted in examples and
are exact; times are this machine's, so quote their ratio. `standard` version 1 has no FAB-T: the reference's own
FAB-T and the order of its stages are shown as they are.
"""

import argparse
import json
import logging
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.plan import cores
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.models.reference import LoadedModel, ModelSpec, load_model
from robustsuite.threat import ThreatModel

SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {
        "checkpoint": "checkpoints/mnist_cnn_a_adv.model",
        "data": "mnist/sdp_x.npy",
        "threat": "Linf:0.3",
        "published": "AutoAttack standard 76.5 % (clean 97.5 %)",
    },
    "cifar10": {
        "checkpoint": "checkpoints/cifar_cnn_a_adv.model",
        "data": "cifar10/sdp_x.npy",
        "threat": "Linf:2/255",
        "mean": tuple(v / 255 for v in (125.3, 123.0, 113.9)),
        "std": tuple(v / 255 for v in (63.0, 62.1, 66.7)),
        "published": "AutoAttack standard 50.0 % (clean 70.0 %)",
    },
}
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


def ours(loaded: LoadedModel, data: Dataset, threat: ThreatModel) -> list[Row]:
    """Robust accuracy, passes and seconds after each stage of `standard`."""
    with tempfile.TemporaryDirectory() as runs:
        prepared = prepare(loaded.classifier, loaded.part, data, threat, load_protocol("standard"))
        record = evaluate(prepared, Path(runs)).record
    assert record is not None
    out, left = [], len(data)
    for stage in record.stages:
        left -= stage.n_broken
        seconds = record.host.stage_seconds.get(stage.name, 0.0)
        out.append(row(stage.name, left / len(data), stage.forward, stage.backward, seconds))
    return [*out, total(out)]


def theirs(loaded: LoadedModel, data: Dataset, threat: ThreatModel) -> list[Row]:
    """The same of pyautoattack's `standard`, read from its own log."""
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
    attack = AutoAttack(counted, norm=threat.norm, eps=threat.radius, version="standard", seed=0)
    attack.run_standard_evaluation(data.x, data.y, batch_size=250)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--only", choices=sorted(SETTINGS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(cores())
    results = {}
    for name in [args.only] if args.only else SETTINGS:
        setting = SETTINGS[name]
        data = load_data(str(args.data / setting["data"]))
        reference = str(args.data / setting["checkpoint"])
        spec = ModelSpec(reference, arch="cnn_a", mean=setting.get("mean"), std=setting.get("std"))
        loaded = load_model(spec, input_shape=data.input_shape, num_classes=data.num_classes)
        threat = ThreatModel.parse(setting["threat"])
        print(f"\n== {name}, {threat}, {len(data)} images, {cores()} threads. Published: {setting['published']}")
        pair = {"robustsuite": ours(loaded, data, threat), "pyautoattack": theirs(loaded, data, threat)}
        for side, rows in pair.items():
            show(side, rows)
        ratio = pair["pyautoattack"][-1]["seconds"] / pair["robustsuite"][-1]["seconds"]
        print(f"\nseconds, pyautoattack / robustsuite: {ratio:.2f} (FAB-T is in the reference's total only)")
        results[name] = pair
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
