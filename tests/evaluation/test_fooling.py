"""A run never presents the number of a model made to fool as a sound one."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError, IncompleteError
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.evaluation.suspicion import SUSPICIOUS
from robustsuite.results.flags import UNRELIABLE
from robustsuite.results.records import load_record

FOOLING = runpy.run_path(str(Path(__file__).with_name("fooling.py")))
MASKS, ready, carried_out = FOOLING["MASKS"], FOOLING["ready"], FOOLING["carried_out"]
BUDGET = {"steps": 20, "n_queries": 300, "n_targets": 3}


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return FOOLING["honest_network"]()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return FOOLING["test_images"](40)


@pytest.fixture(scope="module")
def truth(honest, digits, tmp_path_factory) -> int:
    """The honest classifier's robust examples under the attacks that the masked ones face."""
    prepared = ready(
        FOOLING["classifier"](honest), digits, FOOLING["THREAT"], ["apgd-ce", "apgd-t", "square"], **BUDGET
    )
    outcomes = carried_out(prepared, tmp_path_factory.mktemp("honest"))
    assert not outcomes.raised & UNRELIABLE
    assert outcomes.robust < 12
    return outcomes.robust


REFUSED = {
    "softmax": "probabilities",
    "scaled-softmax": "probabilities",
    "noisy": "randomness",
    "batch-normalised": "batch_dependence",
    "training": "eval_mode",
}
CAUGHT = {
    "squashed": {"zero_gradients", "zero_gradients_under_attack", "unbounded_attack_fails"},
    "quantised": {"zero_gradients", "quantised_input", "score_beats_white_box", "unbounded_attack_fails"},
    "shattered": {"score_beats_white_box", "more_steps_help_nothing"},
}


@pytest.mark.parametrize("mask", REFUSED)
def test_what_breaks_the_contract_is_refused(honest, digits, tmp_path, mask):
    model = FOOLING["classifier"](MASKS[mask](honest))
    with pytest.raises(ContractError, match=REFUSED[mask]):
        evaluate(ready(model, digits, FOOLING["THREAT"], ["apgd-ce"]), tmp_path)


@pytest.mark.parametrize("mask", CAUGHT)
def test_masked_gradients_make_the_run_unreliable(honest, digits, tmp_path, mask):
    model = FOOLING["classifier"](MASKS[mask](honest))
    prepared = ready(model, digits, FOOLING["THREAT"], ["apgd-ce", "apgd-t", "square"], **BUDGET)
    raised = carried_out(prepared, tmp_path).raised
    assert CAUGHT[mask] <= raised & UNRELIABLE


@pytest.mark.parametrize(("mask", "name"), [("optimising", "test_time_optimisation"), ("stateful", "stateful")])
def test_a_forward_pass_with_side_effects_makes_the_run_unreliable(honest, digits, tmp_path, mask, name):
    model = FOOLING["classifier"](MASKS[mask](honest))
    prepared = ready(model, digits.take(torch.arange(20), "20"), FOOLING["THREAT"], ["apgd-ce"], steps=5)
    assert name in carried_out(prepared, tmp_path).raised & UNRELIABLE


def test_saturated_logits_do_not_fool_attacks_on_the_margin(honest, digits, truth, tmp_path):
    model = FOOLING["classifier"](MASKS["saturated"](honest))
    prepared = ready(model, digits, FOOLING["THREAT"], ["apgd-ce", "apgd-t", "square"], **BUDGET)
    outcomes = carried_out(prepared, tmp_path)
    assert abs(outcomes.robust - truth) <= 2
    assert {"saturated_gradients", "saturated_under_attack", "loss_gap"} <= outcomes.raised & SUSPICIOUS
    assert not outcomes.raised & UNRELIABLE


def test_saturated_logits_make_a_run_with_cross_entropy_alone_unreliable(honest, digits, tmp_path):
    model = FOOLING["classifier"](MASKS["saturated"](honest))
    outcomes = carried_out(ready(model, digits, FOOLING["THREAT"], ["apgd-ce"], steps=20), tmp_path)
    assert outcomes.robust > 30
    assert "probe_beats_run" in outcomes.raised & UNRELIABLE


def test_a_model_without_gradients_ends_in_a_partial_unreliable_record(honest, digits, tmp_path):
    model = FOOLING["classifier"](MASKS["thermometer"](honest))
    prepared = ready(model, digits, FOOLING["THREAT"], ["apgd-ce", "square"], steps=5, n_queries=100)
    with pytest.raises(IncompleteError, match="does not require grad"):
        evaluate(prepared, tmp_path)
    record = load_record(next(tmp_path.glob("*/record.json")))
    assert record.status == "partial"
    assert record.unreliable
    assert {"zero_gradients", "zero_gradients_under_attack"} <= {f.name for f in record.flags if f.raised}
