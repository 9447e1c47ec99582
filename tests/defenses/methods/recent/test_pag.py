"""PAG: input gradients that point at images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.extra_data import Extra
from robustsuite.defenses.pag import PAG, neighbours
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense

WEIGHT = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, -1], [-1, 1, 1, 1]]).double()


@pytest.fixture
def linear(toy: Step) -> Step:
    """Logits ``W x`` on four pixels, two images, and an image of each class."""
    layer = nn.Linear(4, 3, bias=False).double()
    layer.weight = nn.Parameter(WEIGHT.clone())
    toy.module = nn.Sequential(nn.Flatten(), layer)
    toy.rebatch(x=torch.tensor([[[[0.1, 0.4], [0.3, 0.9]]], [[[0.8, 0.2], [0.5, 0.1]]]]).double())
    images = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.3, 0.3, 0.8, 0.6], [0.0, 1.0, 0.2, 0.4]]).double()
    toy.memory.update(images=images.view(3, 1, 2, 2), sizes=torch.tensor([1, 1, 1]))
    return toy


def expected(step: Step, goals: Tensor, classes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """By hand: ``grad log p_t = W_t - sum_k p_k W_k``; goals ``[B,K,4]``."""
    p = (step.x.flatten(1) @ WEIGHT.T).softmax(1)
    values = [1 - torch.cosine_similarity(WEIGHT[t] - p @ WEIGHT, goals[:, t]) for t in classes]
    return torch.stack(values).mean(0)


def test_closed_form_on_a_linear_network(linear: Step):
    goals = linear.memory["images"].view(1, 3, 4) - linear.x.view(2, 1, 4)
    found = PAG().terms(linear)
    assert torch.allclose(found["pag"].values, expected(linear, goals))
    assert found["pag"].weight == 15
    assert torch.equal(found["ce"].values, Standard().terms(linear)["ce"].values)


def test_a_class_without_images_asks_for_nothing(linear: Step):
    linear.memory["sizes"] = torch.tensor([1, 0, 1])
    goals = linear.memory["images"].view(1, 3, 4) - linear.x.view(2, 1, 4)
    assert torch.allclose(PAG().terms(linear)["pag"].values, expected(linear, goals, (0, 2)) * 2 / 3)


def test_targets_are_drawn_without_repeats(linear: Step):
    drawn = PAG(targets=2)._targets(linear)
    assert drawn.shape == (2, 2)
    assert bool((drawn[:, 0] != drawn[:, 1]).all())
    assert PAG()._targets(linear).sort(1).values.tolist() == [[0, 1, 2]] * 2
    goals = linear.memory["images"].view(1, 3, 4) - linear.x.view(2, 1, 4)
    by_hand = torch.stack([expected(linear, goals, tuple(row.tolist()))[i] for i, row in enumerate(drawn)])
    assert torch.allclose(PAG(targets=2).terms(linear)["pag"].values, by_hand)


def test_the_nearest_image_of_each_class_by_brute_force(linear: Step, digits: Dataset):
    order = digits.y.argsort(stable=True)
    pool, y = digits.x[order], digits.y[order]
    x = digits.x[:5] + 0.01
    found = neighbours(x, pool, y.bincount(minlength=3))
    for i in range(5):
        for k in range(3):
            distances = (pool - x[i]).flatten(1).square().sum(1) + 1e9 * (y != k)
            assert int(found[i, k]) == int(distances.argmin())
    linear.aux = {"pag": Extra(linear.memory["images"], torch.tensor([0, 1, 2]))}
    of_one_image_each = PAG(source="nearest").terms(linear)["pag"].values
    assert torch.allclose(of_one_image_each, PAG().terms(linear)["pag"].values)


def test_no_weight_is_standard_training(quick: Callable, same: Callable):
    assert same(quick(PAG(weight=0)), quick(Standard()))


def test_the_images_of_a_training(quick: Callable, digits: Dataset):
    seen: list[Step] = []

    class Watched(PAG):
        def terms(self, step: Step) -> Any:
            seen.append(step)
            return super().terms(step)

    quick(Watched(source="class_mean"), epochs=1)
    means = torch.stack([digits.x[digits.y == k].mean(0) for k in range(3)])
    assert torch.allclose(seen[-1].memory["images"], means, atol=1e-6)
    quick(Watched(source="one_image"), epochs=1)
    for k, image in enumerate(seen[-1].memory["images"]):
        own = digits.x[digits.y == k]
        assert torch.equal(image, own[(own - means[k]).flatten(1).norm(dim=1).argmin()])


@pytest.mark.parametrize("source", ["class_mean", "one_image", "nearest"])
def test_gradients_come_to_point_at_images(source: str, quick: Callable):
    trained = quick(PAG(source=source), epochs=4, lr=0.02)  # type: ignore[arg-type]
    first, last = trained.history[0].terms["pag"], trained.history[-1].terms["pag"]
    assert last < first


def test_it_survives_a_kill(survives: Callable):
    assert survives(PAG(source="nearest", targets=2), lr=0.02)


@pytest.mark.parametrize("params", [{}, {"source": "nearest", "targets": 1}])
def test_the_contract_holds(params: dict):
    assert [str(f) for f in check_defense(DEFENSES.get("pag"), params) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"weight": -1}, {"targets": -1}, {"source": "diffusion"}])
def test_bad_parameters_are_refused(bad: dict):
    with pytest.raises(UsageError, match="pag needs"):
        PAG(**bad)
