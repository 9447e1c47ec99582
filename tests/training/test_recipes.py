"""The demonstration's trainings on the digits: quick, and as good as they are said to be."""

from pathlib import Path

import pytest
import torch

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp_margins, input_box, smallest_margin
from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS, load_plugin_file
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.method import make_method
from robustsuite.training.recipes import DIGITS
from robustsuite.training.trained import Trained

LINF = ThreatModel.parse("Linf:0.15")
RECIPES = {recipe.name: recipe for recipe in DIGITS}


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    return load_data("digits", split="train"), load_data("digits", split="test")


def clean_and_robust(trained: Trained, data: Dataset, steps: int = 40) -> tuple[float, float]:
    """Shares that survive: nothing, and PGD on cross-entropy and on the margin."""
    model = Classifier(trained.module, num_classes=10, input_shape=(1, 8, 8))
    held = clean = model.logits(data.x).argmax(1) == data.y
    for loss in ("ce", "margin"):
        pgd = ATTACKS.get("pgd").target(steps=steps, loss=loss)
        x_adv = pgd.run(model, data.x, data.y, LINF, Noise(0, loss).at(data.ids))
        assert bool(LINF.contains(data.x, x_adv).all())
        held = held & ~fooled(model.logits(x_adv), data.y)
    return float(clean.double().mean()), float(held.double().mean())


def certified(trained: Trained, data: Dataset, eps: float) -> float:
    graph = trace(trained.module, data.input_shape)
    margins = ibp_margins(graph, *input_box(data.x, eps), data.y, guard=True)
    return float((smallest_margin(margins, data.y) > 0).double().mean())


@pytest.mark.slow
def test_standard_training_is_accurate_and_not_robust(digits: tuple[Dataset, Dataset]):
    clean, robust = clean_and_robust(RECIPES["standard"].train(digits[0]), digits[1])
    assert clean >= 0.97
    assert robust <= 0.25


@pytest.mark.slow
def test_adversarial_training_is_robust(digits: tuple[Dataset, Dataset]):
    trained = RECIPES["pgd_at"].train(digits[0])
    clean, robust = clean_and_robust(trained, digits[1])
    assert clean >= 0.95
    assert robust >= 0.65
    best = trained.history[trained.best - 1]
    assert best.robust_accuracy == max(e.robust_accuracy or 0 for e in trained.history)


@pytest.mark.slow
def test_interval_training_is_certified(digits: tuple[Dataset, Dataset]):
    trained = RECIPES["ibp"].train(digits[0])
    clean, robust = clean_and_robust(trained, digits[1])
    proved = certified(trained, digits[1], 0.15)
    assert clean >= 0.93
    assert 0.65 <= proved <= robust <= clean
    assert certified(trained, digits[1], 0.1) >= 0.8


QUICK = {"epochs": 8, "batch_size": 64, "lr": 0.1, "validation": 0}


def test_a_short_adversarial_training_is_sane(digits: tuple[Dataset, Dataset]):
    trained = train(make_method("pgd_at", {"steps": 5}), "small_cnn", {}, digits[0], LINF, **QUICK)
    clean, robust = clean_and_robust(trained, digits[1], steps=10)
    assert clean >= 0.85
    assert robust >= 0.4


def test_the_plugin_trains_and_is_the_built_in_bit_for_bit(digits: tuple[Dataset, Dataset]):
    load_plugin_file(Path(__file__).parents[2] / "examples" / "my_trades.py")
    some = digits[0].take(torch.arange(300), "first:300")
    plugin, built_in = (
        train(make_method(name, {"beta": 1.0}), "small_cnn", {}, some, LINF, **QUICK | {"batch_size": 16})
        for name in ("my_trades", "trades")
    )
    assert (plugin.defense, built_in.defense) == ("my_trades", "trades")
    assert all(torch.equal(plugin.best_state[n], t) for n, t in built_in.best_state.items())
    total = [sum(epoch.terms.values()) for epoch in plugin.history]
    assert total[-1] < 0.9 * total[0]


@pytest.mark.slow
def test_gaussian_training_withstands_its_noise(digits: tuple[Dataset, Dataset]):
    data = digits[1]
    noise = Noise(0, "noisy").at(data.ids).normal(data.input_shape)
    shares = []
    for method in (make_method("standard"), make_method("gaussian", {"sigma": 0.25})):
        trained = train(method, "small_cnn", {}, digits[0], LINF, epochs=10, batch_size=64, lr=0.1)
        shares.append(float((trained.module(data.x + 0.25 * noise).argmax(1) == data.y).double().mean()))
    assert shares[1] >= 0.85
    assert shares[1] > shares[0] + 0.03


def test_a_digits_training_repeats_bit_for_bit(digits: tuple[Dataset, Dataset]):
    small = digits[0].take(torch.arange(300), "first:300")
    runs = [
        train(make_method("ibp", {"warmup": 0.0, "ramp": 0.5}), "small_cnn", {}, small, LINF, epochs=3, lr=0.01)
        for _ in range(2)
    ]
    assert all(torch.equal(runs[0].best_state[n], t) for n, t in runs[1].best_state.items())
    assert "ce_worst" in runs[0].history[-1].terms
