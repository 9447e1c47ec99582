"""The trainings and evaluations that a claim rests on, each done once and kept."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.reproduction.claim import Claim, Setting, Side
from robustsuite.results.ledger import Outcome
from robustsuite.results.schema import canonical
from robustsuite.results.store import read_json, write_atomic
from robustsuite.results.stored import StoredRun, find_run
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import Which, save_trained
from robustsuite.training.loop import train
from robustsuite.training.method import make_trainable
from robustsuite.training.store import Store

NEEDS_LAST = {"last_robust", "best_minus_last"}
Say = Callable[[str], None]


class Experiment:
    """The runs of a claim below ``folder``; trainings that claims have in common are shared.

    ``images``: the data where the setting has none of its own. A run that was finished is read, not done again; a
    training that was stopped goes on.
    """

    def __init__(self, claim: Claim, setting: Setting, folder: Path, images: str | None = None) -> None:
        self.claim, self.setting, self.folder = claim, setting, folder
        self.source = setting.data or images
        self.threat = ThreatModel.parse(setting.threat)
        self.last = any(e.quantity in NEEDS_LAST for e in claim.expects)

    def quantities(self, side: Side, seed: int, say: Say) -> dict[str, Any]:
        """What one side gives with one seed: `Quantity` by name, and ``runs``, the run keys that say so."""
        home = self.folder / self._key(side, seed)
        path = home / "quantities.json"
        found = read_json(path) if path.exists() else {}
        if not found or (self.last and "last_robust" not in found):
            found |= self._train(side, seed, home, say)
            write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
        return found

    def _train(self, side: Side, seed: int, home: Path, say: Say) -> dict[str, Any]:
        checkpoint = home / f"{side.name}.safetensors"
        setting = self.setting
        assert self.source is not None
        examples = load_data(self.source, split=setting.train[0], subset=setting.train[1])
        say(f"training {side.name}, seed {seed}, on {len(examples)} images of {examples.name}")
        method = make_trainable(side.base, side.modifiers, side.params)
        arch = setting.arch, setting.arch_params
        trained = train(method, *arch, examples, self.threat, seed=seed, keep_at=checkpoint, **setting.recipe)
        stored = self._evaluate(save_trained(trained, checkpoint), seed, say)
        runs = {"best": stored.record.run_key}
        found: dict[str, Any] = _measured(stored, self.test) | {
            "collapsed": float(trained.collapsed_at is not None),
            "seconds": trained.seconds,
            "forward": trained.forward,
            "backward": trained.backward,
            "runs": runs,
        }
        if self.last:
            last = save_trained(trained, checkpoint.with_suffix(".last.safetensors"), "last")
            after = self._evaluate(last, seed, say, "last")
            robust = _share(after, "robust_accuracy")
            runs["last"] = after.record.run_key
            found |= {"last_robust": robust, "best_minus_last": found["robust"] - robust}
        Store(checkpoint, {}).clear()
        return found

    @cached_property
    def test(self) -> Dataset:
        """What every training is evaluated on."""
        assert self.source is not None
        return load_data(self.source, split=self.setting.test[0], subset=self.setting.test[1])

    def _evaluate(self, checkpoint: Path, seed: int, say: Say, which: Which = "best") -> StoredRun:
        data = self.test
        say(f"evaluating its {which} epoch on {len(data)} images under {self.setting.tier}")
        loaded = load_model(ModelSpec(str(checkpoint)), input_shape=data.input_shape, num_classes=data.num_classes)
        protocol = load_protocol(self.setting.tier)
        prepared = prepare(loaded.classifier, loaded.part, data, self.threat, protocol, seed=seed)
        return find_run(evaluate(prepared, self.folder / "runs").directory)

    def _key(self, side: Side, seed: int) -> str:
        """A name for everything that decides a training and its evaluation."""
        request = {"side": side.model_dump(mode="json"), "setting": self.setting.model_dump(mode="json"), "seed": seed}
        digest = hashlib.sha256(canonical(request)).hexdigest()[:12]
        return f"{side.name}-{seed}-{digest}"


def _measured(run: StoredRun, data: Dataset) -> dict[str, float]:
    """Accuracies of a run, over all examples and of the worst class."""
    robust = ~run.ledger().any(Outcome.BROKEN)
    labels = data.y.numpy()
    classes = [float(robust[labels == label].mean()) for label in np.unique(labels)]
    return {
        "clean": _share(run, "clean_accuracy"),
        "robust": _share(run, "robust_accuracy"),
        "worst_class_robust": min(classes),
    }


def _share(run: StoredRun, name: str) -> float:
    metric = run.record.metric(name)
    assert metric is not None
    assert metric.value is not None  # of a run that was finished
    return metric.value
