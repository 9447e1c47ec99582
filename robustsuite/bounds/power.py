"""Lipschitz constants in L2 by power iteration, differentiable in the weights: for training, not for a certificate.

Power iteration approaches a norm from below; what certifies a network is `lipschitz`, which approaches it from above.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustsuite.bounds import activations, elementwise
from robustsuite.bounds.graph import Graph, Node
from robustsuite.bounds.ibp import last_linear
from robustsuite.bounds.operators import UnsupportedOperator
from robustsuite.bounds.rounding import Box
from robustsuite.noise import Noise

_NOT_EXPANDING = (elementwise.ReLU, activations.Sigmoid, activations.Tanh, activations.Clip)
_TINY = 1e-12
_FIRST = 20  # iterations from a random start


class Power:
    """The linear operators of ``graph`` for images shaped like ``like`` ``[1,C,H,W]``, and the norms of them.

    Raises `UnsupportedOperator` for an operator whose constant is not known here.
    """

    def __init__(self, graph: Graph, like: Tensor) -> None:
        self.graph, self.last = graph, last_linear(graph)
        with torch.no_grad():
            self.values = graph.values(Box(torch.zeros_like(like), torch.zeros_like(like)))
        self.nodes = [node for node in graph.nodes if node is not self.last]
        for node in self.nodes:
            self._check(node)
        self.mixing = [node for node in self.nodes if not node.operator.relaxed and node.operator.mixes]

    def start(self, noise: Noise) -> dict[str, Tensor]:
        """Vectors near the largest singular ones, by the operators' names, from keyed random ones."""
        one = torch.zeros(1, dtype=torch.int64)
        vectors = {}
        for node in self.mixing:
            (taken,) = self.graph.activations(node, self.values)
            like = self.values[taken].lower
            vectors[node.name] = noise.child(f"power/{node.name}").at(one).normal(like.shape[1:]).to(like)
        return self.iterate(vectors, _FIRST)

    def iterate(self, vectors: Mapping[str, Tensor], steps: int = 1) -> dict[str, Tensor]:
        """``v <- A^T A v``, normalised, so many times."""
        found = {}
        for node in self.mixing:
            v = vectors[node.name]
            for _ in range(steps):
                leaf = (v / v.norm().clamp(min=_TINY)).detach().requires_grad_()
                with torch.enable_grad():
                    (v,) = torch.autograd.grad(self._linear(node, leaf).square().sum() / 2, leaf)
            found[node.name] = (v / v.norm().clamp(min=_TINY)).detach()
        return found

    def constant(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Constant (a scalar) of what a last linear layer takes, or of the logits where none is last."""
        found = {self.graph.source: next(iter(vectors.values())).new_ones(()) if vectors else torch.ones(())}
        for node in self.nodes:
            taken = self.graph.activations(node, self.values)
            constant = torch.stack([found[name] for name in taken]).sum()
            if node in self.mixing:
                constant = constant * self._linear(node, vectors[node.name]).norm()
            elif not node.operator.relaxed and len(taken) == 1:
                # It acts on every element by itself: a factor each.
                constant = constant * self._linear(node, torch.ones_like(self.values[taken[0]].lower)).abs().amax()
            found[node.name] = constant
        end = self.graph.output if self.last is None else self.last
        name = end.name if self.last is None else self.graph.activations(end, self.values)[0]
        return found[name]

    def gaps(self, vectors: Mapping[str, Tensor], classes: int, known: float = 0.0) -> Tensor:
        """Constants ``[K,K]`` of ``logit_i - logit_j``; ``known``: that of all before the last layer, 0 for unknown."""
        constant = self.constant(vectors) if known == 0 else torch.tensor(known)
        if self.last is None:
            return constant * 2**0.5 * torch.ones(classes, classes, device=constant.device)
        weight = self.last.operator.module.weight
        apart = (weight.unsqueeze(1) - weight).square().sum(2)
        return constant.to(weight) * apart.clamp(min=_TINY).sqrt()

    def _linear(self, node: Node, v: Tensor) -> Tensor:
        """The linear part of an operator with one activation."""
        (taken,) = self.graph.activations(node, self.values)
        results = []
        for value in (v, torch.zeros_like(v)):
            args, kwargs = self.graph.arguments(node, {**self.values, taken: value})
            results.append(node.operator.forward(*args, **kwargs))
        return results[0] - results[1]

    def _check(self, node: Node) -> None:
        operator: Any = node.operator
        taken = self.graph.activations(node, self.values)
        if operator.relaxed:
            leaky = isinstance(operator, elementwise.LeakyReLU) and operator.slope(0.01) <= 1
            known = leaky or isinstance(operator, _NOT_EXPANDING)
        else:
            known = len(taken) == 1 or isinstance(operator, elementwise.Add | elementwise.Sub)
        if not known:
            raise UnsupportedOperator(f"no Lipschitz constant for {node.place} in training.")
