"""AutoAttack as PyPI packages it (pyautoattack), called from outside: an oracle to compare the suite's own with."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustsuite.attacks.base import Attack
from robustsuite.attacks.reference.passes import Counted
from robustsuite.errors import PrerequisiteError, UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise, fork_global, generator_seed
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

VERSIONS = ("standard", "plus", "rand")
# The package indexes the third and fourth largest logit without asking how many there are.
_MIN_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}


@register_attack(
    "reference:autoattack",
    norms=("Linf", "L2", "L1"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    batch_coupled=True,
    paper="Croce and Hein 2020, arXiv:2003.01690",
)
@dataclass(frozen=True)
class AutoAttack(Attack):
    """pyautoattack's ``standard``, ``plus`` or ``rand``, or a part of one.

    ``attacks`` picks from the version's settings (apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square). Fewer than ten
    classes get as many targets as there are other classes. A version leaves out what cannot run on two or three
    classes; asking for such an attack by name raises `UsageError`. Its noise is drawn a batch at a time, so
    ``batch_size`` and the examples that share a batch change its results. Raises `PrerequisiteError` without the
    package.
    """

    version: str = "standard"
    attacks: tuple[str, ...] = ()
    n_queries: int = 5000
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise UsageError(f"no AutoAttack version '{self.version}'; choose one of {', '.join(VERSIONS)}.")
        unknown = [name for name in self.attacks if name not in _MIN_CLASSES]
        if unknown:
            raise UsageError(f"AutoAttack has no {', '.join(unknown)}; choose from {', '.join(_MIN_CLASSES)}.")

    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """What AutoAttack returns: its adversarial examples, and the clean images where it found none."""
        package = _package()
        seed, stage = noise.noise.seed, noise.noise.stage
        attack = package.AutoAttack(
            Counted(model),
            device=model.device,
            eps=threat.radius,
            norm=threat.norm,
            seed=generator_seed(seed, stage),
            version=self.version,
        )
        attack.attacks_to_run = self._runnable(attack.attacks_to_run, model.num_classes)
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, model.num_classes - 1)
        attack.square.n_queries = self.n_queries
        with fork_global(seed, stage), _Contained():
            x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=self.batch_size)
        return x_adv.detach()

    def _runnable(self, planned: list[str], classes: int) -> list[str]:
        too_few = [name for name in self.attacks if _MIN_CLASSES[name] > classes]
        if too_few:
            needs = ", ".join(f"{name} needs {_MIN_CLASSES[name]}" for name in too_few)
            raise UsageError(f"AutoAttack cannot run this on {classes} classes: {needs}. Leave it out.")
        return [name for name in self.attacks or planned if _MIN_CLASSES[name] <= classes]


def _package() -> Any:
    try:
        return importlib.import_module("pyautoattack")
    except ImportError as error:
        raise PrerequisiteError(
            "reference:autoattack needs the package pyautoattack, which is not installed; "
            "run: pip install 'robustsuite[reference]'."
        ) from error


class _Contained:
    """Undoes what a run leaves behind in the process: its tracer in place of a debugger's, its call counts."""

    def __enter__(self) -> None:
        self.trace = sys.gettrace()
        counts = importlib.import_module("pyautoattack.checks").funcs
        counts.update(dict.fromkeys(counts, 0))

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self.trace)
