"""Corrections form a chain, and attestations are written once."""

import json

import pytest

from robustsuite.errors import InputError, UsageError, VerificationError
from robustsuite.results.published import Attestation, Correction
from robustsuite.results.statements import (
    corrections,
    statement_sha256,
    utc_now,
    write_attestation,
    write_correction,
)

UTC = "2030-01-31T12:00:00Z"


def lower(entry: str = "run-1", **change) -> Correction:
    body = {"board": "b", "entry": entry, "number": 1, "utc": UTC, "by": "me", "action": "lower", "reason": "broken"}
    return Correction.model_validate(body | change)


def test_corrections_are_numbered_and_chained(tmp_path):
    paths = [write_correction(tmp_path, lower(examples=(i,))) for i in range(3)]
    assert [p.name for p in paths] == ["run-1-1.json", "run-1-2.json", "run-1-3.json"]
    write_correction(tmp_path, lower("run"))  # a name that the other begins with
    write_correction(tmp_path, lower("run-1-1"))
    said = corrections(tmp_path, "b", "run-1")
    assert [c.number for c in said] == [1, 2, 3]
    assert [c.examples for c in said] == [(0,), (1,), (2,)]
    assert said[0].previous_sha256 == ""
    assert said[2].previous_sha256 == statement_sha256(said[1])
    assert len(corrections(tmp_path, "b", "run")) == 1
    assert corrections(tmp_path, "b", "other") == []


def test_an_edited_or_missing_correction_is_found(tmp_path):
    paths = [write_correction(tmp_path, lower(examples=(i,))) for i in range(3)]
    whole = paths[1].read_text()
    paths[1].write_text(whole.replace("broken", "nothing"))
    with pytest.raises(VerificationError, match="the correction before it was changed"):
        corrections(tmp_path, "b", "run-1")
    paths[1].unlink()
    with pytest.raises(VerificationError, match="without gaps"):
        corrections(tmp_path, "b", "run-1")
    paths[1].write_text(json.dumps(json.loads(whole) | {"entry": "run-2"}))
    with pytest.raises(VerificationError, match="of run-2"):
        corrections(tmp_path, "b", "run-1")
    paths[1].write_text('{"kind": "correction"}')
    with pytest.raises(InputError, match="'board' is missing"):
        corrections(tmp_path, "b", "run-1")


@pytest.mark.parametrize("change", [{"board": "../b"}, {"entry": "a/b"}, {"board": ".b"}, {"utc": "yesterday"}])
def test_names_and_times_are_checked(tmp_path, change):
    with pytest.raises(UsageError):
        write_correction(tmp_path, lower(**change))
    assert not list(tmp_path.iterdir())


def test_an_attestation_is_written_once(tmp_path):
    said = Attestation(
        run_key="a" * 16, content_sha256="b" * 64, level=2, by="me", utc=utc_now(), suite_version="1", findings=("ok",)
    )
    path = write_attestation(tmp_path, "b", said)
    assert path == tmp_path / "attestations" / "b" / f"{'a' * 16}-2.json"
    assert Attestation.model_validate_json(path.read_text()) == said
    with pytest.raises(UsageError, match="never edited"):
        write_attestation(tmp_path, "b", said.model_copy(update={"by": "you"}))
