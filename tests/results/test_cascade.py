"""A stage that did not see what it had to: whoever leaves one out is found, however well the numbers agree."""

import numpy as np
import pytest

from robustsuite.results.cascade import cascade_problems
from robustsuite.results.ledger import Ledger
from robustsuite.results.schema import StagePlan, StageResult

#        clean error, broken, certified, survivor, survivor
CLEAN = [2, 1, 1, 1, 1]
IBP = [0, 1, 3, 1, 1]
APGD = [0, 2, 0, 1, 1]
SQUARE = [0, 0, 0, 2, 1]


@pytest.fixture
def found(make_record):
    def problems(outcomes, *, status=None, tail_sample=None, plans=None):
        record = make_record(n=5, robust=2, clean=4, certified=1)
        square = StagePlan(name="square", kind="attack", plugin="square", **(plans or {}))
        protocol = record.request.protocol
        stages = (*protocol.stages, square)
        protocol = protocol.model_copy(update={"stages": stages, "tail_sample": tail_sample})
        kinds = {"clean": "clean", "ibp": "certifier", "apgd-ce": "attack", "square": "attack"}
        results = [
            StageResult(name=name, kind=kind, plugin=name, status=(status or {}).get(name, "done"))
            for name, kind in kinds.items()
        ]
        request = record.request.model_copy(update={"protocol": protocol})
        record = record.model_copy(update={"request": request, "stages": tuple(results)})
        arrays = {f"{name}/outcome": np.array(values, np.uint8) for name, values in outcomes.items()}
        return cascade_problems(record, Ledger(list(outcomes), arrays))

    return problems


HONEST = {"clean": CLEAN, "ibp": IBP, "apgd-ce": APGD, "square": SQUARE}


def test_an_honest_cascade(found):
    assert found(HONEST) == []
    without_bounds = {k: v for k, v in HONEST.items() if k != "ibp"} | {
        "apgd-ce": [0, 2, 1, 1, 1],
        "square": [0, 0, 1, 2, 1],
    }
    assert found(without_bounds, status={"ibp": "skipped"}) == []


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ({"square": [0, 0, 0, 0, 1]}, "square missed 1 undecided examples and saw 0 others"),
        ({"square": [0, 0, 0, 0, 0]}, "square missed 2 undecided examples"),
        ({"apgd-ce": [0, 2, 1, 1, 1]}, "apgd-ce missed 0 undecided examples and saw 1 others"),
        ({"apgd-ce": [1, 2, 0, 1, 1]}, "saw 1 others"),
    ],
)
def test_examples_that_a_stage_should_have_seen(found, outcomes, words):
    assert any(words in said for said in found(HONEST | outcomes))


def test_a_stage_without_verdicts(found):
    left = {k: v for k, v in HONEST.items() if k != "square"}
    assert found(left) == ["square has no verdicts"]
    assert found(left, status={"square": "skipped"}) == ["square was skipped, the protocol runs it always"]
    assert found(left, status={"square": "skipped"}, plans={"when": "flagged"}) == []


def test_an_example_that_failed_stays_undecided(found):
    assert found(HONEST | {"apgd-ce": [0, 2, 0, 4, 1]}) == []


def test_a_sampled_tail_sees_a_part(found):
    sample = HONEST | {"square": [0, 0, 0, 0, 1]}
    assert found(sample, tail_sample=1, plans={"tail": True}) == []
    assert found(sample | {"rest-square": [0, 0, 0, 2, 0]}, tail_sample=1, plans={"tail": True}) == []
    assert "saw 1 others" in found(HONEST | {"square": [0, 1, 0, 0, 0]}, tail_sample=1, plans={"tail": True})[0]
