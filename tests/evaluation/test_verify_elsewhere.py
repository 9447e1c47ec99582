"""Level 1 on another machine than the run's, and level 0 against files that were made to mislead."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.evaluation.verify import verify
from robustsuite.results.store import read_arrays, write_json
from robustsuite.results.stored import check_stored, find_run

FORGING = runpy.run_path(str(Path(__file__).with_name("forging.py")))
reseal, unbreak, move_elsewhere, change_arrays, record_of = (
    FORGING[n] for n in ("reseal", "unbreak", "move_elsewhere", "change_arrays", "record_of")
)


@pytest.fixture
def tied(problem):
    """The first example's logits differ by 1e-4."""
    weight = problem.model.module.linear.weight.data[1].view(1, 4, 4)
    x = problem.data.x.clone()
    x[0] -= weight * ((weight * x[0]).sum() - 1e-4) / 16
    y = problem.data.y.clone()
    y[0] = 1
    problem.data = dataclasses.replace(problem.data, x=x, y=y)
    return problem


def finding(run_dir: Path, problem, name: str):
    _, findings = verify(run_dir, problem.model, problem.data, "0" * 64)
    return next(f for f in findings if f.name == name)


@pytest.mark.parametrize(("position", "excused"), [(0, True), (1, False)])
def test_a_clean_prediction_may_differ_elsewhere_at_a_near_tie(tied, tmp_path, position, excused):
    run = tied.run(tmp_path, ["fgsm"]).directory

    def flip(arrays):
        arrays["clean/predicted"][position] = 1 - arrays["clean/predicted"][position]

    change_arrays(run / "verdicts.safetensors", flip)
    reseal(run)
    assert finding(run, tied, "clean predictions").detail == "39 of 40 reproduced"
    assert not finding(run, tied, "clean predictions").ok
    move_elsewhere(run)
    found = finding(run, tied, "clean predictions")
    assert found.ok is excused
    assert found.detail == "39 of 40 reproduced; 1 of 40 answers differ, up to 1 may here"


@pytest.mark.parametrize(("count", "excused"), [(1, True), (2, False)])
def test_an_adversarial_example_may_fool_nobody_elsewhere(problem, tmp_path, count, excused):
    run = problem.run(tmp_path, ["fgsm"]).directory
    path = sorted((run / "adversarials" / "fgsm").glob("*"))[0]
    clean = problem.data.x.numpy()
    change_arrays(path, lambda a: a["x_adv"].__setitem__(slice(count), clean[a["position"][:count]]))
    reseal(run)
    assert not finding(run, problem, "fgsm").ok
    move_elsewhere(run)
    assert finding(run, problem, "fgsm").ok is excused


def test_one_outside_of_the_ball_is_excused_nowhere(problem, tmp_path):
    run = problem.run(tmp_path, ["fgsm"]).directory
    path = sorted((run / "adversarials" / "fgsm").glob("*"))[0]
    first = int(read_arrays(path)[0]["position"][0])
    x = problem.data.x[first].numpy()
    change_arrays(path, lambda a: a["x_adv"].__setitem__(0, np.clip(x + 1.01 * (a["x_adv"][0] - x), 0, 1)))
    reseal(run)
    move_elsewhere(run)
    found = finding(run, problem, "fgsm")
    assert not found.ok
    assert f"failed: [{first}]" in found.detail


def test_evidence_against_the_ledger_is_found(problem, tmp_path):
    run = problem.run(tmp_path, ["fgsm"]).directory
    victim = int(torch.nonzero(problem.radius < 0.04)[0])
    files = {path: path.read_bytes() for path in (run / "adversarials" / "fgsm").glob("*")}
    unbreak(run, "fgsm", [victim])
    for path, body in files.items():
        path.write_bytes(body)
    reseal(run)
    assert f"broken, though the ledger says otherwise: [{victim}]" in finding(run, problem, "fgsm").detail


def test_files_outside_of_the_run_are_not_looked_at(problem, tmp_path):
    run = problem.run(tmp_path, ["fgsm"]).directory
    record = record_of(run)
    odd = record.files[0].model_copy(update={"path": "../../secret"})
    write_json(run / "record.json", record.model_copy(update={"files": (odd, *record.files[1:])}).sealed())
    found = {f.name: f for f in check_stored(find_run(run))}
    assert not found["../../secret"].ok
    assert "outside" in found["../../secret"].detail


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a | {"fgsm/outcome": a["fgsm/outcome"][:9]}, "fgsm/outcome"),
        (lambda a: a | {"fgsm/outcome": a["fgsm/outcome"] + np.uint8(9)}, "fgsm/outcome"),
        (lambda a: a | {"fgsm/outcome": a["fgsm/outcome"].astype(float)}, "fgsm/outcome"),
        (lambda a: {k: v for k, v in a.items() if k != "fgsm/radius"}, "fgsm"),
    ],
)
def test_arrays_that_are_no_ledger_are_a_finding(problem, tmp_path, change, named):
    run = problem.run(tmp_path, ["fgsm"]).directory
    change_arrays(run / "verdicts.safetensors", change)
    reseal(run)
    found = {f.name: f for f in check_stored(find_run(run))}["ledger"]
    assert not found.ok
    assert named in found.detail
