"""The contract of a fit method: through the services of the real loop, from a killed run and from its checkpoint."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import FitMethod
from robustsuite.evaluation.protocol import make
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.registry import DEFENSES
from robustsuite.testing.finding import Report, expect
from robustsuite.testing.toys import SEED, toy_data
from robustsuite.testing.watch import Watch
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained

_RADII = {"Linf": "0.05", "L2": "0.3", "L1": "1"}
_EPOCHS = 8


class _Killed(Exception):
    pass


def check_fit_method(report: Report, method: FitMethod) -> None:
    """Add findings on what it trains; the later ones only if it trains at all."""
    bench = _Bench(method)
    if report.check("training", bench.training):
        report.check("repeatable", bench.repeatable)
        report.check("resuming", bench.resuming)
        report.check("checkpoint", bench.checkpoint)


@dataclasses.dataclass
class _Bench:
    method: FitMethod
    data: Dataset = dataclasses.field(init=False)
    trained: Trained | None = None

    def __post_init__(self) -> None:
        self.data = toy_data(classes=self.method.classes or 3)

    def run(self, **more: Any) -> Trained:
        norm = self.method.norms[0]
        threat = ThreatModel.parse(f"{norm}:{_RADII[norm]}")
        recipe: dict[str, Any] = {"epochs": _EPOCHS, "batch_size": 16, "lr": 0.1, "seed": SEED, "validation": 0, **more}
        return train(self.method, "mlp", {"hidden": 16, "depth": 1}, self.data, threat, **recipe)

    def training(self) -> str:
        """It learns an easy problem, and leaves everything else alone."""
        with Watch(None, **{"the images": self.data.x, "the labels": self.data.y}) as watch:
            self.trained = self.run()
        watch.expect_nothing()
        with torch.no_grad():
            answers = self.trained.module(self.data.x)
        right, chance = float((answers.argmax(1) == self.data.y).float().mean()), 1 / self.data.num_classes
        expect(
            right > chance + 0.2,
            f"on an easy toy problem it ends at {right:.0%} right answers, chance is {chance:.0%}.",
            "Check the signs of the loss, and that the optimiser has the parameters of what is handed back.",
        )
        passes = f"{self.trained.forward} forward and {self.trained.backward} backward passes"
        return f"{right:.0%} right answers on a toy problem after {len(self.trained.history)} epochs, {passes} counted"

    def repeatable(self) -> str:
        torch.rand(7)  # the global generator is nobody's business
        self._same(
            self.run(), "the same training again", "Draw from step.noise alone, and keep no state in the method."
        )
        return "bit-identical weights and counts the second time"

    def resuming(self) -> str:
        """A run that is killed two thirds through ends like one that is not."""
        reached: list[int] = []

        def kill(done: int, total: int, info: dict[str, Any]) -> None:
            reached.append(done)
            if 3 * done > 2 * total:
                raise _Killed

        with tempfile.TemporaryDirectory() as folder:
            kept: dict[str, Any] = {"keep_at": Path(folder) / "m"}
            try:
                self.run(progress=kill, **kept)
            except _Killed:
                found = "what it kept" if any(Path(folder).iterdir()) else "the start, for it keeps nothing"
            else:
                return "not tested: it tells no progress (by descend, or report with losses)"
            self._same(
                self.run(**kept),
                "a run that is killed and taken up again",
                "Put everything that the next epoch needs into keep: weights, the optimiser's state, the epoch.",
            )
        return f"killed after {max(reached)} steps, it goes on from {found}, and ends with the same bits"

    def checkpoint(self) -> str:
        """What is saved answers as what was trained."""
        assert self.trained is not None
        with tempfile.TemporaryDirectory() as folder:
            path = save_trained(self.trained, Path(folder) / "model")
            shape, classes = self.data.input_shape, self.data.num_classes
            loaded = load_model(ModelSpec(str(path)), input_shape=shape, num_classes=classes)
            model, wrap = loaded.classifier, loaded.part.wrap
            if wrap:
                params = {key: value for key, value in wrap.items() if key != "name"}
                model = make(DEFENSES.get(wrap["name"]), params).wrap(model)
            got = model.logits(self.data.x)
        with torch.no_grad():
            want = self.trained.module(self.data.x)
        expect(
            torch.allclose(got, want, atol=1e-5),
            f"the checkpoint's logits differ from the trained module's by up to {float((got - want).abs().max()):.3g}.",
            "Let the module be the network alone, or name in a Fitted the defense that eval shall put around it.",
        )
        return f"loads as {type(model).__name__} and answers as the trained module"

    def _same(self, other: Trained, what: str, remedy: str) -> None:
        assert self.trained is not None
        mine, theirs = self.trained.last_state, other.last_state
        differ = [name for name in mine if name not in theirs or not torch.equal(mine[name], theirs[name])]
        expect(not differ, f"{what} ends with other weights ({', '.join(differ[:3])}).", remedy)
        mine_counted, counted = self.trained.passes, other.passes
        expect(mine_counted == counted, f"{what} counts {counted} instead of {mine_counted}.", remedy)
