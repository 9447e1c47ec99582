"""The binomial rule against sums counted out, and whose machine is whose."""

import math
from fractions import Fraction

import pytest
import torch

from robustsuite.evaluation.agreement import EXACT, OUTCOMES, PREDICTIONS, Allowance, allowance, same_machine


def more_than(k: int, n: int, rate: Fraction) -> Fraction:
    """P(Binomial(n, rate) > k), exactly."""
    return sum((math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1, n + 1)), Fraction(0))


@pytest.mark.parametrize("n", [1, 8, 40, 104, 200, 500])
@pytest.mark.parametrize(
    ("allowed", "rate", "failure"),
    [
        (PREDICTIONS, Fraction(1, 1000), Fraction(1, 1000)),
        (OUTCOMES, Fraction(1, 200), Fraction(1, 100)),
        (Allowance(0.1, 0.05), Fraction(1, 10), Fraction(1, 20)),
    ],
)
def test_the_bound_is_the_smallest_that_honest_runs_seldom_exceed(n, allowed, rate, failure):
    k = allowed.most(n)
    assert more_than(k, n, rate) <= failure
    if k:
        assert more_than(k - 1, n, rate) > failure


def test_figures_that_are_written_down():
    assert [OUTCOMES.most(n) for n in (40, 100, 500)] == [2, 3, 7]
    assert [PREDICTIONS.most(n) for n in (40, 500, 10_000)] == [1, 4, 21]
    # 0 of n pass when each is false with probability q: (1 - q)^n.
    assert EXACT.most(10**6) == 0
    assert EXACT.missed(20, 0.05) == pytest.approx(0.95**20)
    assert "0.50% may differ" in str(OUTCOMES)


def test_the_machine_of_a_run_is_held_to_the_bit(problem, tmp_path):
    record, cpu = problem.run(tmp_path, ["fgsm"]).record, torch.device("cpu")
    assert same_machine(record, cpu)
    assert allowance(record, cpu, OUTCOMES) is EXACT
    packages = record.provenance.packages | {"torch": "1.0"}
    for other in (
        record.model_copy(update={"host": record.host.model_copy(update={"cpu": "another"})}),
        record.model_copy(update={"host": record.host.model_copy(update={"hostname_sha256": "0" * 64})}),
        record.model_copy(update={"host": record.host.model_copy(update={"device_name": "NVIDIA H200"})}),
        record.model_copy(update={"provenance": record.provenance.model_copy(update={"packages": packages})}),
    ):
        assert not same_machine(other, cpu)
        assert allowance(other, cpu, OUTCOMES) is OUTCOMES
