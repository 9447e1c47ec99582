"""Models that draw from the suite's keyed noise as they predict: no generator is involved, on no device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robustsuite.errors import ContractError
from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.noise import ExampleNoise, Noise


class Draws:
    """Where a module finds the random numbers of the pass that it is in; `KeyedClassifier` fills it in."""

    def __init__(self) -> None:
        self.noise: Noise | None = None

    def rows(self, x: Tensor) -> ExampleNoise:
        """Noise with one row for each row of ``x``, keyed by its place; raises `ContractError` outside of a pass."""
        if self.noise is None:
            raise ContractError("a random module was called by itself; call the classifier that it belongs to.")
        return self.noise.at(torch.arange(x.shape[0], device=x.device))


class KeyedClassifier(RandomizedClassifier):
    """A `RandomizedClassifier` whose module draws from ``source``: every pass has a key, every row a place.

    A row's draws depend on the key and its place alone, not on the shape of the batch. ``passes_per_draw`` is what one
    draw costs, in passes of the network. A network below that draws from torch's generator can be repeated as well.
    """

    def __init__(self, base: Classifier, source: Draws, *, eot: int, draws: int, passes_per_draw: int = 1) -> None:
        self.source, self.passes_per_draw = source, passes_per_draw
        super().__init__(base, eot=eot, draws=draws)
        self.per_evaluation, self.per_decision = eot * passes_per_draw, draws * passes_per_draw

    def _forward(self, x: Tensor) -> Tensor:
        self.passes.forward += x.shape[0] * (self.passes_per_draw - 1)
        return super()._forward(x)

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Mean logits, and the gradient of the mean of ``losses`` over ``eot`` draws; it is called for each."""
        self.passes.backward += x.shape[0] * self.eot * (self.passes_per_draw - 1)
        return super().gradient(x, losses)

    @contextmanager
    def _drawing(self, noise: Noise, draw: int) -> Iterator[None]:
        """Key the pass; keys may be nested, and the outer one is put back."""
        before, self.source.noise = self.source.noise, noise.child(f"draw/{draw}")
        try:
            with super()._drawing(noise, draw):
                yield
        finally:
            self.source.noise = before
