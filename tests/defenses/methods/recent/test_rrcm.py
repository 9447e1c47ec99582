"""rRCM: its noise levels and losses, what it reduces to, and what pre-training does to representations."""

from typing import Any

import pytest
import torch

from robustsuite.defenses.base import StepMethod
from robustsuite.defenses.consistency import Consistency
from robustsuite.defenses.rrcm import RRCM, info_nce, levels, shift
from robustsuite.errors import UsageError
from robustsuite.models.factory import build
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained


def quick(method: RRCM | StepMethod, arch: str = "small_cnn", **changed: Any) -> Trained:
    recipe: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.02, "validation": 0, **changed}
    params = {"width": 2} if arch == "small_cnn" else {}
    return train(method, arch, params, toy_data(60), ThreatModel.parse("L2:0.3"), **recipe)


def test_the_noise_levels_are_those_of_karras_and_double():
    method = RRCM(sigma_min=0.002, sigma_max=80.0, scales=(20, 80))
    first = levels(method, 0.0)
    assert len(first) == 21
    assert (float(first[0]), float(first[-1])) == pytest.approx((80.0, 0.002))
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert float(first[10]) == pytest.approx(middle)
    assert [len(levels(method, p)) for p in (0.3, 0.34, 0.6, 0.7, 0.999, 1.0)] == [21, 41, 41, 81, 81, 81]


def test_info_nce_is_the_cross_entropy_of_the_pairs():
    own, other = torch.eye(3), torch.eye(3)
    want = -torch.tensor(5.0) + torch.tensor([5.0, 0.0, 0.0]).logsumexp(0)
    torch.testing.assert_close(info_nce(7 * own, other, 0.2), want.expand(3))
    torch.testing.assert_close(info_nce(own, torch.ones(3, 4)[:, :3], 0.2), torch.full((3,), 3.0).log())


def test_shifts_move_images_by_whole_pixels():
    x, noise = toy_data(40).x, Noise(0, "shift").at(torch.arange(40))
    assert torch.equal(shift(x, 0, noise), x)
    moved = shift(x, 1, noise)
    corner = noise.integers(3, (2,))
    for image, other, (row, column) in zip(x, moved, corner.tolist(), strict=True):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        assert torch.equal(other, padded[:, row : row + 6, column : column + 6])
    assert not torch.equal(moved, shift(x, 1, noise, 1))


def test_without_pre_training_it_is_consistency():
    own, plain = quick(RRCM(pretrain=0.0)), quick(Consistency(lam=10.0))
    assert all(torch.equal(own.last_state[name], tensor) for name, tensor in plain.last_state.items())
    assert own.history[-1].terms == plain.history[-1].terms
    assert own.passes == plain.passes


def test_pre_training_brings_the_levels_of_an_image_together():
    """After it the network's representations of noisy images tell the images apart better than at the beginning."""
    trained = quick(RRCM(pretrain=0.9), epochs=10, lr=0.05)
    terms = [epoch.terms for epoch in trained.history]
    assert [set(t) for t in terms] == [{"views", "levels"}] * 9 + [{"ce_noisy", "consistency", "entropy"}]
    assert terms[8]["levels"] < terms[0]["levels"]
    assert terms[8]["views"] < terms[0]["views"]
    # two passes of the network and two of its average a step, then two draws
    assert trained.passes["forward"] == 60 * (9 * 4 + 2)
    assert trained.passes["backward"] == 60 * (9 * 2 + 2)
    fresh = build("small_cnn", {"width": 2}, num_classes=3, input_shape=(1, 6, 6), seed=0).state_dict()
    assert all(not torch.equal(trained.last_state[name], tensor) for name, tensor in fresh.items() if tensor.ndim > 1)


def test_it_keeps_the_contract_of_a_fit_method():
    assert DEFENSES.get("rrcm").facts["fidelity"] == "reconstructed"
    assert [str(f) for f in check_defense(DEFENSES.get("rrcm")) if not f.ok] == []


def test_what_cannot_be_is_refused():
    bads: list[dict[str, Any]] = [
        {"pretrain": 1.0}, {"sigma_min": 2.0}, {"scales": (1, 80)}, {"tau": 0.0}, {"decay": (0.9, 1.0)}, {"shift": -1},
    ]  # fmt: skip
    for bad in bads:
        with pytest.raises(UsageError, match="rrcm needs"):
            RRCM(**bad)
    with pytest.raises(UsageError, match="consistency needs"):
        RRCM(lam=-1.0)
