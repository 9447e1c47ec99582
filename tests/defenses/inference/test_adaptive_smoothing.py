"""Adaptive smoothing: the published vector, the certificate's own model, and a mixing network that is trained here."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustsuite.attacks.pgd import PGD
from robustsuite.certification.mixed_lipschitz import MixedLipschitz
from robustsuite.data.digits import digits
from robustsuite.defenses.adaptive_smoothing import AdaptiveSmoothing
from robustsuite.errors import InputError, UsageError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.models.mixed import MixedClassifier, Mixture
from robustsuite.models.mixing_network import AdaptiveMixture, MixingNetwork, mixing_loss
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import ThreatModel

ROBUST = torch.tensor([[4.0, 1.0, 0.0, -1.0]])
STANDARD = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
LAYERS = ("1", "3")


class Fixed(nn.Module):
    """Features that are the pixels, logits that are given."""

    def __init__(self, logits):
        super().__init__()
        self.values, self.tap = logits, nn.Identity()

    def forward(self, x):
        return self.values.expand(len(x), -1) + 0 * self.tap(x).flatten(1).sum(1, keepdim=True)


class Given(MixingNetwork):
    """gamma is the mean pixel."""

    def forward(self, features):
        return features[0].flatten(1).mean(1)


def adaptive(low: float, high: float) -> AdaptiveMixture:
    head = Given([1, 1]).eval()
    return AdaptiveMixture(
        Fixed(STANDARD), Fixed(ROBUST), head, layers=("tap",), robust_layers=("tap",), low=low, high=high
    )


def test_the_published_vector_and_the_two_ends():
    x = torch.zeros(1, 1, 2, 2)
    got = adaptive(0.9, 0.9)(x).exp()
    torch.testing.assert_close(got, torch.tensor([[0.837994, 0.139707, 0.015997, 0.006302]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(got, Mixture(Fixed(STANDARD), Fixed(ROBUST), 0.9)(x).exp())
    torch.testing.assert_close(adaptive(0.0, 0.0)(x), STANDARD.log_softmax(1))
    torch.testing.assert_close(adaptive(1.0, 1.0)(x), ROBUST.log_softmax(1))


def test_the_weight_follows_gamma_between_its_ends():
    x = torch.tensor([-30.0, 0.0, 30.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    logits, gamma = adaptive(0.6, 0.8).parts(x)
    assert gamma.tolist() == [-30.0, 0.0, 30.0]
    for row, share in zip(logits, (0.6, 0.7, 0.8), strict=True):
        torch.testing.assert_close(row[None], Mixture(Fixed(STANDARD), Fixed(ROBUST), share)(x[:1]))


def test_a_constant_weight_is_the_model_that_the_certifier_speaks_of(trained, images):
    robust, standard = trained("pgd_at").classifier(), str(trained("standard").checkpoint)
    model = AdaptiveSmoothing(standard, 0.9).wrap(robust)
    assert isinstance(model, MixedClassifier)
    assert MixedLipschitz(standard=standard, share=0.9).subject(model) is model
    with pytest.raises(UsageError, match="another share"):
        MixedLipschitz(standard=standard, share=0.8).subject(model)
    own = MixedLipschitz(standard=standard, share=0.9).subject(robust)
    assert torch.equal(own.logits(images.x), model.logits(images.x))


def test_the_loss_of_the_head():
    logits, y = torch.zeros(2, 4), torch.tensor([0, 1])
    got = mixing_loss(logits, y, torch.tensor([0.0, 100.0]), torch.tensor([1, 1]))
    binary, ce = torch.log(torch.tensor([2.0, 1.0])), torch.log(torch.tensor(4.0))
    torch.testing.assert_close(got, 1.5 * binary + 0.3 * binary * ce)


def test_gamma_is_normalised_and_clipped_in_training_and_by_running_statistics_after():
    head = MixingNetwork([2, 3], 4)
    features = [torch.randn(64, 2, 4, 4), torch.randn(64, 3)]
    gamma = head.train()(features).detach()
    assert float(gamma.mean()) == pytest.approx(0, abs=1e-5)
    assert float(gamma.std(correction=0)) == pytest.approx(1, abs=1e-2)
    assert float((gamma == gamma.max()).float().mean()) > 0.1
    head.eval()
    torch.testing.assert_close(head(features)[:3], head([f[:3] for f in features]), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def head_file(trained, tmp_path_factory):
    """A mixing network trained on clean digits and on digits attacked through the mixture."""
    robust, standard = trained("pgd_at").module, trained("standard").module
    data, threat = digits("train").take(torch.arange(768), "768"), ThreatModel.parse("Linf:0.15")
    with fork_global(0, "test/mixing"):
        head = MixingNetwork([8, 16, 8, 16], 16)
        mixture = AdaptiveMixture(standard, robust, head, layers=LAYERS, robust_layers=LAYERS, low=0.0, high=1.0)
        optimiser = torch.optim.Adam(head.parameters(), 3e-3)
        for epoch in range(4):
            for rows in torch.randperm(len(data)).split(128):
                x, y, noise = data.x[rows], data.y[rows], Noise(epoch, "mixing").at(data.ids[rows])
                mixture.eval()
                view = Classifier(mixture, num_classes=10, input_shape=(1, 8, 8))
                x_adv = PGD(steps=5, stop_when_fooled=False).run(view, x, y, threat, noise)
                head.train().requires_grad_(True)
                both, labels = torch.cat([x, x_adv]), torch.cat([y, y])
                attacked = torch.arange(len(both)) >= len(x)
                logits, gamma = mixture.parts(both)
                optimiser.zero_grad()
                mixing_loss(logits, labels, gamma, attacked).mean().backward()
                optimiser.step()
    path = tmp_path_factory.mktemp("heads") / "head.safetensors"
    save_file(head.eval().state_dict(), path)
    return path


def test_a_trained_head_tells_attacked_images_and_keeps_clean_accuracy(trained, head_file):
    robust, standard = trained("pgd_at"), trained("standard")
    options = {"head": str(head_file), "standard_layers": LAYERS, "robust_layers": LAYERS}
    defense = AdaptiveSmoothing(str(standard.checkpoint), low=0.5, high=1.0, **options)
    assert len(defense.head_sha256) == 64
    model = defense.wrap(robust.classifier())
    detached = AdaptiveSmoothing(str(standard.checkpoint), low=0.5, high=1.0, through=False, **options)
    constant = detached.wrap(robust.classifier())
    assert (model.facts.differentiable, constant.facts.differentiable) == ("full", "surrogate")
    data, threat = digits("test").take(torch.arange(200), "200"), ThreatModel.parse("Linf:0.15")
    assert torch.equal(model.logits(data.x), constant.logits(data.x))

    def after(target):
        attack = PGD(steps=10, stop_when_fooled=False)
        return attack.run(target, data.x, data.y, threat, Noise(0, "test").at(data.ids))

    def right(target, x):
        return float((target.logits(x).argmax(1) == data.y).float().mean())

    mixture = model.module
    points = after(model), after(constant)
    with torch.no_grad():
        gammas = [mixture.parts(x)[1] for x in (data.x, *points)]
    above = (gammas[2].view(-1, 1) > gammas[0].view(1, -1)).float().mean()
    lower = min(right(model, x) for x in points)
    weak = standard.classifier()
    assert float(above) > 0.8
    assert right(model, data.x) > right(robust.classifier(), data.x) - 0.03
    assert lower > right(weak, after(weak)) + 0.2
    grads = [m.gradient(data.x, lambda z: margins(z, data.y))[1] for m in (model, constant)]
    assert not torch.allclose(grads[0], grads[1])


def test_bad_parameters_are_refused(trained, head_file, tmp_path):
    for bad in ({"share": 0.4}, {"low": 0.9, "high": 0.8}, {"head": str(head_file)}, {"standard_layers": LAYERS}):
        with pytest.raises(UsageError):
            AdaptiveSmoothing(**bad)
    model = trained("pgd_at").classifier()
    with pytest.raises(UsageError, match="no layer"):
        AdaptiveSmoothing(head=str(head_file), standard_layers=("no",), robust_layers=("1", "2", "3")).wrap(model)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no mixing network"):
        AdaptiveSmoothing(head=str(tmp_path / "other.safetensors"), robust_layers=("1",)).wrap(model)
