"""The attacks of torchattacks that fit a threat model, as ``torchattacks:NAME``; found by looking at its classes."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustsuite.attacks.base import Attack, rows
from robustsuite.attacks.reference.passes import Counted, unchanged
from robustsuite.errors import PrerequisiteError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise, fork_global, generator_seed
from robustsuite.registry import attack_family, register_attack
from robustsuite.threat import NORMS, ThreatModel

FAMILY = "torchattacks"
_EPS = ("eps", "max_epsilon")  # two of its classes use the longer name
_FROM_THE_RUN = frozenset({*_EPS, "norm", "seed", "verbose", "n_classes"})
_DISTANCE = re.compile(r"Distance Measure\s*:(.*)")


class Adapted(Attack):
    """Base of the adapters; one is made for each class of the package, with the class's parameters as fields.

    eps, norm, seed and the number of classes come from the run. A class without an eps looks for the nearest
    adversarial example: where that lies outside of the ball, the clean image is returned, which claims nothing. Noise
    is drawn a batch at a time, so the examples that share a batch change the results.
    """

    package_class: ClassVar[type[Any]]

    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """Candidates ``[N,C,H,W]``; the model, and all global generators, are left as they were."""
        seed, stage = noise.noise.seed, noise.noise.stage
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        settings |= _from_the_run(self.package_class, model, threat, generator_seed(seed, stage))
        with unchanged(model.module), _forked(seed, stage), torch.enable_grad():
            attack = self.package_class(Counted(model), **settings)
            x_adv = attack(x, y).detach()
        if not _eps_name(self.package_class):
            x_adv = torch.where(rows(threat.contains(x, x_adv), x), x_adv, x)
        return x_adv


@attack_family(FAMILY)
def register_all() -> None:
    """Register every class that fits; raises `PrerequisiteError` where the package cannot be imported."""
    for package_class in fitting(_package()):
        source = _source(package_class)
        register_attack(
            f"{FAMILY}:{package_class.__name__}",
            norms=_norms(package_class),
            access="white-box" if "autograd.grad" in source or ".backward(" in source else "score",
            kind="bounded" if _eps_name(package_class) else "minimum-norm",
            min_classes=4 if "[:, -4]" in source else 2,  # the targeted DLR loss divides by the fourth largest logit
            randomized=True,
            batch_coupled=True,
        )(adapter(package_class))


def fitting(package: ModuleType) -> Iterator[type[Any]]:
    """Its attacks on (images, labels) that need nothing but a model and name a norm that the suite knows."""
    exported: dict[str, Any] = {name: v for name, v in vars(package).items() if inspect.isclass(v)}
    for name, found in sorted(exported.items()):
        if name != found.__name__ or not hasattr(found, "forward"):
            continue
        needed = [name for name, p in _parameters(found).items() if p.default is p.empty]
        takes = len(inspect.signature(found.forward).parameters)  # self, images, labels
        if needed == ["model"] and takes == 3 and _norms(found):
            yield found


def adapter(package_class: type[Any]) -> type[Attack]:
    """A frozen dataclass with the parameters of ``package_class`` that do not come from the run."""
    own = [p for name, p in _parameters(package_class).items() if name != "model" and name not in _FROM_THE_RUN]
    made = dataclasses.make_dataclass(
        package_class.__name__,
        [(p.name, type(p.default), dataclasses.field(default=p.default)) for p in own],
        bases=(Adapted,),
        namespace={"package_class": package_class, "__doc__": inspect.getdoc(package_class)},
        frozen=True,
    )
    made.__module__ = package_class.__module__  # the origin that lists and messages show
    return made


def _parameters(package_class: type[Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(package_class).parameters)


def _norms(package_class: type[Any]) -> tuple[str, ...]:
    """The norms of the suite that its documentation declares."""
    declared = _DISTANCE.search(package_class.__doc__ or "")
    return tuple(norm for norm in NORMS if declared and norm in declared[1])


def _eps_name(package_class: type[Any]) -> str | None:
    return next((name for name in _EPS if name in _parameters(package_class)), None)


def _source(package_class: type[Any]) -> str:
    """The code of its module, and of the attacks that it is put together from."""
    module = inspect.getmodule(package_class)
    if module is None:
        return ""
    parts = [v for v in vars(module).values() if inspect.isclass(v) and v.__module__.startswith(f"{FAMILY}.attacks.")]
    return inspect.getsource(module) + "".join(_source(part) for part in parts if part.__module__ != module.__name__)


def _from_the_run(package_class: type[Any], model: Classifier, threat: ThreatModel, seed: int) -> dict[str, Any]:
    given = {"norm": threat.norm, "seed": seed, "verbose": False, "n_classes": model.num_classes}
    given |= dict.fromkeys(_EPS, threat.radius)
    return {name: value for name, value in given.items() if name in _parameters(package_class)}


@contextmanager
def _forked(seed: int, stage: str) -> Iterator[None]:
    """torch's and NumPy's global generators keyed inside, and as they were after."""
    state = np.random.get_state()  # noqa: NPY002  (the package draws from it)
    np.random.seed(generator_seed(seed, stage) % 2**32)  # noqa: NPY002
    try:
        with fork_global(seed, stage):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _package() -> ModuleType:
    try:
        return importlib.import_module(FAMILY)
    except ImportError as error:
        raise PrerequisiteError(
            f"attacks called '{FAMILY}:...' need the package torchattacks, which cannot be imported ({error}); "
            "run: pip install 'robustsuite[reference]'."
        ) from error
