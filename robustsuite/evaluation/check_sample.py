"""The examples that the checks of a model look at."""

from dataclasses import dataclass

from torch import Tensor

from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.results.schema import Flag


@dataclass(frozen=True)
class Sample:
    """Up to 64 images ``[M,C,H,W]`` with labels, ids and clean logits, on the model's device."""

    model: Classifier
    x: Tensor
    y: Tensor
    ids: Tensor
    logits: Tensor
    seed: int

    def noise(self, check: str) -> ExampleNoise:
        """Random numbers of a check, keyed by example."""
        return Noise(self.seed, f"checks/{check}").at(self.ids)

    def redraw(self) -> None:
        """Let a randomised model draw the same in what follows as after the last such call."""
        if isinstance(self.model, RandomizedClassifier):
            self.model.restart(Noise(self.seed, "checks/draws"))

    def nudged(self, check: str, size: float) -> Tensor:
        """Every pixel moved up or down by ``size``, inside the box."""
        return (self.x + size * self.noise(check).signs(self.x.shape[1:])).clamp_(0, 1)


def flag(name: str, raised: bool, evidence: str, remedy: str) -> Flag:
    """A flag that gives its remedy only where one is needed."""
    return Flag(name=name, raised=raised, evidence=evidence, remedy=remedy if raised else "")
