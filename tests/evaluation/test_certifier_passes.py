"""What a certifier says it spent on each example is what the ledger and the record say."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robustsuite.certification.base import Certificates, Certifier
from robustsuite.errors import ContractError
from robustsuite.evaluation.stages import _check_certificates
from robustsuite.registry import CERTIFIERS, register_certifier
from robustsuite.results.certificates import SECONDS, certificate_diagnostics, read_seconds
from robustsuite.results.curve import read_proofs
from robustsuite.results.ledger import read_ledger
from robustsuite.results.store import read_arrays


@dataclass(frozen=True)
class Sequential(Certifier):
    """Proves nothing, and needs as many passes as the example's id says."""

    cost = (1000, 0)

    def certify(self, model, x, y, threat, noise):
        zero = torch.zeros(len(x), dtype=torch.float64)
        return Certificates(zero, y, "deterministic", noise.ids.clone())


@pytest.fixture
def sequential():
    register_certifier("sequential", norms=("Linf",))(Sequential)
    yield
    CERTIFIERS.entries.pop("sequential")


@pytest.mark.usefixtures("sequential")
def test_passes_differ_from_example_to_example(problem, tmp_path):
    run = problem.run(tmp_path, [], ["sequential"])
    stage = next(s for s in run.record.stages if s.name == "sequential")
    assert stage.n_in == len(problem.data)
    assert stage.forward == int(problem.data.ids.sum())
    verdicts = next(f.path for f in run.record.files if f.role == "verdicts")
    arrays, _ = read_arrays(run.directory / verdicts)
    (spent,) = (v for k, v in arrays.items() if "sequential" in k and "forward" in k)
    assert spent.tolist() == problem.data.ids.tolist()


@pytest.mark.parametrize("bad", [torch.ones(3, dtype=torch.int64), torch.ones(2), torch.tensor([1, -1])])
def test_passes_that_are_no_counts_are_refused(bad):
    zero = torch.zeros(2, dtype=torch.float64)
    good = Certificates(zero, torch.zeros(2, dtype=torch.int64), "deterministic", torch.tensor([0, 5]))
    _check_certificates(good, 2, 2)
    with pytest.raises(ContractError, match="forward passes"):
        _check_certificates(Certificates(zero, good.predicted, "deterministic", bad), 2, 2)


@dataclass(frozen=True)
class Slow(Sequential):
    """Takes 5 ms a batch and 10 ms more for the batch of example 0; tells something of each example."""

    def certify(self, model, x, y, threat, noise):
        time.sleep(0.015 if bool((noise.ids == 0).any()) else 0.005)
        found = super().certify(model, x, y, threat, noise)
        told = {"tightness": 1 / (1 + noise.ids.double())}
        return Certificates(found.radius, found.predicted, found.guarantee, found.forward, diagnostics=told)


@pytest.fixture
def slow():
    register_certifier("slow", norms=("Linf",))(Slow)
    yield
    CERTIFIERS.entries.pop("slow")


@pytest.mark.usefixtures("slow")
def test_time_is_kept_for_each_example_outside_of_all_hashes(problem, tmp_path, outcome_files):
    one, other = (problem.run(tmp_path / runs, [], ["slow"]) for runs in ("one", "other"))
    seconds = read_seconds(one.directory)["slow"]
    assert seconds.shape == (len(problem.data),)
    assert (seconds[:8] == seconds[0]).all()  # a batch shares its time evenly
    assert 0.015 / 8 <= seconds[0] < seconds[:8].sum() <= one.record.host.stage_seconds["slow"]
    assert seconds[8:].min() >= 0.005 / 8
    assert seconds.sum() <= one.record.host.stage_seconds["slow"] + 1e-3  # rounded there
    assert SECONDS not in {file.path for file in one.record.files}
    assert one.record.outcome_sha256 == other.record.outcome_sha256
    assert outcome_files(one.directory) == outcome_files(other.directory)
    assert not np.array_equal(seconds, read_seconds(other.directory)["slow"])
    proofs = read_proofs(one.directory, one.record)
    assert [row["seconds"] for row in proofs.rows()] == seconds.tolist()
    (one.directory / SECONDS).unlink()  # a record without it stays readable
    assert read_proofs(one.directory, one.record).seconds.tolist() == [0.0] * len(seconds)
    assert set(certificate_diagnostics(one.directory, one.record)["slow"]) == {"tightness"}


@pytest.mark.usefixtures("slow")
def test_diagnostics_go_to_the_ledger_and_decide_nothing(problem, tmp_path):
    run = problem.run(tmp_path, [], ["slow"])
    want = 1 / (1 + problem.data.ids.double()).numpy()
    assert np.array_equal(read_ledger(run.directory).arrays["slow/tightness"], want)
    found = certificate_diagnostics(run.directory, run.record)["slow"]["tightness"]
    assert found == pytest.approx(
        {"mean": want.mean(), "median": np.median(want), "least": want.min(), "most": want.max()}
    )
    zero = torch.zeros(2, dtype=torch.float64)
    bad = Certificates(zero, torch.zeros(2, dtype=torch.int64), "deterministic", diagnostics={"odd": torch.zeros(3)})
    with pytest.raises(ContractError, match="odd"):
        _check_certificates(bad, 2, 2)
