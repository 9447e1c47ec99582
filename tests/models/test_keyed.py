"""Keyed draws: the same whatever the batch, the device's generators left alone."""

import pytest
import torch
from torch import Tensor, nn

from robustsuite.errors import ContractError
from robustsuite.models.bpda import around
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.noise import Noise

SHAPE = (1, 2, 2)
STREAM = Noise(3, "stage/test")
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """Logits (0, sum of the pixels + noise)."""

    def __init__(self, source: Draws, sigma: float = 1.0) -> None:
        super().__init__()
        self.source, self.sigma = source, sigma

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) + self.sigma * self.source.rows(x).normal(())
        return torch.stack([torch.zeros_like(score), score], 1)


class Dropping(nn.Module):
    """Draws from torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * torch.rand(2)


def keyed(module: type[nn.Module] = Noisy, **counts: int) -> KeyedClassifier:
    source = Draws()
    base = Classifier(Noisy(source), num_classes=2, input_shape=SHAPE)
    if module is Dropping:
        base = Classifier(Dropping(), num_classes=2, input_shape=SHAPE, facts=Facts(randomized=True))
    return KeyedClassifier(around(base, base.module, "full"), source, **{"eot": 2, "draws": 3, **counts})


@pytest.mark.parametrize("module", [Noisy, Dropping])
def test_the_same_stream_gives_the_same_draws_and_leaves_no_trace(module):
    model, answers = keyed(module), []
    before = torch.get_rng_state()
    for _ in range(2):
        model.restart(STREAM)
        answers.append([model.logits(X), *model.gradient(X, lambda z: z[:, 1] ** 2), *model.votes(X, STREAM)])
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(answers[0][0], model.logits(X))
    assert model.source.noise is None


def test_a_row_depends_on_its_place_and_not_on_the_batch():
    model = keyed()
    whole, part = model.votes(X, STREAM)[1], model.votes(X[:2], STREAM)[1]
    torch.testing.assert_close(whole[:2], part)
    same = model.votes(X[:1].expand(6, *SHAPE), STREAM)[1]
    assert len(same[:, 1].unique()) == 6


def test_draws_of_one_example_are_independent():
    model = keyed(eot=4)
    means = []
    for seed in range(300):
        model.restart(Noise(seed, "t"))
        means.append(model.logits(torch.zeros(1, *SHAPE))[0, 1])
    assert torch.stack(means).var().item() == pytest.approx(1 / 4, rel=0.25)


def test_passes_of_a_draw_are_counted():
    model = keyed(passes_per_draw=5)
    assert (model.per_evaluation, model.per_decision) == (10, 15)
    model.gradient(X, lambda z: z[:, 1])
    assert (model.passes.forward, model.passes.backward) == (60, 60)
    model.votes(X, STREAM)
    assert model.passes.forward == 60 + 90


def test_outside_of_a_pass_there_is_nothing_to_draw_even_after_an_error():
    model = keyed()
    with pytest.raises(ZeroDivisionError):
        model.gradient(X, lambda z: z / (1 // 0))
    with pytest.raises(ContractError, match="by itself"):
        model.module(X)
