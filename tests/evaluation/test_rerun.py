"""Levels 2 and 3: an honest run comes out again, and claims that all hashes and sums agree with are found."""

import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from robustsuite.certification import Certificates, Certifier, register_certifier
from robustsuite.errors import UsageError
from robustsuite.evaluation.ledger import Blocks
from robustsuite.evaluation.progress import Silent
from robustsuite.evaluation.protocol import with_tail_sample
from robustsuite.evaluation.recertify import choose_blocks
from robustsuite.evaluation.rerun import prepare_again, rerun_all, rerun_blocks
from robustsuite.evaluation.verify import verify
from robustsuite.registry import CERTIFIERS
from robustsuite.results.ledger import read_ledger
from robustsuite.results.stored import check_stored, find_run

FORGING = runpy.run_path(str(Path(__file__).with_name("forging.py")))
unbreak, reseal, move_elsewhere, publish, change_arrays, record_of = (
    FORGING[name] for name in ("unbreak", "reseal", "move_elsewhere", "publish", "change_arrays", "record_of")
)
SHA = "0" * 64


@dataclass(frozen=True)
class Exact(Certifier):
    """The closed-form radius of the toy problem."""

    def certify(self, model, x, y, threat, noise) -> Certificates:
        logits = model.logits(x)
        radius = (logits[:, 1] - logits[:, 0]).abs().double() / 16
        return Certificates(radius, logits.argmax(1), "deterministic")


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    register_certifier("exact", norms=("Linf",), kind="deterministic")(Exact)
    yield
    CERTIFIERS.entries.pop("exact", None)


def again(path: Path, problem, level: int, count: int = 1000, seed: int = 0, plugins=None):
    """The findings of a level alone, by name."""
    prepared = prepare_again(find_run(path).record, problem.model, problem.data, plugins or {})
    found = rerun_blocks(path, prepared, count, seed, Silent()) if level == 2 else rerun_all(path, prepared, Silent())
    return {f.name: f for f in found}


def holds_below(path: Path, problem) -> bool:
    """Whether levels 0 and 1 find nothing."""
    _, findings = verify(path, problem.model, problem.data, SHA)
    return all(f.ok for f in (*findings, *check_stored(find_run(path))))


@pytest.mark.parametrize("attacks", [["fgsm", "pgd"], ["apgd-ce", "square"]])
def test_an_honest_run_comes_out_again(problem, tmp_path, attacks):
    run = problem.run(tmp_path, attacks, ["exact"], params={"square.n_queries": 50} if "square" in attacks else {})
    found = again(run.directory, problem, 2, 10)["subset again"]
    assert found.ok
    assert found.detail == "16 of 16 outcomes agree (2 of 5 blocks). On the machine that made the run none may differ"
    found = again(run.directory, problem, 3)
    assert found["everything again"].ok
    assert found["everything again"].detail.startswith("40 of 40 outcomes agree.")
    assert found["outcome_sha256"].ok
    assert found["outcome_sha256"].detail.startswith("equal")


def test_overlaps_audits_and_a_sampled_tail_come_out_again(problem, tmp_path):
    def thinned(protocol):
        *first, last = protocol.stages
        marked = protocol.model_copy(update={"stages": (*first, last.model_copy(update={"tail": True}))})
        return with_tail_sample(marked, 5)

    def overlapping(protocol):
        return protocol.model_copy(update={"contributions": True})

    for name, change in (("tail", thinned), ("overlap", overlapping)):
        weak = {"pgd.steps": 1, "pgd.alpha": 0.001}
        run = problem.run(tmp_path / name, ["pgd", "fgsm"], ["exact"], protocol=change, params=weak)
        stages = read_ledger(run.directory).stages
        assert {"rest-fgsm"} <= {*stages} if name == "tail" else {"overlap-fgsm", "audit-fgsm"} <= {*stages}
        for level in (2, 3):
            found = again(run.directory, problem, level)
            assert all(f.ok for f in found.values()), found
        if name == "tail":
            assert again(run.directory, problem, 2)["tail sample"].detail.startswith("5 of ")


def test_a_tail_on_a_sample_of_ones_own_choice_is_found(problem, tmp_path):
    def thinned(protocol):
        *first, last = protocol.stages
        marked = protocol.model_copy(update={"stages": (*first, last.model_copy(update={"tail": True}))})
        return with_tail_sample(marked, 5)

    run = problem.run(tmp_path, ["fgsm", "pgd"], protocol=thinned, eps="0.001")
    seen = read_ledger(run.directory).outcome("pgd") != 0
    assert seen.sum() == 5

    def choose(arrays):
        rows = np.r_[np.flatnonzero(seen)[:1], np.flatnonzero(~seen)[:1]]
        arrays["pgd/outcome"][rows] = arrays["pgd/outcome"][rows[::-1]]

    change_arrays(run.directory / "verdicts.safetensors", choose)
    reseal(run.directory)
    assert holds_below(run.directory, problem)
    assert not again(run.directory, problem, 2)["tail sample"].ok


