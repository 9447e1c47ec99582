"""VNN-LIB: what is written is read back and compared in exact arithmetic with the ball that is meant."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from robustsuite.certification.reference.vnnlib import counterexample, float32_box, robustness_property
from robustsuite.threat import ThreatModel

_END = re.compile(r"\(assert \((>=|<=) X_(\d+) (\S+)\)\)")


def read(text):
    """The ends of every input as fractions, and the pairs (j, label) of the last assertion."""
    ends = {op: {int(i): Fraction(value) for o, i, value in _END.findall(text) if o == op} for op in (">=", "<=")}
    last = text.strip().splitlines()[-1]
    assert re.fullmatch(r"\(assert \(or (\(and \(>= Y_\d+ Y_\d+\)\))+\)\)", last)
    return ends[">="], ends["<="], [(int(a), int(b)) for a, b in re.findall(r"\(>= Y_(\d+) Y_(\d+)\)", last)]


@pytest.mark.parametrize("eps", ["8/255", "1/3", "0.1", "1e-9", "2"])
def test_the_box_that_is_read_holds_the_ball_and_is_hardly_larger(eps):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 5, 5, generator=generator)
    x.view(-1)[:5] = torch.tensor([0.0, 1.0, 1e-40, 1 - 2**-24, 8 / 255])
    threat = ThreatModel.parse(f"Linf:{eps}")
    lower, upper = float32_box(x, threat.radius)
    low, high, _ = read(robustness_property(lower, upper, 0, 2))
    assert sorted(low) == sorted(high) == list(range(x.numel()))
    room = threat.eps.fraction / 10**6 + Fraction(1, 10**7) + Fraction(1, 2**22)
    for i, value in enumerate(map(Fraction, x.flatten().tolist())):
        true_low, true_high = max(value - threat.eps.fraction, Fraction(0)), min(value + threat.eps.fraction, 1)
        assert 0 <= low[i] <= true_low <= true_high <= high[i] <= 1
        assert true_low - low[i] <= room
        assert high[i] - true_high <= room
        for end in (low[i], high[i]):
            assert Fraction(float(np.float32(float(end)))) == end  # reading it as float32 rounds nothing


def test_everything_that_the_threat_lets_pass_is_in_the_box():
    threat = ThreatModel.parse("Linf:8/255")
    x = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    lower, upper = float32_box(x, threat.radius)
    widest = torch.tensor(threat.radius * (1 + 1e-6) + 1e-7, dtype=torch.float64)
    for sign in (-1, 1):
        moved = (x.double() + sign * widest).float().clamp(0, 1)
        moved = torch.where(threat.contains(x, moved).view(-1, 1, 1, 1), moved, x)
        assert bool(((lower <= moved) & (moved <= upper)).all())


def test_any_logit_that_reaches_the_label_is_asked_for():
    box = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    text = robustness_property(*box, 2, 4)
    assert read(text)[2] == [(0, 2), (1, 2), (3, 2)]
    assert text.count("(declare-const X_") == 4
    assert text.count("(declare-const Y_") == 4
    assert read(robustness_property(*box, 1, 2))[2] == [(0, 1)]
    assert text.count("(") == text.count(")")


def test_inputs_are_counted_row_by_row():
    x = torch.arange(12.0).view(1, 2, 2, 3) / 16
    low, _, _ = read(robustness_property(x, x, 0, 2))
    assert [low[i] * 16 for i in range(12)] == list(range(12))


def test_a_counterexample_is_read_whole_or_not_at_all():
    whole = "((X_0  0.49000000953674316)\n(X_1 1e-05)\n(X_2 1)\n(X_3 -0.5)\n(Y_0  2.5)\n(Y_1 3))"
    found = counterexample(whole, (1, 1, 2, 2))
    assert found is not None
    assert found.dtype == torch.float64
    assert found.flatten().tolist() == [0.49000000953674316, 1e-5, 1.0, -0.5]
    for text in ("", "sat", whole.replace("(X_2 1)", ""), whole.replace("-0.5", "nan"), whole.replace("-0.5", "half")):
        assert counterexample(text, (1, 1, 2, 2)) is None
    assert counterexample(whole, (1, 3)) is None
