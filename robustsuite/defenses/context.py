"""What a method sees of a whole training: the network, its auxiliary models, and what may be asked of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.bounds.graph import Graph, trace
from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError, InputError
from robustsuite.models.classifier import Passes
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel


@dataclass(frozen=True)
class Auxiliary:
    """A named model beside the trained one. `trained`: the optimiser moves it too, at `lr` times the learning rate and
    with `weight_decay` (None: that of the training).
    """

    module: nn.Module
    trained: bool = False
    lr: float = 1.0
    weight_decay: float | None = None


@dataclass(kw_only=True)
class Training:
    """What every method may ask of the training that it is part of; the loop makes it.

    `data` are the examples that are trained on. `build` makes an untrained network of the trained one's architecture,
    `load` takes a checkpoint, ``train_other(name, params, on=data)`` trains a network of the same architecture with
    another method and the same recipe. `passes` are those that the training has made so far, `before` those of networks
    that were trained for it.
    """

    module: nn.Module
    threat: ThreatModel
    data: Dataset
    num_classes: int
    input_shape: tuple[int, ...]
    epochs: int
    noise: Noise
    device: torch.device
    build: Callable[[str], nn.Module]
    train_other: Callable[..., nn.Module]
    passes: Passes = field(default_factory=Passes)
    before: Passes = field(default_factory=Passes)
    graph: Graph | None = None

    def trace(self) -> Graph:
        """The network as bounds see it; for a method whose loss takes bounds, to be asked for in `StepMethod.setup`.

        Raises `UnsupportedOperator` naming the operator that has none.
        """
        if self.graph is None:
            self.graph = trace(self.module, self.input_shape)
        return self.graph

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """What ``module`` answers to ``x``, in the mode that it is in, without a graph; the passes are counted."""
        self.passes.forward += x.shape[0]
        with torch.no_grad():
            return module(x.to(self.device))

    def load(self, reference: str, what: str = "teacher") -> nn.Module:
        """A trained network from a checkpoint or any other model reference, checked to fit the data.

        Raises `InputError` when it has other classes or another input shape.
        """
        from robustsuite.models.reference import ModelSpec, load_model

        spec = ModelSpec(reference)
        try:
            model = load_model(
                spec, input_shape=self.input_shape, num_classes=self.num_classes, device=self.device
            ).classifier
        except (InputError, ContractError) as error:
            raise InputError(
                f"the {what} {reference} cannot be used for images {list(self.input_shape)} of {self.num_classes} "
                f"classes: {error}"
            ) from error
        if model.num_classes != self.num_classes:
            raise InputError(
                f"the {what} {reference} knows {model.num_classes} classes, the training data has {self.num_classes}; "
                f"give a {what} that was trained on this kind of data."
            )
        return model.module


@dataclass(kw_only=True)
class Context(Training):
    """One training as a step method sees it in `setup` and `epoch_end`.

    `done` of `total` optimiser steps are taken, `epoch` of `epochs` ended (0 in setup). `aux` and the memories are in
    every checkpoint of the run; while one is `resuming`, what setup builds is overwritten from it. `batches` gives the
    positions of an epoch's batches in `data`. `optimizer` is there after setup.
    """

    total: int
    batches: Callable[[int], Iterator[Tensor]]
    done: int = 0
    epoch: int = 0
    resuming: bool = False
    scope: str = ""
    auxiliaries: dict[str, Auxiliary] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, Any]:
        """The plugin's own memory, the same that `Step.memory` gives."""
        return self.memories.setdefault(self.scope, {})

    @property
    def aux(self) -> dict[str, nn.Module]:
        """The auxiliary models by name."""
        return {name: auxiliary.module for name, auxiliary in self.auxiliaries.items()}

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.done / max(self.total, 1)

    def add(self, name: str, module: nn.Module, **how: Any) -> nn.Module:
        """Keep ``module`` as the auxiliary model ``name``; ``how`` are the fields of `Auxiliary`."""
        auxiliary = Auxiliary(module.to(self.device), **how)
        module.requires_grad_(auxiliary.trained).train(auxiliary.trained)
        self.auxiliaries[name] = auxiliary
        return module

    def add_trained(self, name: str, reference: str, method: str) -> None:
        """A trained network as the auxiliary model ``name``: the checkpoint ``reference``, or one made by ``method``.

        That one has the architecture and the recipe of the network in training. Raises `InputError` when a
        checkpoint does not fit the data.
        """
        if reference:
            self.add(name, self.load(reference, name))
        elif self.resuming:  # its weights come from the checkpoint of the run
            self.add(name, self.build(name))
        else:
            self.add(name, self.train_other(method, {}))
