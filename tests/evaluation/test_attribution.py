"""Agreement of maps against scipy and by hand, and what is measured of a model."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor, nn

from robustsuite.attacks.ifia import IFIA
from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.errors import ContractError, InputError, UsageError
from robustsuite.evaluation.attribution import AttributionRobustness, agreement, evaluate_attributions
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.saliency import saliency
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.method import make_trainable

THREAT = ThreatModel.parse("Linf:0.1")
SHORT = IFIA(steps=8)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", subset="first:50")


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    method, data = make_trainable("standard", [], {}, None), load_data("digits", split="train")
    return train(method, "mlp", {"hidden": 16}, data, THREAT, epochs=6, batch_size=32, lr=0.1).module


def classifier(module: nn.Module, facts: Facts = Facts()) -> Classifier:
    return Classifier(module, num_classes=10, input_shape=(1, 8, 8), facts=facts)


def random_maps(n: int, pixels: int, seed: int) -> Tensor:
    values = torch.rand(n, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))
    return saliency((values * 8).round())  # with ties


def test_correlations_are_those_of_their_definitions():
    a, b = random_maps(6, 12, 0), random_maps(6, 12, 1)
    found = agreement(a, b, 4, 3, 4)
    for i in range(6):
        u, v = a[i].double().numpy(), b[i].double().numpy()
        signs = [np.sign(np.subtract.outer(w, w))[np.triu_indices(12, 1)] for w in (u, v)]
        tau = (signs[0] * signs[1]).sum() / np.sqrt((signs[0] != 0).sum() * (signs[1] != 0).sum())
        assert found.kendall[i] == pytest.approx(tau) == pytest.approx(kendalltau(u, v).statistic)
        assert found.spearman[i] == pytest.approx(np.corrcoef(rankdata(u), rankdata(v))[0, 1])
        top = [set(np.argsort(-w, kind="stable")[:4]) for w in (u, v)]
        assert found.top_k[i] == pytest.approx(len(top[0] & top[1]) / 4)
        places = np.stack(np.divmod(np.arange(12), 4), 1)
        assert found.centre_shift[i] == pytest.approx(np.linalg.norm((u - v) @ places))


def test_maps_that_are_equal_or_constant():
    flat, other = torch.full((1, 4), 0.25), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    for a, b, value in ((other, other, 1), (flat, flat, 1), (flat, other, 0), (other, other.flip(1), -1)):
        found = agreement(a, b, 2, 2, 2)
        assert found.kendall == pytest.approx(value)
        assert found.spearman == pytest.approx(value)


def test_an_attack_turns_maps_more_than_noise_and_stays_in_the_ball(trained: nn.Module, digits: Dataset):
    model = classifier(trained)
    found = evaluate_attributions(model, digits, THREAT, SHORT)
    right = model.logits(digits.x).argmax(1) == digits.y
    assert found.ids.tolist() == digits.ids[right].tolist()
    assert found.labels.tolist() == digits.y[right].tolist()
    assert (found.examples, found.k) == (50, 6)
    assert found.attacked.top_k.mean() < found.random.top_k.mean() - 0.05
    assert found.attacked.kendall.mean() < found.random.kendall.mean()
    assert found.distance.max() <= 0.1 * (1 + 1e-6) + 1e-7
    assert not found.blind.any()


def test_it_is_deterministic_and_fills_up_the_last_batch(trained: nn.Module, digits: Dataset):
    whole, again, parts = (
        evaluate_attributions(classifier(trained), digits, THREAT, SHORT, seed=3, slots=slots).table()
        for slots in (None, None, 9)
    )
    assert whole.equals(again)
    assert parts["id"].tolist() == whole["id"].tolist()
    # Another shape moves the last bits, which signs amplify; nearly all examples agree all the same.
    assert np.isclose(parts["attacked_kendall"], whole["attacked_kendall"], atol=1e-4).mean() > 0.8
    other = evaluate_attributions(classifier(trained), digits, THREAT, SHORT, seed=4).table()
    assert not other["random_kendall"].equals(whole["random_kendall"])


def test_integrated_gradients_and_the_other_losses(trained: nn.Module, digits: Dataset):
    some = digits.take(torch.arange(12), "first:12")

    def shift(loss: str, steps: int, **more: tuple[int, int, int, int]) -> AttributionRobustness:
        attack = IFIA(loss, k=64, attribution="integrated", points=4, steps=steps, **more)
        return evaluate_attributions(classifier(trained), some, THREAT, attack)

    assert (
        shift("mass_centre", 10).attacked.centre_shift.mean() > 1.5 * shift("mass_centre", 1).random.centre_shift.mean()
    )
    assert (shift("targeted", 10, region=(0, 0, 4, 8)).attacked.kendall < 1).mean() > 0.9


def test_a_linear_network_leaves_the_attack_blind(digits: Dataset):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():  # its answers come from class means, so that some are right
        means = torch.stack([digits.x[digits.y == label].mean(0).flatten() for label in range(10)])
        linear[1].weight.copy_(means)
        linear[1].bias.copy_(-means.pow(2).sum(1) / 2)
    found = evaluate_attributions(classifier(linear), digits, THREAT, SHORT)
    assert found.blind.all()
    assert (found.attacked.top_k == 1).all()
    assert found.random.kendall == pytest.approx(1)


class Rounds(nn.Module):
    """Answers like the network behind it, on rounded images."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "random":
            return self.network(x + 0.05 * torch.randn_like(x))
        return self.network((x * 16).round() / 16 if self.how == "rounds" else x.detach())


@pytest.mark.parametrize("how", ["rounds", "detaches", "random"])
def test_what_a_model_does_not_declare_is_found(how: str, trained: nn.Module, digits: Dataset):
    with pytest.raises(ContractError, match="randomness" if how == "random" else "a model's own gradient"):
        evaluate_attributions(classifier(Rounds(trained, how)), digits, THREAT, SHORT)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts(randomized=True), "draws as it predicts"),
        (Facts(differentiable="none"), "declares 'none'"),
        (Facts(differentiable="surrogate"), "declares 'surrogate'"),
    ],
)
def test_what_a_model_declares_is_refused(facts: Facts, words: str, trained: nn.Module, digits: Dataset):
    with pytest.raises(UsageError, match=words):
        evaluate_attributions(classifier(trained, facts), digits, THREAT, SHORT)


def test_other_bad_input(trained: nn.Module, digits: Dataset):
    model = classifier(trained)
    with pytest.raises(UsageError, match="nothing to attack at eps 0"):
        evaluate_attributions(model, digits, ThreatModel.parse("Linf:0"), SHORT)
    with pytest.raises(UsageError, match="k = 65 is more than the 64 pixels"):
        evaluate_attributions(model, digits, THREAT, IFIA(k=65))
    wrong = (model.logits(digits.x).argmax(1) + 1) % 10
    data = Dataset("wrong", digits.x, wrong, digits.ids, 10)
    with pytest.raises(InputError, match="none of the 50 examples"):
        evaluate_attributions(model, data, THREAT, SHORT)


def test_the_table_has_a_row_an_example(trained: nn.Module, digits: Dataset):
    found = evaluate_attributions(classifier(trained), digits, THREAT, SHORT)
    table = found.table()
    assert list(table.columns) == [
        "id", "label", *(f"{side}_{name}" for side in ("random", "attacked")
        for name in ("top_k", "kendall", "spearman", "centre_shift")), "distance", "blind",
    ]  # fmt: skip
    assert len(table) == len(found.ids)
    assert table["attacked_top_k"].tolist() == found.attacked.top_k.tolist()
