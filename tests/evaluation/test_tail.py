"""The sampled tail: exact limits, and what a run says that thins its tail out."""

from math import comb

import numpy as np
import pytest

from robustsuite.errors import UsageError
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.evaluation.protocol import load_protocol, with_tail_sample
from robustsuite.evaluation.verify import verify
from robustsuite.results.ledger import Outcome, read_ledger
from robustsuite.results.tail import most, summary


def thinned(count: int):
    """The last stage is the tail, run on ``count`` examples."""

    def change(protocol):
        *first, last = protocol.stages
        marked = protocol.model_copy(update={"stages": (*first, last.model_copy(update={"tail": True}))})
        return with_tail_sample(marked, count)

    return change


def at_most(broken: int, survivors: int, breakable: int, sampled: int) -> float:
    """P(the sample shows ``broken`` or fewer), counted out."""
    ways = sum(comb(breakable, i) * comb(survivors - breakable, sampled - i) for i in range(broken + 1))
    return ways / comb(survivors, sampled)


@pytest.mark.parametrize(("survivors", "sampled", "broken"), [(50, 10, 0), (50, 10, 3), (200, 60, 1), (30, 30, 4)])
def test_the_limit_is_the_largest_number_that_the_sample_does_not_exclude(survivors, sampled, broken):
    found = most(survivors, sampled, broken)
    assert at_most(broken, survivors, found, sampled) > 0.05
    if found < survivors - (sampled - broken):
        assert at_most(broken, survivors, found + 1, sampled) <= 0.05
    if sampled == survivors:
        assert found == broken


@pytest.mark.parametrize("breakable", [0, 5, 60, 400])
def test_the_whole_protocols_figure_lies_in_the_interval_in_95_of_100_draws(breakable):
    survivors, n, sampled, trials = 6000, 10_000, 500, 200
    rng = np.random.default_rng(breakable)
    before = np.arange(n) < survivors
    inside = 0
    for _ in range(trials):
        chosen = rng.permutation(survivors)[:sampled]
        outcome = np.zeros(n, np.uint8)
        outcome[chosen] = np.where(chosen < breakable, Outcome.BROKEN, Outcome.SURVIVED)
        tail = summary({"square": outcome}, ["square"], before)
        assert tail.lower <= tail.estimate <= tail.upper
        inside += tail.lower <= (survivors - breakable) / n <= tail.upper
    assert inside >= 0.95 * trials


def test_a_sample_that_holds_out_bounds_the_whole(problem, tmp_path):
    eps = "0.001"  # nobody can be broken
    assert bool((problem.radius > 0.001).all())
    run = problem.run(tmp_path, ["fgsm", "square"], params={"n_queries": 20}, eps=eps, protocol=thinned(7))
    tail, n = run.record.tail, len(problem.data)
    assert (tail.survivors, tail.sampled, tail.broken, tail.rest_run) == (n, 7, 0, False)
    assert tail.estimate == tail.upper == 1.0
    assert tail.lower == (n - most(n, 7, 0)) / n
    square = run.record.stages[-1]
    assert (square.n_in, square.n_exclusive) == (7, None)
    ledger = read_ledger(run.directory)
    seen = np.flatnonzero(ledger.outcome("square") != Outcome.SKIPPED)
    other = problem.run(tmp_path / "again", ["fgsm", "square"], params={"n_queries": 20}, eps=eps, protocol=thinned(7))
    again = read_ledger(other.directory)
    assert (seen == np.flatnonzero(again.outcome("square") != Outcome.SKIPPED)).all()


def test_a_sample_that_breaks_calls_for_the_rest_and_the_run_is_exact(problem, tmp_path):
    options = {"params": {"n_queries": 300}, "eps": "0.05"}
    run = problem.run(tmp_path / "a", ["square"], protocol=thinned(10), **options)
    whole = problem.run(tmp_path / "b", ["square"], **options)
    assert run.record.tail.rest_run
    assert run.record.tail.sampled == run.record.tail.survivors == len(problem.data)
    assert run.record.metric("robust_accuracy") == whole.record.metric("robust_accuracy")
    assert run.record.tail.lower == run.record.tail.upper == whole.record.metric("robust_accuracy").value
    assert run.record.stages[-1].n_broken == whole.record.stages[-1].n_broken
    _, findings = verify(run.directory, problem.model, problem.data, problem.part.weights_sha256)
    assert [f for f in findings if not f.ok] == []
    assert {"tail", "rest-square"} <= {f.name for f in findings}


def test_shards_change_nothing(problem, tmp_path, outcome_files):
    options = {"params": {"n_queries": 20}, "eps": "0.02"}
    one = problem.run(tmp_path / "one", ["fgsm", "square"], protocol=thinned(7), **options)
    prepared = problem.prepare(["fgsm", "square"], protocol=thinned(7), **options)
    for shard in (2, 0, 1):
        run = evaluate(prepared, tmp_path / "three", shard=(shard, 3))
    assert outcome_files(one.directory) == outcome_files(run.directory)


def test_a_protocol_without_a_tail_cannot_thin_it_out():
    assert with_tail_sample(load_protocol("standard"), 500).name == "standard~500"
    with pytest.raises(UsageError, match="marks no stage as its tail"):
        with_tail_sample(load_protocol("smoke"), 500)
