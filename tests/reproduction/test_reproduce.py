"""A claim from its trainings to a published verdict that can be checked."""

import json
from pathlib import Path

import pytest

from robustsuite.cli.main import app
from robustsuite.errors import InputError
from robustsuite.reproduction import claim as claims
from robustsuite.reproduction.claim import Claims
from robustsuite.reproduction.report import check_reports, markdown, read_reports
from robustsuite.results.stored import find_run

TINY = {
    "settings": {
        "tiny": {
            "title": "digits", "data": "digits", "threat": "Linf:0.1", "train": ["train", "first:120"],
            "test": ["test", "class-balanced:20"], "tier": "quick", "arch": "mlp",
            "recipe": {"epochs": 2, "batch_size": 30, "lr": 0.05},
        }
    },
    "claims": {
        "tiny": {
            "claim": "Training on FGSM's examples is more robust.", "source": "nobody", "setting": "tiny",
            "method": "fgsm_at+ema", "baseline": {"base": "standard"},
            "expects": [{"quantity": "robust", "is": "higher"}, {"quantity": "best_minus_last", "is": "not_higher"}],
        },
    },
}  # fmt: skip


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Claims:
    made = Claims.model_validate(TINY)
    for module in ("claim", "report"):
        monkeypatch.setattr(f"robustsuite.reproduction.{module}.known_claims", lambda: made)
    return made


def call(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        app([str(a) for a in arguments])
    if stop.value.code:
        raise AssertionError(f"exit code {stop.value.code}")


def test_a_claim_is_tested_published_and_checked(known: Claims, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, to = tmp_path / "work", tmp_path / "published"
    call("reproduce", "tiny", "-o", out, "--to", to)
    printed = capsys.readouterr().out
    assert "fgsm_at+ema against standard, 3 seeds, digits, Linf:0.1" in printed
    (report,) = read_reports(to)
    assert f"Verdict: {report.verdict}" in printed
    assert [o.seed for o in report.method] == [0, 1, 2]
    for outcome in (*report.method, *report.baseline):
        stored = find_run(out / "runs" / outcome.runs["best"])
        metric = stored.record.metric("robust_accuracy")
        assert metric is not None
        assert outcome.quantities["robust"] == metric.value
        assert outcome.quantities["best_minus_last"] == outcome.quantities["robust"] - outcome.quantities["last_robust"]
        assert 0 <= outcome.quantities["worst_class_robust"] <= outcome.quantities["robust"]
    assert all(finding.ok for finding in check_reports(to))
    # The same command does nothing again.
    files = {path: path.stat().st_mtime_ns for path in to.rglob("*.xz")}
    call("reproduce", "tiny", "-o", out, "--to", to)
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*.xz")} == files
    assert "training" not in capsys.readouterr().err
    call("reproduce", "--check", to)
    assert "holds" in capsys.readouterr().out
    _tampered(to, capsys)


def _tampered(to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = to / "tiny.json"
    text = path.read_text()
    body = json.loads(text)

    def fails(words: str) -> None:
        path.write_text(json.dumps(body))
        assert any(words in str(f) for f in check_reports(to) if not f.ok)

    body["method"][1]["quantities"]["robust"] += 0.05
    fails("the record does not say robust")
    body = json.loads(text)
    body["claim"]["claim"] = "Another."
    fails("the suite states another claim")
    body = json.loads(text)
    body["verdict"] = next(w for w in ("reproduced", "contradicted") if w != body["verdict"])
    fails("follows from the outcomes")
    with pytest.raises(SystemExit) as stop:
        app(["reproduce", "--check", str(to)])
    assert stop.value.code == 6
    body = json.loads(text) | {"verdict": "certainly"}
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match="verdict"):
        read_reports(to)
    path.write_text(text)
    key = read_reports(to)[0].method[0].runs["best"]
    (to / "runs" / f"{key}.verdicts.xz").unlink()
    assert any("is missing" in str(f) for f in check_reports(to) if not f.ok)
    capsys.readouterr()


def test_the_table_names_every_claim_and_counts_verdicts(known: Claims):
    assert markdown([]).count("0 reproduced, 0 not reproduced at this scale, 0 contradicted") == 1
    assert claims.find_claim("tiny")[0].method.name == "fgsm_at+ema"


def test_an_empty_folder_is_no_evidence(tmp_path: Path):
    with pytest.raises(InputError, match="holds no report"):
        list(check_reports(tmp_path))


def test_claims_are_listed(capsys: pytest.CaptureFixture[str]):
    call("reproduce")
    assert "pgd_at" in capsys.readouterr().out


def test_images_that_do_not_come_with_the_suite_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    body = json.loads(json.dumps(TINY))
    body["settings"]["tiny"]["data"] = None
    made = Claims.model_validate(body)
    monkeypatch.setattr("robustsuite.reproduction.claim.known_claims", lambda: made)
    with pytest.raises(SystemExit) as stop:
        app(["reproduce", "tiny"])
    assert stop.value.code == 2
    assert "--images" in capsys.readouterr().err
