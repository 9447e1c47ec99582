"""Randomised ensembles: one member, drawn for each query, answers; what is expected of that is known exactly."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.errors import UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.bpda import around
from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.noise import ExampleNoise, Noise

_MOST = 10_000


class MeanProbability(nn.Module):
    """``log sum_m weights_m softmax(member_m(x))``, ``[N,K]``."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[Fraction]) -> None:
        super().__init__()
        self.members, self.logs = nn.ModuleList(members), [math.log(weight) for weight in weights]

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of a query whose member is not known."""
        parts = [member(x).log_softmax(1) + log for member, log in zip(self.members, self.logs, strict=True)]
        return torch.stack(parts).logsumexp(0)


class RandomizedEnsemble(RandomizedClassifier):
    """Answers with one of ``members``, drawn with probabilities ``weights`` for each query.

    Verdicts are expectations, not draws: of `draws` votes each member casts exactly its share, so that the expected
    accuracy is ``sum_m weights_m accuracy_m`` at every point. Attacks see the probabilities that a query is answered
    with, averaged over the members (Dbouk and Shanbhag 2023's adaptive attack). `decide` is one query.
    """

    def __init__(self, members: Sequence[Classifier], weights: Sequence[Fraction]) -> None:
        for member in members:
            plain_network(member)
        shares = math.lcm(*(weight.denominator for weight in weights))
        module = MeanProbability([member.module for member in members], weights)
        super().__init__(around(members[0], module, members[0].facts.differentiable), eot=1, draws=shares)
        self.members, self.shares = list(members), [int(weight * shares) for weight in weights]
        self.weights = [float(weight) for weight in weights]
        self.per_evaluation = self.per_decision = len(self.members)

    def recount(self, eot: int, draws: int) -> None:
        """Refused: the expectation is exact already."""
        if hasattr(self, "draws") and (eot, draws) != (self.eot, self.draws):
            raise UsageError("a randomised ensemble is judged by its exact expectation; leave --eot out.")
        self.eot, self.draws = eot, draws

    def votes(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The answers of all members, each as often as its share of `draws`, int64 ``[N,K]``; and `logits`."""
        del noise
        answers = self.answers(x)
        counts = torch.zeros(x.shape[0], self.num_classes, dtype=torch.int64, device=x.device)
        for share, logits in zip(self.shares, answers, strict=True):
            counts += share * F.one_hot(logits.argmax(1), self.num_classes)
        parts = torch.stack([z.log_softmax(1) + math.log(w) for z, w in zip(answers, self.weights, strict=True)])
        return counts, parts.logsumexp(0)

    def decide(self, x: Tensor, noise: ExampleNoise) -> tuple[Tensor, Tensor]:
        """One query an example: the class int64 ``[N]`` and the logits of the member that `drawn` gives it."""
        answers = torch.stack(self.answers(x))
        logits = answers[self.drawn(noise).to(x.device), torch.arange(x.shape[0], device=x.device)]
        return logits.argmax(1), logits

    def drawn(self, noise: ExampleNoise) -> Tensor:
        """The member that answers each example's query, int64 ``[N]``."""
        edges = torch.tensor(self.shares, device=noise.ids.device).cumsum(0)
        return torch.bucketize(noise.child("member").integers(self.draws), edges, right=True)

    def answers(self, x: Tensor) -> list[Tensor]:
        """Logits of every member, ``[N,K]`` each."""
        return [member.logits(x) for member in self.members]

    def logits(self, x: Tensor) -> Tensor:
        """Log of the members' mean probabilities, ``[N,K]``."""
        return Classifier.logits(self, x)

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The same, and the gradient of ``losses`` through it."""
        self.passes.backward += x.shape[0] * (len(self.members) - 1)
        return Classifier.gradient(self, x, losses)

    def _forward(self, x: Tensor) -> Tensor:
        self.passes.forward += x.shape[0] * (len(self.members) - 1)
        return super()._forward(x)


def exact_weights(weights: Sequence[float], members: int) -> list[Fraction]:
    """Positive weights that sum to 1, as fractions; equal ones where none are given.

    Raises `UsageError` for others, and for such that need more than 10,000 shares.
    """
    if not weights:
        return [Fraction(1, members)] * members
    exact = [Fraction(weight).limit_denominator(1000) for weight in weights]
    if len(weights) != members or min(exact) <= 0 or sum(exact) != 1:
        raise UsageError(f"an ensemble of {members} needs as many positive weights that sum to 1, got {list(weights)}.")
    if math.lcm(*(weight.denominator for weight in exact)) > _MOST:
        raise UsageError(f"the weights {list(weights)} have no common denominator below {_MOST}; round them.")
    return exact
