"""The evaluator end to end on problems whose robust accuracy is known in closed form."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robustsuite.attacks import Attack, register_attack
from robustsuite.certification import Certificates, Certifier, register_certifier
from robustsuite.errors import (
    ContractError,
    ContradictionError,
    IncompleteError,
    InputError,
    PrerequisiteError,
    UsageError,
)
from robustsuite.evaluation import evaluator
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.registry import ATTACKS, CERTIFIERS
from robustsuite.results import store as store_module
from robustsuite.results.ledger import read_ledger


@dataclass(frozen=True)
class ExactLinear(Certifier):
    """The closed-form radius of the toy problem, times a factor: above 1 it is unsound."""

    factor: float = 1.0

    def certify(self, model, x, y, threat, noise) -> Certificates:
        logits = model.logits(x)
        radius = (logits[:, 1] - logits[:, 0]).abs().double() / 16 * self.factor
        return Certificates(radius, logits.argmax(1), "deterministic")


@dataclass(frozen=True)
class Faulty(Attack):
    """Fails on the block that holds example 17; harmless elsewhere."""

    def run(self, model, x, y, threat, noise):
        if bool((noise.ids == 17).any()) and not os.environ.get("TEST_FAULTY_IS_MENDED"):
            raise RuntimeError("kaboom at example 17")
        return x


@dataclass(frozen=True)
class Cheat(Attack):
    """Claims what it should not: points outside of the ball, outside of the box, or not numbers."""

    def run(self, model, x, y, threat, noise):
        far = 1 - x
        far[noise.ids % 3 == 1] = float("nan")
        far[noise.ids % 3 == 2] *= 3
        return far


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    register_certifier("exact-linear", norms=("Linf",), kind="deterministic")(ExactLinear)
    register_attack("faulty", norms=("Linf",), access="white-box", kind="bounded")(Faulty)
    register_attack("cheat", norms=("Linf",), access="white-box", kind="bounded")(Cheat)
    yield
    for registry, name in ((CERTIFIERS, "exact-linear"), (ATTACKS, "faulty"), (ATTACKS, "cheat")):
        registry.entries.pop(name, None)


def test_bracket_closes_on_the_exact_answer(problem, tmp_path):
    run = problem.run(tmp_path, ["fgsm", "pgd", "apgd-ce"], ["exact-linear"])
    robust = int((problem.radius >= 0.05).sum())
    assert run.record.status == "complete"
    values = {m.name: (m.value, m.n) for m in run.record.metrics}
    n = len(problem.data)
    assert 0 < robust < n
    assert values["clean_accuracy"] == (1.0, n)
    assert values["robust_accuracy"] == (robust / n, n)
    assert values["certified_accuracy"] == (robust / n, n)
    certify, fgsm, pgd, _ = run.record.stages[1:]
    assert (certify.n_in, certify.n_certified) == (n, robust)
    assert (fgsm.n_in, fgsm.n_broken, fgsm.n_audited) == (n - robust, n - robust, min(robust, 20))
    assert pgd.n_in == 0  # nothing undecided was left


def test_every_broken_example_is_stored_and_holds(problem, tmp_path):
    run = problem.run(tmp_path, ["pgd"])
    ledger = read_ledger(run.directory)
    broken = np.flatnonzero(ledger.outcome("pgd") == 2)
    assert len(broken) == int((problem.radius < 0.05).sum())
    distance = ledger.arrays["pgd/distance"][broken]
    assert (distance <= 0.05 * (1 + 1e-6) + 1e-7).all()
    assert (distance >= problem.radius.numpy()[broken] - 1e-6).all()
    assert (ledger.arrays["pgd/margin"][broken] < 0).all()


def test_unsound_certifier_is_caught_by_the_audit(problem, tmp_path):
    with pytest.raises(ContradictionError, match=r"'exact-linear' certified example \d+ .*'audit-pgd' broke it"):
        problem.run(tmp_path, ["pgd"], ["exact-linear"], params={"exact-linear.factor": 3.0})
    (record_path,) = tmp_path.glob("*/record.json")
    record = json.loads(record_path.read_text())
    assert record["status"] == "failed"
    assert record["contradictions"][0]["distance"] <= 0.05 + 1e-6
    example = record["contradictions"][0]["example"]
    assert 0.05 / 3 <= float(problem.radius[example]) < 0.05
    # The same command does not forget it.
    with pytest.raises(ContradictionError):
        problem.run(tmp_path, ["pgd"], ["exact-linear"], params={"exact-linear.factor": 3.0})


def test_unsound_certifier_after_the_attacks_is_caught_too(problem, tmp_path):
    prepared = problem.prepare(["pgd"], ["exact-linear"], params={"exact-linear.factor": 3.0})
    late = prepared.request.protocol.stages[::-1]
    request = prepared.request.model_copy(
        update={"protocol": prepared.request.protocol.model_copy(update={"stages": late})}
    )
    prepared = evaluator.Prepared(request, prepared.stages[::-1], {}, prepared.model, prepared.data, prepared.threat)
    with pytest.raises(ContradictionError, match="'audit-exact-linear' certified example"):
        evaluate(prepared, tmp_path)


def test_complete_run_is_a_no_op(problem, tmp_path, outcome_files):
    first = problem.run(tmp_path, ["pgd"])
    before = outcome_files(first.directory) | {"raw": (first.directory / "record.json").read_bytes()}
    again = problem.run(tmp_path, ["pgd"])
    assert again.resumed
    assert outcome_files(again.directory) | {"raw": (again.directory / "record.json").read_bytes()} == before


@pytest.mark.parametrize("keep", [0, 1, 3, 5, 8])
def test_resumes_from_any_prefix_of_blocks(problem, tmp_path, keep, outcome_files):
    whole = problem.run(tmp_path / "a", ["pgd", "square"], params={"square.n_queries": 60})
    want = outcome_files(whole.directory)
    copy = tmp_path / "b" / whole.directory.name
    shutil.copytree(whole.directory, copy)
    (copy / "record.json").unlink()
    blocks = sorted((copy / "ledger").rglob("*.safetensors"))
    assert len(blocks) > 8
    for path in blocks[keep:]:
        path.unlink()
    again = problem.run(tmp_path / "b", ["pgd", "square"], params={"square.n_queries": 60})
    assert again.resumed is (keep > 0)
    assert outcome_files(again.directory) == want


def test_damaged_block_is_done_again(problem, tmp_path, outcome_files):
    run = problem.run(tmp_path, ["pgd"])
    want = outcome_files(run.directory)
    (run.directory / "record.json").unlink()
    victim = sorted((run.directory / "ledger" / "pgd").glob("*"))[1]
    victim.write_bytes(victim.read_bytes()[:-7])
    assert outcome_files(problem.run(tmp_path, ["pgd"]).directory) == want


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_merge_to_the_same_bytes(problem, tmp_path, order, outcome_files):
    options = {"params": {"square.n_queries": 60}}
    want = outcome_files(problem.run(tmp_path / "a", ["pgd", "square"], ["exact-linear"], **options).directory)
    prepared = problem.prepare(["pgd", "square"], ["exact-linear"], **options)
    for shard in order[:-1]:
        part = evaluate(prepared, tmp_path / "b", shard=(shard, 3))
        assert part.record is None
        assert part.missing_blocks > 0
    last = evaluate(prepared, tmp_path / "b", shard=(order[-1], 3))
    assert outcome_files(last.directory) == want


def test_order_of_the_examples_changes_no_outcome(problem, tmp_path):
    shuffled = torch.randperm(len(problem.data), generator=torch.Generator().manual_seed(0))
    a = read_ledger(problem.run(tmp_path, ["pgd", "square"], params={"square.n_queries": 60}).directory)
    problem.data = problem.data.take(shuffled, "shuffled")
    b = read_ledger(problem.run(tmp_path, ["pgd", "square"], params={"square.n_queries": 60}).directory)
    for name in ("pgd/outcome", "square/outcome", "pgd/distance", "square/margin", "square/forward"):
        assert (a.arrays[name][shuffled.numpy()] == b.arrays[name]).all(), name


def test_another_request_is_another_directory(problem, tmp_path):
    a, b = problem.run(tmp_path, ["pgd"]), problem.run(tmp_path, ["pgd"], seed=1)
    assert a.directory != b.directory


def test_directory_of_another_request_is_refused_untouched(problem, tmp_path, outcome_files):
    run = problem.run(tmp_path, ["pgd"])
    request = json.loads((run.directory / "request.json").read_text())
    request["seed"] = 5
    (run.directory / "request.json").write_text(json.dumps(request))
    before = outcome_files(run.directory)
    with pytest.raises(UsageError, match="another request"):
        problem.run(tmp_path, ["pgd"])
    assert outcome_files(run.directory) == before


def test_runs_is_a_file(problem, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="not a directory"):
        problem.run(tmp_path / "runs", ["pgd"])


def test_a_stage_that_raises_is_marked_and_the_rest_goes_on(problem, tmp_path, monkeypatch, outcome_files):
    with pytest.raises(IncompleteError, match=r"faulty: RuntimeError: kaboom at example 17"):
        problem.run(tmp_path, ["faulty", "pgd"])
    (path,) = tmp_path.glob("*/record.json")
    record = json.loads(path.read_text())
    stages = {s["name"]: s for s in record["stages"]}
    assert record["status"] == "partial"
    assert stages["faulty"]["status"] == "error"
    assert stages["faulty"]["n_error"] > 0
    robust = int((problem.radius >= 0.05).sum())
    assert stages["pgd"]["n_broken"] == len(problem.data) - robust
    # Mended, the same command finishes the run as if nothing had happened.
    monkeypatch.setenv("TEST_FAULTY_IS_MENDED", "1")
    mended = problem.run(tmp_path, ["faulty", "pgd"])
    assert mended.record.status == "complete"
    assert outcome_files(mended.directory) == outcome_files(problem.run(tmp_path / "x", ["faulty", "pgd"]).directory)


def test_claims_outside_of_ball_or_box_do_not_count(problem, tmp_path):
    run = problem.run(tmp_path, ["cheat"])
    stage = run.record.stages[1]
    assert stage.n_broken == 0
    assert stage.n_refused == len(problem.data)


def test_full_disk_keeps_what_is_finished(problem, tmp_path, monkeypatch, outcome_files):
    want = outcome_files(problem.run(tmp_path / "a", ["pgd"]).directory)
    real, left = os.fsync, [9]

    def fsync(fd: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(store_module.os, "fsync", fsync)
    with pytest.raises(PrerequisiteError, match=r"(?i)disk.*full|no space"):
        problem.run(tmp_path / "b", ["pgd"])
    assert list((tmp_path / "b").rglob("*.safetensors"))
    monkeypatch.setattr(store_module.os, "fsync", real)
    assert outcome_files(problem.run(tmp_path / "b", ["pgd"]).directory) == want


def test_class_count_and_shape_are_checked_first(problem, tmp_path):
    problem.model.num_classes = 3
    with pytest.raises(InputError, match="3 classes, the data 2"):
        problem.run(tmp_path, ["pgd"])
    problem.model.num_classes, problem.model.input_shape = 2, (3, 4, 4)
    with pytest.raises(InputError, match="shape"):
        problem.run(tmp_path, ["pgd"])
    assert not list(tmp_path.iterdir())


def test_a_broken_model_is_refused_before_a_directory_is_made(problem, tmp_path):
    problem.model.module = torch.nn.Sequential(problem.model.module, torch.nn.Softmax(1))
    with pytest.raises(ContractError, match="softmax"):
        problem.run(tmp_path, ["pgd"])
    assert not list(tmp_path.glob("*/request.json"))


def test_interrupt_is_not_swallowed(problem, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Faulty, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        problem.run(tmp_path, ["pgd", "faulty"])
    assert list(tmp_path.rglob("ledger/pgd/*.safetensors"))
