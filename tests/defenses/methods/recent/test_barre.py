"""BARRE: optimal sampling, the losses, what one member reduces to, and the ensemble that comes of it."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.cli.loading import wrapped
from robustsuite.defenses import FitMethod, InnerSpec, Services, Term, ce
from robustsuite.defenses.barre import BARRE, others
from robustsuite.defenses.ensemble_sampling import in_shares, onto_simplex, optimal_sampling
from robustsuite.errors import UsageError
from robustsuite.models.randomized_ensemble import RandomizedEnsemble
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.models.sidecar import find_sidecar
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES
from robustsuite.testing.fit_method import _Bench
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained


def quick(method: FitMethod, **changed: Any) -> Trained:
    recipe: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "validation": 0, **changed}
    return train(method, "small_cnn", {"width": 2}, toy_data(60), ThreatModel.parse("Linf:0.05"), **recipe)


def test_the_projection_onto_the_simplex():
    torch.testing.assert_close(onto_simplex(torch.tensor([0.5, 0.8, -0.2])), torch.tensor([0.35, 0.65, 0.0]))
    points = Noise(0, "simplex").at(torch.arange(30)).normal((5,)).double()
    corners = torch.eye(5).double()
    for point in points:
        near = onto_simplex(point)
        assert float(near.sum()) == pytest.approx(1)
        assert bool((near >= 0).all())
        # Every corner of the simplex lies behind the plane through the projection: what makes it the nearest point
        assert bool(((corners - near) @ (point - near) <= 1e-9).all())
    torch.testing.assert_close(onto_simplex(points[0].softmax(0)), points[0].softmax(0))


def test_optimal_sampling_of_members_that_err_alike_under_every_attack_takes_the_best():
    fixed = torch.tensor([0.4, 0.1, 0.3]).double()
    best = optimal_sampling(lambda at, step: fixed, torch.full((3,), 1 / 3).double(), steps=10, rate=2.0)
    torch.testing.assert_close(best, torch.tensor([0.0, 1.0, 0.0]).double())


def test_optimal_sampling_of_members_that_an_attack_must_choose_from_is_even():
    """The attack fools the likeliest member: the expected error is the largest probability, least at 1/2."""

    def errors(at: Tensor, step: int) -> Tensor:
        return nn.functional.one_hot(at.argmax(), 2).double()

    best = optimal_sampling(errors, torch.tensor([0.9, 0.1]).double(), steps=60, rate=1.0)
    torch.testing.assert_close(best, torch.tensor([0.5, 0.5]).double(), atol=0.02, rtol=0)
    start = torch.tensor([0.6, 0.4]).double()
    assert torch.equal(optimal_sampling(errors, start, steps=1, rate=1.0), start)


def test_probabilities_become_shares():
    assert in_shares(torch.tensor([1 / 3] * 3)) == [Fraction(1, 3)] * 3
    assert in_shares(torch.tensor([0.337, 0.338, 0.325])) == [Fraction(34, 100), Fraction(34, 100), Fraction(32, 100)]
    assert in_shares(torch.tensor([0.999, 0.001])) == [Fraction(1), Fraction(0)]
    for point in Noise(1, "shares").at(torch.arange(20)).normal((6,)):
        assert sum(in_shares(onto_simplex(point.double()))) == 1


def test_the_loss_of_the_other_classes():
    z, y = torch.tensor([[1.0, 0.5, -1.0], [1.0, 0.0, 0.0]]), torch.tensor([0, 1])
    by_hand = [(-(-z[b]).softmax(0).log())[[k for k in range(3) if k != y[b]]].mean() for b in range(2)]
    torch.testing.assert_close(others(z, y), torch.stack(by_hand))
    assert others(z, y).tolist() == pytest.approx([1.0564, 1.3620], abs=1e-4)


@dataclass(frozen=True)
class HalfBallAT(FitMethod):
    """Adversarial training from the half ball, which BARRE with one member is."""

    select = "last"

    def fit(self, services: Services) -> nn.Module:
        optimizer = services.optimizer(services.module)
        for epoch in range(1, services.epochs + 1):
            for step in services.batches(epoch):
                x_adv = step.maximise(InnerSpec("ce", 3, 0.5, init_eps=0.5))
                services.descend(step, optimizer, {"ce_adv": Term(ce(step.forward(x_adv), step.q))})
            services.report(epoch)
        return services.module


def test_one_member_is_adversarial_training():
    one, plain = quick(BARRE(members=1, steps=3, alpha=0.5, other=0.0)), quick(HalfBallAT())
    for name, tensor in plain.last_state.items():
        assert torch.equal(one.last_state[f"members.0.{name}"], tensor)
    assert one.passes == plain.passes


def test_members_follow_each_other_and_stay_as_they_were():
    first = quick(BARRE(members=1, steps=2), epochs=1)
    both = quick(BARRE(members=2, steps=2), epochs=2)
    assert all(torch.equal(both.last_state[name], tensor) for name, tensor in first.last_state.items())
    assert any(
        not torch.equal(both.last_state[name.replace("members.0", "members.1")], tensor)
        for name, tensor in first.last_state.items()
    )
    assert both.forward == first.forward + 60 * (2 * 2 + 1)
    assert [set(epoch.terms) for epoch in both.history] == [{"ce_adv", "others"}] * 2


def test_weights_are_sampled_optimally_and_the_ensemble_is_loaded(tmp_path: Path):
    method = BARRE(members=3, steps=2, osp_from=2, osp_steps=3, osp_examples=20)
    trained = quick(method, epochs=3, validation=12)
    fitted = trained.fitted
    assert fitted is not None
    weights = fitted.wrap["weights"]
    assert sum(round(100 * weight) for weight in weights) in (99, 100)
    path = save_trained(trained, tmp_path / "net")
    told = find_sidecar(path)
    assert told is not None
    assert told.wrap is not None
    assert told.wrap["name"] == "randomized_ensemble"
    assert told.wrap.get("members", []) == [f"./net.members.{k}.safetensors" for k in range(len(weights) - 1)]
    found = load_model(ModelSpec(str(path)), input_shape=(1, 6, 6), num_classes=3)
    model = wrapped(found.classifier, found.part.wrap)
    assert isinstance(model, RandomizedEnsemble)
    assert model.weights == pytest.approx(weights)
    x = toy_data(60).x
    torch.testing.assert_close(model.logits(x), trained.module(x), atol=1e-5, rtol=0)
    assert trained.history[0].robust_accuracy is None  # selected by the method itself


def test_it_keeps_the_contract_of_a_fit_method():
    bench = _Bench(BARRE(members=3, steps=2, alpha=0.5, osp_from=3, osp_every=1, osp_steps=2, osp_examples=32))
    for check in (bench.training, bench.repeatable, bench.resuming, bench.checkpoint):
        check()


def test_what_cannot_be_is_refused():
    assert DEFENSES.get("barre").facts["fidelity"] == "authors' code"
    for bad in ({"members": 0}, {"steps": -1}, {"osp_every": 0}, {"other": -1.0}):
        with pytest.raises(UsageError, match="barre needs"):
            BARRE(**bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="an epoch for each of its 5 members, got 2"):
        quick(BARRE())
