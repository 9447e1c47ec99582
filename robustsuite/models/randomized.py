"""Models that draw random numbers as they predict: keyed draws, expectation over transformation, votes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.noise import ExampleNoise, Noise, generator_seed
from robustsuite.results.schema import ModelPart

EOT, DRAWS = 20, 100
"""Draws of an attack's evaluation (as in AutoAttack's version 'rand') and of a verdict."""


class RandomizedClassifier(Classifier):
    """A module that draws from torch's global generator, with draws that can be repeated.

    Attacks see the mean over ``eot`` draws (`logits`, and `gradient` of the mean loss); a verdict counts the `votes`
    of ``draws`` others. Every draw is a pass of its own, because a module may draw once for its whole batch (a random
    filter, a random size): rows that share a pass are different examples, and never two draws of one. For each pass
    the generators are seeded from the current stream and put back afterwards; what a module draws elsewhere (NumPy,
    Python) cannot be repeated. Passes are counted on ``base``. Raises `UsageError` unless both counts are positive.
    """

    def __init__(self, base: Classifier, *, eot: int = EOT, draws: int = DRAWS) -> None:
        if eot < 1 or draws < 1:
            raise UsageError(f"a randomised model needs eot >= 1 and draws >= 1, got {eot} and {draws}.")
        super().__init__(
            base.module,
            num_classes=base.num_classes,
            input_shape=base.input_shape,
            device=base.device,
            facts=Facts(randomized=True, differentiable=base.facts.differentiable),
        )
        self.passes = base.passes
        self.recount(eot, draws)
        self.restart(Noise(0, "randomized"))

    def recount(self, eot: int, draws: int) -> None:
        """Another number of draws for an evaluation and for a verdict."""
        self.eot, self.draws = eot, draws
        self.per_evaluation, self.per_decision = eot, draws

    def restart(self, noise: Noise) -> None:
        """Key the passes of `logits` and `gradient` that follow by ``noise`` and their number, counted from 0."""
        self.stream, self.made = noise, 0

    def logits(self, x: Tensor) -> Tensor:
        """Mean logits of ``eot`` draws, ``[N,K]``."""
        return self._mean(lambda: (Classifier.logits(self, x),))[0]

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Mean logits, and the gradient of the mean of ``losses`` over ``eot`` draws; it is called for each."""
        logits, grad = self._mean(lambda: Classifier.gradient(self, x, losses))
        return logits, grad

    def votes(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """How often each class is the answer in ``draws`` draws, int64 ``[N,K]``, and their mean logits ``[N,K]``.

        A row's draws depend on ``noise``, its place and the shape of ``x``: whoever wants them again keeps all three.
        """
        counts = torch.zeros(x.shape[0], self.num_classes, dtype=torch.int64, device=x.device)
        total = torch.zeros(x.shape[0], self.num_classes, device=x.device)
        for draw in range(self.draws):
            with self._drawing(noise, draw):
                logits = super().logits(x)
            counts += F.one_hot(logits.argmax(1), self.num_classes)
            total += logits
        return counts, total / self.draws

    def decide(self, x: Tensor, noise: ExampleNoise) -> tuple[Tensor, Tensor]:
        """The class with the most votes, int64 ``[N]``, and the mean logits; the rows' places count, not their ids."""
        counts, logits = self.votes(x, noise.noise)
        return counts.argmax(1), logits

    def _mean(self, one: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        """The mean of what ``one`` returns over ``eot`` passes."""
        total: list[Tensor] = []
        for _ in range(self.eot):
            with self._drawing(self.stream, self.made):
                values = one()
            self.made += 1
            total = [t.add_(v) for t, v in zip(total, values, strict=True)] if total else [v.clone() for v in values]
        return [t.div_(self.eot) for t in total]

    @contextmanager
    def _drawing(self, noise: Noise, draw: int) -> Iterator[None]:
        """Seed the generators that the module can draw from, and put them back as they were."""
        generators = [torch.default_generator]
        if self.device.type == "cuda":
            index = self.device.index
            generators.append(torch.cuda.default_generators[torch.cuda.current_device() if index is None else index])
        seed = generator_seed(noise.seed, f"{noise.stage}/draw/{draw}")
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)


def sampled(model: Classifier, part: ModelPart) -> tuple[Classifier, ModelPart]:
    """A plain network that declares itself random, wrapped; and its part with both counts filled in.

    Anything else (a deterministic network, a smoothed one) is returned as it is. Raises `UsageError` when the part
    asks such a model for draws.
    """
    if model.facts.randomized and type(model) is Classifier:
        model = RandomizedClassifier(model, eot=part.eot or EOT, draws=part.draws or DRAWS)
    if isinstance(model, RandomizedClassifier):
        model.recount(part.eot or model.eot, part.draws or model.draws)
        return model, part.model_copy(update={"eot": model.eot, "draws": model.draws})
    if part.eot or part.draws:
        raise UsageError("--eot is for models that are random by themselves; declare that with --randomized.")
    return model, part
