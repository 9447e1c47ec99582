"""What a step method sees of one training step, and the inner maximisation that it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsuite.bounds.crown_ibp import CrownIBP
from robustsuite.bounds.graph import Graph, trace
from robustsuite.bounds.ibp import Boxes, propagated
from robustsuite.bounds.statistics import Statistics, batch_normalised, normalised_by, noting
from robustsuite.errors import ContractError, DivergedBounds, UsageError
from robustsuite.models.classifier import Passes
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel

Objective = Callable[[Tensor], Tensor]
"""Logits ``[B,K]`` of the perturbed inputs to the values ``[B]`` that are maximised."""


@dataclass(frozen=True)
class InnerSpec:
    """An inner maximisation, apart from the loss that is trained on what it finds.

    `loss`: ``ce`` to the step's labels, ``kl`` from the detached clean distribution, or an objective of one's own.
    `alpha` (the step size) is in units of the threat model's eps, and `eps` scales that eps, so that one default serves
    every threat model. `init`: ``uniform`` in the ball of `init_eps` times eps, ``gauss`` (0.001 N(0,1)) or ``zero``;
    the gradient of ``kl`` is zero at ``zero``. Without `project` the ball is not enforced (the box is). While the
    perturbation is made, batch norm and dropout are in `bn_mode`: ``eval``, ``train``, or ``train_frozen`` (batch
    statistics are used, running statistics stay). `patience` stops an example so many steps after it is first
    misclassified (None: never); `descend` minimises. With `count`, ``Step.trace["kappa"]`` tells at how many of the
    iterates each example was still right. `target` is perturbed against instead of the trained module. `draw` tells the
    random starts of one step apart.
    """

    loss: Literal["ce", "kl"] | Objective = "ce"
    steps: int = 10
    alpha: float = 0.25
    eps: float = 1.0
    init: Literal["uniform", "gauss", "zero"] = "uniform"
    init_eps: float = 1.0
    project: bool = True
    bn_mode: Literal["eval", "train_frozen", "train"] = "eval"
    patience: int | None = None
    descend: bool = False
    count: bool = False
    target: nn.Module | None = None
    draw: int = 0

    def __post_init__(self) -> None:
        if self.loss == "kl" and self.init == "zero":
            raise UsageError("an inner maximisation of 'kl' from init 'zero' never moves: choose 'gauss' or 'uniform'.")
        if min(self.steps, self.alpha, self.eps, self.init_eps, self.patience or 0) < 0:
            raise UsageError(f"steps, alpha and eps of an inner maximisation must not be negative, got {self}.")


@dataclass(frozen=True)
class Term:
    """One named part of the loss: `values` per example ``[B]``, not reduced, and the coefficient `weight`."""

    values: Tensor
    weight: float = 1.0


def _same(step: Step, spec: InnerSpec) -> InnerSpec:
    del step
    return spec


def _alone(grads: list[Tensor]) -> list[Tensor]:
    return grads


@dataclass
class Step:
    """What a step method sees of one training step. The loop makes it, fills `q` and `views`, and hands it around.

    `x` float32 ``[B,C,H,W]``, `y` int64 ``[B]``, `q` float32 ``[B,K]`` the labels as distributions, `q_attack` those
    that the inner maximisation sees. `progress` runs from 0 to 1 over the whole training, `epoch` from 1. `noise` is
    bound to the batch's examples and to this step. `views` are detached inputs by name; ``clean`` is `x`. `aux` are the
    run's auxiliary models by name, `memory` what the plugin remembers from step to step, `trace` what the inner
    maximisation tells beside its result. `graph` is the network as bounds see it, where the method has asked the
    context for it; `boxes` are those of the last bounds that were asked for. `bounds(lower, upper, y)`, where given,
    answers for `margins`.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    q: Tensor
    threat: ThreatModel
    progress: float
    num_classes: int
    noise: ExampleNoise
    inner: Callable[[Step, InnerSpec, Tensor, Tensor], Tensor]
    bounds: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    q_attack: Tensor | None = None
    epoch: int = 1
    aux: Mapping[str, nn.Module] = field(default_factory=dict)
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)
    scope: str = ""
    joint: tuple[str, ...] = ()
    adjust: Callable[[Step, InnerSpec], InnerSpec] = _same
    reduce: Callable[[list[Tensor]], list[Tensor]] = _alone
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: Callable[[Tensor], Tensor] | None = None
    graph: Graph | None = None
    views: dict[str, Tensor] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)
    graphed: int = 0
    boxes: Boxes | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _noted: dict[str, Statistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views.setdefault("clean", self.x)

    @property
    def memory(self) -> dict[str, Any]:
        """The plugin's own memory: tensors, numbers, strings, lists and dicts of them; it is in every checkpoint."""
        return self.memories.setdefault(self.scope, {})

    def rebatch(self, *, x: Tensor | None = None, y: Tensor | None = None, q: Tensor | None = None,
                ids: Tensor | None = None) -> None:  # fmt: skip
        """Another batch in place of this one, as the data slot may want: each part that is given replaces its own.

        New examples need ``ids`` of their own: what is drawn for them is keyed by these.
        """
        self.x, self.y, self.q = (
            new if new is not None else old for new, old in ((x, self.x), (y, self.y), (q, self.q))
        )
        if ids is not None:
            self.noise = ExampleNoise(self.noise.noise, ids)
        sizes = {len(self.x), len(self.y), len(self.q), len(self.noise.ids)}
        if len(sizes) > 1:
            raise ContractError(
                f"the data slot left {len(self.x)} images, {len(self.y)} labels, {len(self.q)} label distributions and "
                f"{len(self.noise.ids)} ids; give all of them to rebatch."
            )
        self.views["clean"] = self.x
        self._cache.clear()
        self._noted.clear()

    def logits(self, view: str) -> Tensor:
        """Logits ``[B,K]`` of a view, with a graph to the parameters; one forward pass however often it is asked.

        The views that the method declares `joint` go through the network in one batch, and so share its statistics.
        """
        if view not in self.views:
            raise UsageError(f"no view '{view}' in this step; the views slot gave: {', '.join(self.views)}.")
        if view not in self._cache:
            group = [name for name in self.joint if name in self.views] if view in self.joint else [view]
            x = torch.cat([self.views[name] for name in group]) if group[1:] else self.views[view]
            if self.graph is not None and batch_normalised(self.module):
                with noting(self.module) as seen:
                    together = self.forward(x, uncompiled=True)
                self._noted.update(dict.fromkeys(group, seen))
            else:
                together = self.forward(x)
            self._cache.update(zip(group, together.split([len(self.views[name]) for name in group]), strict=True))
        return self._cache[view]

    def forward(self, x: Tensor, module: nn.Module | None = None, *, uncompiled: bool = False) -> Tensor:
        """Logits of any input, not cached, of the trained module or of an auxiliary one; in float32."""
        self.passes.forward += x.shape[0]
        if torch.is_grad_enabled():
            self.graphed += x.shape[0]
        with self.autocast():
            compiled = self.compiled if module in (None, self.module) and not uncompiled else None
            logits = (compiled or module or self.module)(x)
        return logits if logits.dtype == torch.float64 else logits.float()

    def infer(self, x: Tensor, module: nn.Module) -> Tensor:
        """Logits of a teacher in eval mode, without a graph."""
        module.eval()
        with torch.no_grad():
            return self.forward(x, module)

    def maximise(self, spec: InnerSpec, x: Tensor | None = None, q: Tensor | None = None) -> Tensor:
        """The worst view of ``x`` (this batch's images) that ``spec`` finds within the threat model, detached."""
        labels = self.q if self.q_attack is None else self.q_attack
        spec = self.adjust(self, spec)
        graphed = self.graphed  # what is differentiated there is no part of the loss's graph
        found = self.inner(self, spec, self.x if x is None else x, labels if q is None else q).detach()
        self.graphed = graphed
        return found

    def gradients(self, loss: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        """Gradients of ``loss`` for every parameter of the module (zeros where it has none), over all processes."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.passes.backward += self.graphed
        grads = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
        return self.reduce([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])

    def margins(self, lower: Tensor, upper: Tensor, view: str = "clean") -> Tensor:
        """Lower bounds of ``logit_y - logit_k`` over the boxes ``[lower, upper]``, ``[B,K]`` (0 in column y).

        Differentiable, in float32: for training, not for a certificate. Batch normalisations in train mode normalise
        by the statistics that ``view`` has in its own forward pass, which is made if it was not yet. Raises
        `DivergedBounds` where bounds are not finite, `UnsupportedOperator` where the network has none.
        """
        self._count(2 * len(lower))
        if self.bounds is not None:
            return self.bounds(lower, upper, self.y)
        with self.normalised(view) as graph:
            self.boxes = propagated(graph, lower, upper)
            return self._finite(self.boxes.margins(self.y))

    def crown_ibp(self, lower: Tensor, upper: Tensor, view: str = "clean", *, fused: float | None = None) -> Tensor:
        """As `margins`, by one backward pass over the interval bounds of the layers before (`CrownIBP`).

        With ``fused``: upper bounds ``[B]`` of the cross-entropy itself by loss fusion, that share of them backward
        (`CrownIBP.worst_loss`).
        """
        with self.normalised(view) as graph:
            bounds = CrownIBP(graph, lower, upper)
            self.boxes = bounds.boxes
            self._count((2 + (self.num_classes if fused is None else int(fused > 0))) * len(lower))
            return self._finite(bounds.margins(self.y) if fused is None else bounds.worst_loss(self.y, fused))

    @contextmanager
    def normalised(self, view: str) -> Iterator[Graph]:
        """The network for bounds of one's own, normalised by the statistics of ``view``."""
        if batch_normalised(self.module) and view not in self._noted:
            self._cache.pop(view, None)
        graph = self.graph = self.graph or trace(self.module, self.x.shape[1:])
        if batch_normalised(self.module):
            self.logits(view)
        with normalised_by(self._noted.get(view, {})):
            yield graph

    def _count(self, passes: int) -> None:
        self.passes.forward += passes
        self.graphed += passes

    def _finite(self, bounds: Tensor) -> Tensor:
        """``bounds``, or an error that says where they stop being finite."""
        if bool(bounds.isfinite().all()):
            return bounds
        place = (self.boxes and self.boxes.not_finite()) or "the margins of the logits"
        raise DivergedBounds(
            f"the bounds overflow float32 in {place}, at {self.progress:.0%} of the training. Let eps grow later and "
            "more slowly (-D warmup, -D ramp, -D schedule=smoothed), or begin with weights made for bounds (fast_ibp)"
        )

    def forget_logits(self) -> None:
        """Drop cached forwards: the weights have moved, or the loss is evaluated again on the same views."""
        self._cache.clear()
        self._noted.clear()
        self.boxes = None
        self.graphed = 0


def reduce_terms(terms: Mapping[str, Term], weights: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """Each term as the scalar ``weight * mean(w * values)``; their sum is the loss.

    Raises `ContractError` when there is no term, a term is not a vector ``[batch]``, or a weight has no term.
    """
    if not terms:
        raise ContractError("the method gives no loss term; return at least one from its terms slot.")
    stray = set(weights) - set(terms)
    if stray:
        raise ContractError(f"weights for unknown terms {sorted(stray)}; the terms are {sorted(terms)}.")
    scalars = {}
    for name, term in terms.items():
        for what, vector in (("term", term.values), ("weights of term", weights.get(name))):
            if vector is not None and tuple(vector.shape) != (batch,):
                raise ContractError(
                    f"{what} '{name}' must hold one value an example, shape [{batch}], got {list(vector.shape)}; "
                    "do not reduce over the batch."
                )
        values = term.values * weights[name] if name in weights else term.values
        scalars[name] = values.mean() * term.weight
    return scalars
