"""What a fit method is handed, and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.context import Training
from robustsuite.defenses.step import Step, Term


class Recipe(Protocol):
    """What every training is told, whatever its method."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        ...

    @property
    def lr(self) -> float:
        """Largest learning rate."""
        ...

    @property
    def weight_decay(self) -> float:
        """Of the optimiser."""
        ...

    @property
    def seed(self) -> int:
        """What all randomness is keyed by."""
        ...


class Accuracies(NamedTuple):
    """On held-out examples, in [0,1]: clean and under PGD-10; None where nothing is held out."""

    clean: float | None
    robust: float | None


@dataclass(frozen=True)
class Fitted:
    """A network with an inference-time defense around it, where a fit method trains more than one network.

    `module` is the whole, as it is validated; the checkpoint holds its submodule `network`, and the checkpoint's
    sidecar the defense `wrap` (``name`` and parameters). `files`: by the parameter of `wrap` that names a file
    (``members.0``, ``members.1``, ... for a list), the submodule whose weights go into one beside the checkpoint; those
    in `networks` have the training's architecture.
    `paths`: the parameters of `wrap` that name files which are there already. `source`: the checkpoint, with a
    sidecar, that `network` is taken from and stays; empty when it has the training's architecture.
    """

    module: nn.Module
    network: str
    wrap: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    networks: Sequence[str] = ()
    paths: Sequence[str] = ()
    source: str = ""


Result = nn.Module | Fitted


@dataclass(kw_only=True)
class Services(Training, ABC):
    """The services of the training loop to a method that owns its loop.

    `module` is the network to train, with its initial weights, in train mode. `data` are the examples to train on,
    `held` those held out of them (None: none). `kept` is what `keep` was last given by a run of the same training that
    was killed, None in a new one.
    """

    held: Dataset | None
    settings: Recipe
    kept: dict[str, Any] | None = None

    @abstractmethod
    def batch(self, rows: Tensor, epoch: int = 1, number: int = 0) -> Step:
        """The examples at ``rows`` of `data` as one step, the ``number``-th of the training: its noise is keyed by it.

        Inner maximisation (`Step.maximise`) and forward passes (`Step.forward`) go through it, and are counted.
        """

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Step]:
        """An epoch (from 1) in batches; whatever draws from torch's generator meanwhile is keyed by the batch."""

    @abstractmethod
    def optimizer(self, *modules: nn.Module) -> Optimizer:
        """The recipe's optimiser, for the parameters of ``modules`` that require gradients."""

    @abstractmethod
    def descend(self, step: Step, optimizer: Optimizer, terms: Mapping[str, Term]) -> None:
        """One step of the recipe on the sum of the terms' means: backward pass (counted), clipping, schedule, update.

        Raises `DivergedError` when a term is not finite, `ContractError` when it is not one value an example.
        """

    @abstractmethod
    def validate(self, result: Result) -> Accuracies:
        """What the held-out examples say of ``result``, which stays as it is; these passes are not counted."""

    @abstractmethod
    def report(self, epoch: int, losses: Mapping[str, float] | None = None, result: Result | None = None) -> None:
        """Book an epoch (from 1, none left out): it is validated, and its weights are kept when they are the best.

        ``losses``: means over the epoch; by default of the terms that `descend` saw. ``result``: what the method would
        hand back now; by default `module`. Raises `DivergedError` when losses or weights are not finite,
        `ContractError` for an epoch out of turn or a network that the checkpoint could not load.
        """

    @abstractmethod
    def keep(self, state: Mapping[str, Any]) -> None:
        """Leave on disk what the method needs to go on from here: tensors, numbers, strings, lists and dicts of them.

        Every call writes a file; once an epoch, after `report`, is usual. The same command then finds it in `kept`.
        Raises `ContractError` for anything else.
        """
