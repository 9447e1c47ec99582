"""Every inference-time defense, through a checkpoint's sidecar into the evaluator, and verified from its record."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from robustsuite.cli.main import app
from robustsuite.evaluation.protocol import make
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.models.sidecar import Sidecar, save_checkpoint, sidecar_path
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES

CASES: dict[str, dict[str, Any]] = {
    "bit_depth": {"bits": 3, "surrogate": "soft"},
    "jpeg": {"quality": 50, "surrogate": "soft"},
    "median_blur": {"size": 3},
    "tv_min": {"n_iter": 5, "eot": 2, "draws": 3},
    "resize_pad": {"eot": 2, "draws": 3},
    "crop_ensemble": {"crops": 2, "eot": 1, "draws": 3},
    "diffpure": {"steps": 2, "until": 0.05, "eot": 2, "draws": 3},
    "mixed_nuts": {"standard": "other", "s": 1.5, "c": -0.5, "p": 2.0, "alpha": 0.9},
    "adaptive_smoothing": {"standard": "other", "share": 0.8},
    "rand_feature": {"layers": ["0", "4"], "sigma": 0.1, "eot": 2, "draws": 3},
    "randomized_ensemble": {"members": ["other"], "weights": [0.4, 0.6]},
}
# One of each kind: plain, with draws, of two networks, with exact expectations. The others are the same code again.
QUICK = ("bit_depth", "rand_feature", "adaptive_smoothing", "randomized_ensemble")


@pytest.fixture(scope="module")
def other(trained) -> str:
    """A second network, for those that need one."""
    return str(trained("pgd_at").checkpoint)


def wrap_of(name: str, other: str) -> dict[str, Any]:
    """All parameters of a defense as they go into a sidecar, hashes filled in."""
    given = {k: other if v == "other" else [other] if v == ["other"] else v for k, v in CASES[name].items()}
    plugin = make(DEFENSES.get(name), given)
    return {"name": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plugin).items()}}


def answers(model, x):
    """What an attack and a verdict see, from the same key."""
    model.restart(Noise(1, "test"))
    return model.logits(x), model.decide(x, Noise(2, "test").at(torch.arange(len(x))))[1]


def test_no_wrap_is_left_out():
    inference = {e.name for e in DEFENSES if e.facts["kind"] == "wrap" and e.origin.startswith("robustsuite.")}
    assert inference == {*CASES, "smoothing"}


@pytest.mark.parametrize("name", CASES)
def test_a_sidecar_brings_back_the_same_defense(name, net, images, reloaded, other):
    wrap = wrap_of(name, other)
    params = {k: v for k, v in wrap.items() if k != "name"}
    direct = make(DEFENSES.get(name), params).wrap(net.classifier())
    again = reloaded(net, wrap)
    assert (type(again), again.facts) == (type(direct), direct.facts)
    assert direct.facts.randomized == isinstance(direct, RandomizedClassifier)
    for got, want in zip(answers(again, images.x), answers(direct, images.x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_the_evaluator_takes_it_as_it_is_and_verifies_the_record(name, net, tmp_path, monkeypatch, other):
    wrap = wrap_of(name, other)
    sidecar = Sidecar(arch="small_cnn", arch_params={"width": 8}, num_classes=10, input_shape=(1, 8, 8), wrap=wrap)
    path = save_checkpoint(tmp_path / "defended", net.module.state_dict(), sidecar)
    assert yaml.safe_load(sidecar_path(path).read_text())["wrap"]["name"] == name
    monkeypatch.chdir(tmp_path)
    subject = ["--data", "digits", "--subset", "first:8", "--threat", "Linf:0.1", "--threads", "1", "--slots", "8"]
    call = ["eval", str(path), *subject, "--attack", "pgd", "-A", "pgd.steps=2", "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    record = json.loads(Path(json.loads(result.stdout)["record"]).read_text())
    assert record["request"]["model"]["wrap"] == wrap
    if DEFENSES.get(name).target.__dataclass_fields__.get("eot"):
        assert record["request"]["model"]["eot"] == CASES[name]["eot"]
    verified = CliRunner().invoke(app, ["verify", json.loads(result.stdout)["run_dir"]])
    assert verified.exit_code == 0, verified.output


def test_the_record_of_an_ensemble_holds_the_exact_expectation(net, images, tmp_path, monkeypatch, trained, clean):
    """Without an attack that moves anything: the weighted accuracies of the members on clean images."""
    other = trained("pgd_at")
    wrap = {"name": "randomized_ensemble", "members": [str(other.checkpoint)], "weights": [0.4, 0.6]}
    sidecar = Sidecar(arch="small_cnn", arch_params={"width": 8}, num_classes=10, input_shape=(1, 8, 8), wrap=wrap)
    path = save_checkpoint(tmp_path / "ensemble", net.module.state_dict(), sidecar)
    monkeypatch.chdir(tmp_path)
    subject = ["--data", "digits", "--subset", "first:16", "--threat", "Linf:0", "--threads", "1", "--slots", "16"]
    result = CliRunner().invoke(app, ["eval", str(path), *subject, "--attack", "pgd", "-A", "pgd.steps=1", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(Path(json.loads(result.stdout)["record"]).read_text())
    (metric,) = (m for m in record["metrics"] if m["name"].startswith("expected"))
    few = images.take(torch.arange(16), "first 16")
    want = 0.4 * clean(net.classifier(), few) + 0.6 * clean(other.classifier(), few)
    assert metric["value"] == pytest.approx(want, abs=1e-9)