def test_a_survivor_that_was_broken_is_found_by_running_again_alone(problem, tmp_path):
    run = problem.run(tmp_path, ["pgd"])
    victims = np.flatnonzero(read_ledger(run.directory).outcome("pgd") == 2)[:2].tolist()
    unbreak(run.directory, "pgd", victims)
    assert holds_below(run.directory, problem)
    found = again(run.directory, problem, 3)
    assert not found["everything again"].ok
    shown = ", ".join(f"{p} was undecided, is broken" for p in victims)
    assert f"38 of 40 outcomes agree; positions {shown}." in found["everything again"].detail
    assert not found["outcome_sha256"].ok
    assert not again(run.directory, problem, 2)["subset again"].ok
    # Published without its evidence it is found as well.
    path = publish(run.directory, tmp_path / "board", "b")
    assert holds_below(path, problem)
    assert not again(path, problem, 2)["subset again"].ok
    assert not again(path, problem, 3)["everything again"].ok


def test_another_machine_may_differ_a_little_and_not_more(problem, tmp_path):
    for count, ok in ((2, True), (3, False)):  # of 40, P(Binomial(40, 0.5 %) > 2) < 1 %
        run = problem.run(tmp_path / str(count), ["pgd"])
        unbreak(run.directory, "pgd", np.flatnonzero(read_ledger(run.directory).outcome("pgd") == 2)[:count].tolist())
        move_elsewhere(run.directory)
        found = again(run.directory, problem, 2)["subset again"]
        assert found.ok is ok
        assert f"{40 - count} of 40 outcomes agree (5 of 5 blocks); positions" in found.detail
        assert "On another machine 2 may differ (0.50% may differ" in found.detail
        found = again(run.directory, problem, 3)
        assert found["everything again"].ok is ok
        assert found["outcome_sha256"].ok  # said, and no reason to refuse
        assert "the record's is" in found["outcome_sha256"].detail


def test_certificates_from_nowhere_are_found(problem, tmp_path):
    run = problem.run(tmp_path, ["pgd"], ["exact"])
    weak = int(np.flatnonzero((read_ledger(run.directory).outcome("exact") == 1) & (problem.radius.numpy() > 0))[0])
    unbreak(run.directory, "pgd", [weak])

    def certify(arrays):
        arrays["exact/outcome"][weak], arrays["exact/radius"][weak] = 3, 0.06
        arrays["pgd/outcome"][weak] = 0

    change_arrays(run.directory / "verdicts.safetensors", certify)
    reseal(run.directory)
    found = again(run.directory, problem, 2)["subset again"]
    assert not found.ok
    assert f"{weak} was certified, is broken" in found.detail


def test_blocks_hang_on_the_record_and_the_verifiers_seed(problem, tmp_path):
    blocks, everything = Blocks(400, 8), np.ones(400, bool)
    chosen = {seed: choose_blocks(blocks, everything, 20, f"rerun/{SHA}/{seed}") for seed in range(8)}
    assert {len(c) for c in chosen.values()} == {3}
    assert len({tuple(c) for c in chosen.values()}) == 8
    assert choose_blocks(blocks, everything, 20, f"rerun/{'1' * 64}/0") != chosen[0]
    run = problem.run(tmp_path, ["fgsm"])
    victim = int(np.flatnonzero(read_ledger(run.directory).outcome("fgsm") == 2)[0])
    unbreak(run.directory, "fgsm", [victim])
    key = f"rerun/{record_of(run.directory).content_sha256}"
    for seed in range(5):
        looked = victim // 8 in choose_blocks(Blocks(40, 8), everything[:40], 8, f"{key}/{seed}")
        assert again(run.directory, problem, 2, 8, seed)["subset again"].ok is not looked


def test_what_cannot_be_compared_is_refused(problem, tmp_path):
    record = problem.run(tmp_path, ["fgsm"]).record
    with pytest.raises(UsageError, match=r"plugin files \(none\), here are mine\.py"):
        prepare_again(record, problem.model, problem.data, {"mine.py": "1" * 64})
    older = record.request.model_copy(update={"semantics_version": 0})
    with pytest.raises(UsageError, match="semantics version 0"):
        prepare_again(record.model_copy(update={"request": older}), problem.model, problem.data, {})
    odd = record.request.protocol.stages[0].model_copy(update={"params": {}})
    other = record.request.model_copy(
        update={"protocol": record.request.protocol.model_copy(update={"stages": (odd,)})}
    )
    changed = record.model_copy(update={"request": other})
    with pytest.raises(UsageError, match="by default has changed"):
        prepare_again(changed, problem.model, problem.data, {})
