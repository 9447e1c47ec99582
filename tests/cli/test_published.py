"""Third-party checkpoints with published results, from the command line alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CIFAR_MEAN, CIFAR_STD = "125.3/255,123/255,113.9/255", "63/255,62.1/255,66.7/255"
# Clean accuracy, and the bound that robust accuracy must not exceed (published AutoAttack: 76.5 % and 50.0 %).
SETTINGS = {
    "mnist": (["checkpoints/mnist_cnn_a_adv.model", "mnist/sdp_x.npy"], ["--threat", "Linf:0.3"], 0.975, 0.775),
    "cifar10": (
        ["checkpoints/cifar_cnn_a_adv.model", "cifar10/sdp_x.npy"],
        ["--threat", "Linf:2/255", "--mean", CIFAR_MEAN, "--std", CIFAR_STD],
        0.700,
        0.505,
    ),
}


def evaluate(data: Path, name: str, runs: Path, *extra: str) -> dict[str, Any]:
    (checkpoint, images), options, _, _ = SETTINGS[name]
    command = [sys.executable, "-m", "robustsuite", "eval", str(data / checkpoint), "--arch", "cnn_a"]
    command += ["--data", str(data / images), *options, "--tier", "standard", "-o", str(runs), "--json", *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def check(body: dict[str, Any], name: str) -> None:
    *_, clean, bound = SETTINGS[name]
    metrics = {m["name"]: m for m in body["metrics"]}
    assert metrics["clean_accuracy"]["value"] == clean
    assert metrics["robust_accuracy"]["value"] <= bound
    assert metrics["certified_accuracy"]["value"] == 0  # interval bounds prove nothing on these networks
    assert all(m["n"] == 200 for m in body["metrics"])
    assert not body["unreliable"]


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_bounds_are_reached_without_squares_last_queries(name, shared_data, tmp_path):
    body = evaluate(shared_data, name, tmp_path, "-A", "square.n_queries=20")
    check(body, name)
    verify = [sys.executable, "-m", "robustsuite", "verify", body["run_dir"]]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_standard(name, shared_data, tmp_path):
    check(evaluate(shared_data, name, tmp_path), name)
