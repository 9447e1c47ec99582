"""What training for smoothing is for: more examples are certified far out than with Gaussian augmentation alone."""

from typing import Any

import pytest

from robustsuite.certification.smoothing import Smoothing
from robustsuite.data.reference import load_data
from robustsuite.models.classifier import Classifier
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.method import make_composed

SIGMA, THREAT = 0.25, ThreatModel.parse("L2:1")
RECIPE: dict[str, Any] = {"epochs": 15, "batch_size": 64, "lr": 0.1, "schedule": "one_cycle", "validation": 0}
ATTACK = {"m": 2, "steps": 2}


def certified(name: str, params: dict[str, Any], *radii: float) -> list[float]:
    method = make_composed(name, (), {"sigma": SIGMA, **params}, "mnist-0.25")
    trained = train(method, "small_cnn", {"batch_norm": True}, load_data("digits", split="train"), THREAT, **RECIPE)
    data = load_data("digits", split="test", subset="class-balanced:200")
    model = Classifier(trained.module, num_classes=10, input_shape=data.input_shape)
    certifier = Smoothing(SIGMA, n0=100, n=2000, grid=radii)
    found = certifier.certify(model, data.x, data.y, THREAT, Noise(0, "certify").at(data.ids))
    right = found.predicted == data.y
    return [float((right & (found.radius >= r)).double().mean()) for r in radii]


@pytest.mark.slow
def test_more_is_certified_at_two_sigma_and_no_more_at_zero():
    """Measured: 99 and 56 % with Gaussian augmentation; 65 to 70 % at 2 sigma for the others, 96 to 98 % at 0."""
    near, far = certified("gaussian", {}, 0.0, 0.5)
    assert near >= 0.97
    for name, params in (("consistency", {}), ("smoothadv_ddn", ATTACK), ("smoothmix", {**ATTACK, "length": 0.5})):
        close, out = certified(name, params, 0.0, 0.5)
        assert out >= far + 0.03, name
        assert near >= close >= 0.9, name
