"""`verify` holds for an honest run, and finds whatever was changed after it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.errors import RobustsuiteError, VerificationError
from robustsuite.evaluation.verify import require, verify
from robustsuite.results.records import load_record
from robustsuite.results.store import read_arrays, write_arrays

SHA = "0" * 64


@pytest.fixture
def run(problem, tmp_path):
    return problem.run(tmp_path, ["fgsm", "pgd"]).directory


def check(run_dir: Path, problem, sha: str = SHA) -> None:
    _, findings = verify(run_dir, problem.model, problem.data, sha)
    require(findings)


def reseal(run_dir: Path) -> None:
    """What a forger would do: make all hashes fit again."""
    import hashlib

    record = load_record_unchecked(run_dir)
    index = {
        str(p.relative_to(run_dir / "adversarials")): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((run_dir / "adversarials").glob("*/*.safetensors"))
    }
    (run_dir / "adversarials" / "index.json").write_text(json.dumps(index))
    files = []
    for ref in record.files:
        body = (run_dir / ref.path).read_bytes()
        files.append(ref.model_copy(update={"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}))
    sealed = record.model_copy(update={"files": tuple(files)}).sealed()
    (run_dir / "record.json").write_text(json.dumps(sealed.model_dump(mode="json")))


def load_record_unchecked(run_dir: Path):
    from robustsuite.results.schema import Record

    return Record.model_validate_json((run_dir / "record.json").read_text())


def adversarial_file(run_dir: Path) -> Path:
    return sorted((run_dir / "adversarials").glob("*/*.safetensors"))[0]


def test_an_honest_run_holds(run, problem):
    record, findings = verify(run, problem.model, problem.data, SHA)
    assert all(f.ok for f in findings)
    names = [f.name for f in findings]
    assert {"weights", "data", "clean predictions", "robust_accuracy", "bracket", "fgsm"} <= set(names)
    broken = sum(s.n_broken for s in record.stages)
    assert any(f"{broken} of {broken} adversarial examples hold" in f.detail for f in findings)


def test_another_model_or_other_data(run, problem):
    with pytest.raises(VerificationError, match="weights"):
        check(run, problem, "1" * 64)
    problem.data = problem.data.take(torch.arange(5), "first:5")
    with pytest.raises(VerificationError, match="data"):
        check(run, problem)


def test_changed_image(run, problem):
    path = adversarial_file(run)
    arrays, meta = read_arrays(path)
    arrays = {k: v.copy() for k, v in arrays.items()}
    arrays["x_adv"][0] = problem.data.x[int(arrays["position"][0])].numpy()  # the clean image fools nobody
    write_arrays(path, arrays, {k: v for k, v in meta.items() if k in ("stage", "block")})
    with pytest.raises(VerificationError, match="adversarials"):
        check(run, problem)
    reseal(run)
    with pytest.raises(VerificationError, match=r"adversarial examples hold; failed: \[\d+"):
        check(run, problem)


def test_image_outside_of_the_ball(run, problem):
    path = adversarial_file(run)
    arrays, meta = read_arrays(path)
    arrays = {k: v.copy() for k, v in arrays.items()}
    x = problem.data.x[int(arrays["position"][0])].numpy()
    arrays["x_adv"][0] = np.clip(x + 2 * (arrays["x_adv"][0] - x), 0, 1)
    write_arrays(path, arrays, {k: v for k, v in meta.items() if k in ("stage", "block")})
    reseal(run)
    with pytest.raises(VerificationError, match="failed"):
        check(run, problem)


def test_changed_verdict(run, problem):
    path = run / "verdicts.safetensors"
    arrays, meta = read_arrays(path)
    arrays = {k: v.copy() for k, v in arrays.items()}
    row = int(np.flatnonzero(arrays["fgsm/outcome"] == 2)[0])
    arrays["fgsm/outcome"][row] = 1
    write_arrays(path, arrays, {k: v for k, v in meta.items() if k in ("run_key", "stages")})
    with pytest.raises(VerificationError, match=r"verdicts\.safetensors"):
        check(run, problem)
    reseal(run)
    with pytest.raises(VerificationError, match="robust_accuracy"):
        check(run, problem)


def test_changed_number(run, problem):
    text = (run / "record.json").read_text()
    record = json.loads(text)
    for metric in record["metrics"]:
        if metric["name"] == "robust_accuracy":
            metric["value"] = 0.99
    (run / "record.json").write_text(json.dumps(record))
    with pytest.raises(RobustsuiteError, match=r"sealed|sha256|content"):
        check(run, problem)
    reseal(run)
    with pytest.raises(VerificationError, match="robust_accuracy"):
        check(run, problem)


def test_missing_file(run, problem):
    adversarial_file(run).unlink()
    with pytest.raises(VerificationError, match="missing"):
        check(run, problem)


def test_record_loads_with_its_hashes(run):
    assert load_record(run / "record.json").status == "complete"
