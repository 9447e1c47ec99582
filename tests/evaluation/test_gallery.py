"""The gallery: true pictures, the same every time, and found when somebody paints in them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.errors import InputError
from robustsuite.evaluation.gallery import write_gallery
from robustsuite.evaluation.verify import verify
from robustsuite.results.arithmetic import Finding
from robustsuite.results.gallery import GALLERY, read_gallery
from robustsuite.results.ledger import read_ledger
from robustsuite.results.packed import pack
from robustsuite.results.store import array_bytes

FORGING = runpy.run_path(str(Path(__file__).with_name("forging.py")))
publish = FORGING["publish"]


@pytest.fixture
def run(problem, tmp_path) -> Path:
    """Both stages break something."""
    weak = {"pgd.steps": 1, "pgd.alpha": 0.005}
    return problem.run(tmp_path, ["pgd", "fgsm"], params=weak).directory


def test_pictures_are_the_runs_and_the_stages_take_turns(run, problem):
    packed = write_gallery(run, problem.data)
    assert packed is not None
    found, ledger = read_gallery(packed), read_ledger(run)
    assert found.run_key == run.name
    assert len(found.position) == 8
    assert found.stages[:4] == ("pgd", "fgsm", "pgd", "fgsm")
    assert len(set(found.position.tolist())) == 8
    assert (found.x == problem.data.x.numpy()[found.position]).all()
    assert (found.before == found.label).all()
    assert (found.after == 1 - found.label).all()
    predicted = problem.model.logits(torch.from_numpy(found.x_adv.copy())).argmax(1)
    assert (predicted.numpy() == found.after).all()
    assert found.distance == pytest.approx(np.abs(found.x_adv - found.x).max((1, 2, 3)), abs=1e-7)
    margins = np.array([ledger.arrays[f"{s}/margin"][p] for s, p in zip(found.stages, found.position, strict=True)])
    assert (margins < -1e-3).all()


def test_the_same_run_gives_the_same_bytes_and_another_count_a_part_of_it(run, problem):
    packed = write_gallery(run, problem.data)
    assert packed == write_gallery(run, problem.data)
    few = read_gallery(write_gallery(run, problem.data, 3) or b"")
    assert few.position.tolist() == read_gallery(packed or b"").position[:3].tolist()


def test_nothing_broken_has_no_pictures(problem, tmp_path):
    assert write_gallery(problem.run(tmp_path, ["fgsm"], eps="0.00001").directory, problem.data) is None


def test_other_data_or_a_missing_file_is_refused(run, problem):
    with pytest.raises(InputError, match="the run's data is"):
        write_gallery(run, problem.data.take(torch.arange(5), "first:5"))
    for path in (run / "adversarials" / "pgd").glob("*"):
        path.unlink()
    with pytest.raises(InputError, match="lacks the adversarial example"):
        write_gallery(run, problem.data)


def test_a_published_gallery_is_checked_picture_by_picture(run, problem, tmp_path):
    packed = write_gallery(run, problem.data)
    assert packed is not None
    found = read_gallery(packed)
    arrays = {name: getattr(found, name) for name in found._fields[:7]}
    meta = {"run_key": found.run_key, "stages": list(found.stages)}
    root = tmp_path / "board"

    def checked(change: dict, told: dict | None = None):
        body = pack(array_bytes(arrays | change, told or meta, GALLERY))
        path = publish(run, root, "b", body)
        _, findings = verify(path, problem.model, problem.data, "0" * 64)
        return next(f for f in findings if f.name == "gallery")

    assert checked({}) == Finding("gallery", True, "8 pictures hold")
    clean = found.x_adv.copy()
    clean[2] = found.x[2]
    far = found.x_adv.copy()
    far[3] = np.clip(found.x[3] + 3 * (far[3] - found.x[3]), 0, 1)
    for change, row in (
        ({"x_adv": clean}, 2),
        ({"x_adv": far}, 3),
        ({"x": clean}, 0),
        ({"label": 1 - found.label}, 0),
        ({"before": 1 - found.before}, 0),
        ({"after": found.label}, 0),
        ({"distance": found.distance / 2}, 0),
    ):
        verdict = checked(change)
        assert not verdict.ok
        assert str(found.position[row]) in verdict.detail
    assert not checked({}, meta | {"stages": list(reversed(found.stages))}).ok
    assert not checked({}, meta | {"run_key": "0" * 16}).ok
    assert not checked({"position": found.position + 1000}).ok
