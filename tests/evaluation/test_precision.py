"""Attacks in reduced precision: they search in it, and float32 alone decides."""

from dataclasses import dataclass

import pytest
import torch

from robustsuite.attacks import Attack, register_attack
from robustsuite.data.dataset import Dataset
from robustsuite.data.digits import digits
from robustsuite.errors import UsageError
from robustsuite.evaluation.evaluator import Prepared, Run, evaluate, prepare
from robustsuite.evaluation.protocol import custom_protocol, with_params
from robustsuite.evaluation.verify import require, verify
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.registry import ATTACKS
from robustsuite.results.records import load_record
from robustsuite.results.schema import ModelPart
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.method import make_method

SHARED = {"num_classes": 10, "input_shape": (1, 8, 8)}
PART = ModelPart(name="digits", reference="test", weights_sha256="0" * 64, format="pt", n_params=1)
CHEAP = {"apgd-ce.steps": 20, "square.n_queries": 100}


@pytest.fixture(scope="module")
def model() -> Classifier:
    """A small network on digits, about nine tenths right, that half of the images fool at Linf 0.1."""
    linf = ThreatModel.parse("Linf:0.1")
    settings = {"epochs": 4, "batch_size": 32, "lr": 0.1}
    trained = train(make_method("standard"), "small_cnn", {}, digits("train"), linf, **settings)
    return Classifier(trained.module, **SHARED)


def examples() -> Dataset:
    return digits("test").take(torch.arange(200), "first:200")


def plan(model: Classifier, precision: str = "float32", attacks=("apgd-ce", "square"), **options) -> Prepared:
    protocol = custom_protocol(list(attacks), [])
    protocol = with_params(protocol, {k: v for k, v in CHEAP.items() if k.split(".")[0] in attacks})
    threat = ThreatModel.parse("Linf:0.1")
    return prepare(model, PART, examples(), threat, protocol, threads=1, precision=precision, **options)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {precision: evaluate(plan(model, precision), folder) for precision in ("float32", "bf16")}


def test_what_bf16_breaks_holds_in_float32(model, runs):
    record, findings = verify(runs["bf16"].directory, model, examples(), PART.weights_sha256)
    require(findings)
    assert sum(stage.n_broken for stage in record.stages[1:]) > 20


def test_candidates_that_fool_bf16_alone_are_refused_and_counted(runs):
    refused = {precision: sum(s.n_refused for s in run.record.stages) for precision, run in runs.items()}
    assert refused["float32"] == 0
    assert refused["bf16"] > 0


def test_bf16_finds_nearly_what_float32_finds(runs):
    robust = {precision: run.record.metric("robust_accuracy").value for precision, run in runs.items()}
    assert 0.05 < robust["float32"] < 0.95
    assert abs(robust["bf16"] - robust["float32"]) <= 2 / 200
    clean = [run.record.metric("clean_accuracy") for run in runs.values()]
    assert clean[0] == clean[1]


def test_the_precision_is_part_of_the_key_and_leaves_no_trace_where_it_is_float32(model, runs):
    keys = {run.record.run_key for run in runs.values()} | {plan(model, "bf16", channels_last=True).request.run_key}
    assert len(keys) == 3
    float32, bf16 = (runs[name].record.model_dump(mode="json")["request"] for name in ("float32", "bf16"))
    assert float32.keys() & {"precision", "channels_last"} == set()
    assert (bf16["precision"], bf16.get("channels_last")) == ("bf16", None)
    for name, run in runs.items():
        assert load_record(run.directory).request.precision == name


@dataclass(frozen=True)
class Listening(Attack):
    """Claims nothing, and notes what the model tells it."""

    def run(self, model, x, y, threat, noise):
        HEARD.append((x, model.logits(x)))
        return x


HEARD = []


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_attacks_behind_the_plain_door_search_in_it_too(model, tmp_path, precision):
    HEARD.clear()
    register_attack("listening", norms=("Linf",), access="white-box", kind="bounded")(Listening)
    try:
        evaluate(plan(model, precision, ("listening",)), tmp_path)
    finally:
        ATTACKS.entries.pop("listening")
    assert all(torch.equal(model.logits(x), logits) == (precision == "float32") for x, logits in HEARD)


def test_models_that_draw_and_devices_without_tf32_are_refused_before_anything_runs(model):
    random = Classifier(model.module, **SHARED, facts=Facts(randomized=True))
    with pytest.raises(UsageError, match="plain networks"):
        plan(random, "bf16")
    with pytest.raises(UsageError, match="CUDA"):
        plan(model, "tf32")
