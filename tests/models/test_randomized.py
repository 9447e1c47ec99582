"""Keyed draws: repeatable, independent, without a trace; means over draws against closed forms."""

import pytest
import torch
from torch import nn

from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.randomized import DRAWS, EOT, RandomizedClassifier, sampled
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.noise import Noise
from robustsuite.results.schema import ModelPart

SHAPE = (1, 2, 2)
PART = ModelPart(name="n", reference="r", weights_sha256="0" * 64, format="pt", n_params=1)
STREAM = Noise(3, "stage/test")


class Noisy(nn.Module):
    """Logits (0, c * s) with s the sum of the pixels plus noise, drawn for each row or once for the batch."""

    def __init__(self, sigma: float = 1.0, shared: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.sigma, self.shared, self.scale = sigma, shared, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(1 if self.shared else x.shape[0], device=x.device)
        score = self.scale * (x.flatten(1).sum(1) + self.sigma * noise)
        return torch.stack([torch.zeros_like(score), score], 1)


def plain(module: nn.Module, **facts) -> Classifier:
    return Classifier(module, num_classes=2, input_shape=SHAPE, facts=Facts(**{"randomized": True} | facts))


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_the_same_stream_gives_the_same_draws_whatever_the_global_generator():
    model, x = RandomizedClassifier(plain(Noisy()), eot=3, draws=4), images()
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.restart(STREAM)
        passes = [model.logits(x), *model.gradient(x, lambda z: z[:, 1] ** 2), *model.votes(x, STREAM)]
        torch.rand(seed)  # somebody else draws in between
        answers.append([*passes, model.logits(x)])
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(answers[0][0], answers[0][-1])  # a later pass draws anew


def test_the_global_generator_is_left_as_it_was_even_after_an_error():
    model, x = RandomizedClassifier(plain(Noisy()), eot=2, draws=2), images()
    before = torch.get_rng_state()
    model.logits(x)
    model.gradient(x, lambda z: z[:, 1])
    model.votes(x, STREAM)
    with pytest.raises(ZeroDivisionError):
        model.gradient(x, lambda z: z / (1 // 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_is_that_of_the_mean_loss():
    """Loss s^2 / 2 with s = sum + noise: the mean gradient is the mean of s, in every pixel."""
    model, x = RandomizedClassifier(plain(Noisy(sigma=0.5)), eot=50, draws=1), images()
    model.restart(STREAM)
    value, logits, grad = model.loss_gradient(x, lambda z: z[:, 1] ** 2 / 2)
    assert torch.allclose(grad, logits[:, 1].view(-1, 1, 1, 1).expand_as(grad), atol=1e-5)
    spread = value - logits[:, 1] ** 2 / 2  # the mean of squares is not the square of the mean
    assert spread.mean() == pytest.approx(0.5**2 / 2, rel=0.3)


def test_a_deterministic_model_gives_its_loss_and_gradient_unchanged():
    model, x = plain(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), randomized=False), images()
    value, logits, grad = model.loss_gradient(x, lambda z: z[:, 1] ** 2)
    again, slope = model.gradient(x, lambda z: z[:, 1] ** 2)
    assert torch.equal(logits, again)
    assert torch.equal(grad, slope)
    assert torch.equal(value, again[:, 1] ** 2)


@pytest.mark.parametrize("shared", [False, True])
def test_draws_of_one_example_are_independent_even_where_a_batch_shares_its_noise(shared):
    """The mean over n draws has the variance sigma^2 / n: rows of one pass are never draws of one example."""
    model, x = RandomizedClassifier(plain(Noisy(shared=shared)), eot=16, draws=1), torch.zeros(1, *SHAPE)
    model.restart(STREAM)
    means = torch.stack([model.logits(x)[0, 1] for _ in range(400)])
    assert means.var().item() == pytest.approx(1 / 16, rel=0.25)


def test_votes_follow_the_probability_of_an_error():
    model = RandomizedClassifier(plain(Noisy()), eot=1, draws=2000)
    x = torch.tensor([0.0, 0.25, 0.5]).view(3, 1, 1, 1).expand(3, *SHAPE)
    counts, logits = model.votes(x, STREAM)
    assert counts.sum(1).tolist() == [2000] * 3
    expected = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor([0.0, 1.0, 2.0]))
    assert torch.allclose(counts[:, 1] / 2000, expected, atol=0.04)
    assert torch.allclose(logits[:, 1], torch.tensor([0.0, 1.0, 2.0]), atol=0.08)
    predicted, _ = model.decide(x, STREAM.at(torch.arange(3)))
    assert torch.equal(predicted, counts.argmax(1))


def test_every_draw_is_counted_as_a_pass():
    base = plain(Noisy())
    model = RandomizedClassifier(base, eot=3, draws=7)
    model.logits(images(5))
    model.gradient(images(5), lambda z: z[:, 1])
    assert (base.passes.forward, base.passes.backward) == (30, 15)
    model.votes(images(5), STREAM)
    assert base.passes.forward == 30 + 35
    assert (model.per_evaluation, model.per_decision) == (3, 7)


@pytest.mark.parametrize("counts", [{"eot": 0}, {"draws": 0}])
def test_counts_must_be_positive(counts):
    with pytest.raises(UsageError, match="eot >= 1"):
        RandomizedClassifier(plain(Noisy()), **counts)


def test_only_a_plain_network_that_is_declared_random_is_wrapped():
    model, part = sampled(plain(Noisy()), PART)
    assert isinstance(model, RandomizedClassifier)
    assert (part.eot, part.draws) == (model.eot, model.draws) == (EOT, DRAWS)
    model, part = sampled(plain(Noisy()), PART.model_copy(update={"eot": 5}))
    assert (part.eot, part.draws) == (5, DRAWS)
    assert sampled(model, PART) == (model, part)
    fixed = plain(nn.Flatten(), randomized=False)
    smoothed = SmoothedClassifier(fixed, sigma=0.5)
    assert sampled(fixed, PART) == (fixed, PART)
    assert sampled(smoothed, PART) == (smoothed, PART)
    with pytest.raises(UsageError, match="--randomized"):
        sampled(fixed, PART.model_copy(update={"eot": 5}))


def test_a_part_without_draws_says_nothing_of_them():
    """Run keys of deterministic models stay what they were."""
    assert not {"eot", "draws"} & PART.model_dump(mode="json").keys()
    body = PART.model_copy(update={"eot": 5, "draws": 9}).model_dump(mode="json")
    assert (body["eot"], body["draws"]) == (5, 9)
    assert ModelPart.model_validate(body).eot == 5
