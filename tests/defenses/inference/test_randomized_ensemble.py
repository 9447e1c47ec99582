"""Randomised ensembles: the exact expectation, single queries, and the gradient of their mean."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.randomized_ensemble import RandomizedEnsembleDefense
from robustsuite.errors import InputError, UsageError
from robustsuite.evaluation.judge import Jury
from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized_ensemble import RandomizedEnsemble, exact_weights
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

SHAPE = (1, 2, 2)


class Always(nn.Module):
    """One class, whatever it is shown; the gradient tells the members apart."""

    def __init__(self, answer: int, slope: float = 0.0) -> None:
        super().__init__()
        self.answer, self.slope = answer, slope

    def forward(self, x):
        scores = torch.zeros(len(x), 3)
        scores[:, self.answer] = 2.0
        return scores + self.slope * x.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 0.0, 0.0])


def classifier(answer: int, slope: float = 0.0) -> Classifier:
    return Classifier(Always(answer, slope), num_classes=3, input_shape=SHAPE)


def ensemble(weights: tuple[float, ...], *answers: int) -> RandomizedEnsemble:
    members = [classifier(a, 0.1 * (i + 1)) for i, a in enumerate(answers)]
    return RandomizedEnsemble(members, exact_weights(weights, len(members)))


def test_the_expected_accuracy_is_the_weight_of_the_members_that_are_right():
    """Two complementary members: one always right, the other always wrong."""
    model, n = ensemble((0.7, 0.3), 0, 1), 6
    x, y, ids = torch.full((n, *SHAPE), 0.5), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(n)
    data = Dataset("toy", x, y, ids, 3)
    jury = Jury(model, ThreatModel.parse("Linf:0.1"), Noise(0, "t"), n, data.ids)
    poll = jury.poll(x, y, ids)
    expected = 1 - poll.wrong.double() / model.draws
    torch.testing.assert_close(expected, torch.tensor([0.7, 0.3, 0.0, 0.7, 0.3, 0.0]).double())
    broken = [v.broken for v in jury.exact(x, y, ids, x)]
    assert broken == [False, True, True, False, True, True]
    for noise in (Noise(0, "a"), Noise(1, "b")):
        votes, logits = model.votes(x, noise)
        assert votes[0].tolist() == [7, 3, 0]
        torch.testing.assert_close(logits, model.logits(x))


def test_queries_are_answered_by_drawn_members_and_agree_with_the_expectation_on_average():
    model, n = ensemble((0.5, 0.3, 0.2), 0, 1, 2), 5000
    noise = Noise(4, "query").at(torch.arange(n))
    drawn = model.drawn(noise)
    shares = torch.bincount(drawn, minlength=3) / n
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.025, rtol=0)
    x = torch.full((n, *SHAPE), 0.5)
    predicted, logits = model.decide(x, noise)
    assert torch.equal(predicted, drawn)
    assert torch.equal(logits[drawn == 1], model.members[1].logits(x[drawn == 1]))
    assert torch.equal(model.drawn(Noise(4, "query").at(torch.tensor([7]))), drawn[7:8])
    assert not torch.equal(drawn, model.drawn(Noise(5, "query").at(torch.arange(n))))


def test_attacks_see_the_mean_probability_and_its_gradient():
    model = ensemble((0.25, 0.75), 0, 1)
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits, grad = model.gradient(x, lambda z: z[:, 0])
    parts = [m.logits(x).softmax(1) for m in model.members]
    torch.testing.assert_close(logits, (0.25 * parts[0] + 0.75 * parts[1]).log())
    leaf = x.clone().requires_grad_(True)
    mean = 0.25 * model.members[0].module(leaf).softmax(1) + 0.75 * model.members[1].module(leaf).softmax(1)
    (want,) = torch.autograd.grad(mean.log()[:, 0].sum(), leaf)
    torch.testing.assert_close(grad, want)
    assert (model.per_evaluation, model.per_decision) == (2, 2)


def test_passes_of_all_members_are_counted_on_the_first(trained, images):
    first = trained("standard").classifier()
    model = RandomizedEnsembleDefense((str(trained("pgd_at").checkpoint),)).wrap(first)
    model.gradient(images.x, lambda z: z[:, 0])
    assert (first.passes.forward, first.passes.backward) == (128, 128)
    model.votes(images.x, Noise(0, "t"))
    assert first.passes.forward == 256


def test_one_member_is_the_network_itself(net, images):
    base = net.classifier()
    model = RandomizedEnsembleDefense().wrap(base)
    assert model.draws == 1
    assert torch.equal(model.votes(images.x, Noise(0, "t"))[0].argmax(1), base.logits(images.x).argmax(1))
    torch.testing.assert_close(model.logits(images.x), base.logits(images.x).log_softmax(1))


def test_a_robust_member_lifts_the_expectation_under_attack(trained, images, clean, attacked):
    weak, strong = trained("standard"), trained("pgd_at")
    defense = RandomizedEnsembleDefense((str(strong.checkpoint),), (0.4, 0.6))
    assert len(defense.members_sha256[0]) == 64
    model = defense.wrap(weak.classifier())
    alone = attacked(weak.classifier(), images), attacked(strong.classifier(), images)
    under = attacked(model, images)
    assert alone[0] < under
    assert clean(model, images) == pytest.approx(
        0.4 * clean(weak.classifier(), images) + 0.6 * clean(strong.classifier(), images), abs=1e-6
    )


def test_weights_are_exact_fractions():
    assert exact_weights((), 3) == [Fraction(1, 3)] * 3
    assert exact_weights((0.1, 0.9), 2) == [Fraction(1, 10), Fraction(9, 10)]
    for bad in ((0.5, 0.4), (0.5, 0.5, 0.0), (1.0,), (1.5, -0.5, 0.0)):
        with pytest.raises(UsageError, match="sum to 1"):
            exact_weights(bad, len(bad) if len(bad) > 1 else 2)
    with pytest.raises(UsageError, match="round them"):
        exact_weights((249 / 499, 0.499, 1 / 998, 0.001), 4)


def test_bad_parameters_are_refused(trained):
    path = str(trained("standard").checkpoint)
    with pytest.raises(UsageError, match="list of models"):
        RandomizedEnsembleDefense(path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="as many"):
        RandomizedEnsembleDefense((path,), (1.0,))
    with pytest.raises(InputError, match="is not the one"):
        RandomizedEnsembleDefense((path,), members_sha256=("0" * 64,))
