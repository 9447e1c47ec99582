import json
import shutil
from pathlib import Path

import pytest

from robustsuite.errors import InputError, VerificationError
from robustsuite.results import migrations
from robustsuite.results.records import find_records, json_schema, load_record, write_schema
from robustsuite.results.schema import Record
from robustsuite.results.store import write_json

PUBLISHED_SCHEMA = Path(__file__).parents[2] / "leaderboards" / "schema" / "record.v1.json"


@pytest.fixture
def run(tmp_path, make_record):
    """A run directory with a sealed record."""
    folder = tmp_path / "runs" / "one"
    write_json(folder / "record.json", make_record())
    return folder


def edit(run, change):
    """Rewrite the record of a run after ``change(body)``."""
    path = run / "record.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def reseal(run, change=lambda body: None):
    """As `edit`, with run key and hashes that fit the new request: the work of someone who means it."""
    path = run / "record.json"
    edit(run, change)
    record = Record.model_validate(json.loads(path.read_text()))
    write_json(path, record.model_copy(update={"run_key": record.request.run_key}).sealed())


def test_loads_from_the_file_and_from_the_run(run, make_record):
    assert load_record(run) == load_record(run / "record.json") == make_record()


def test_one_digit_changed_is_found_by_the_hash(run):
    path = run / "record.json"
    text = path.read_text()
    assert text.count('"value": 0.96') == 1
    path.write_text(text.replace('"value": 0.96', '"value": 0.97'))
    with pytest.raises(VerificationError, match="edited after it was sealed") as caught:
        load_record(run)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["host"].update(cpu="better"),
        lambda b: b["provenance"].update(suite_version="9"),
        lambda b: b["flags"].append({"name": "x", "raised": False, "evidence": "", "remedy": ""}),
        lambda b: b.update(content_sha256="0" * 64),
        lambda b: b.update(outcome_sha256="0" * 64),
        lambda b: b["request"].update(seed=1),
    ],
)
def test_any_edit_is_found(run, change):
    edit(run, change)
    with pytest.raises(VerificationError, match="edited after it was sealed"):
        load_record(run)


def test_an_unsealed_record_says_so(run):
    edit(run, lambda b: b.update(content_sha256="", outcome_sha256=""))
    with pytest.raises(VerificationError, match="never sealed"):
        load_record(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b["request"]["model"].update(wieghts_sha256="0"), "unknown key 'request.model.wieghts_sha256'"),
        (lambda b: b["request"]["model"].update(wieghts_sha256="0"), "Did you mean 'weights_sha256'?"),
        (lambda b: b["request"].pop("seed"), "the key 'request.seed' is missing"),
        (
            lambda b: b["metrics"][0].update(value=1.5),
            "'metrics.0.value': input should be less than or equal to 1, got 1.5",
        ),
        (lambda b: b.update(status="done"), "'status': input should be 'complete', 'partial' or 'failed', got 'done'"),
        (lambda b: b.update(metrics=[{}] * 9), "and 28 more"),
        (lambda b: b["request"]["threat"].update(eps="a lot"), "'request.threat.eps' must be a number like 8/255"),
        (lambda b: b["request"]["threat"].update(eps="1e999999999"), "must be a number like 8/255"),
        (lambda b: b["request"]["threat"].update(eps="1/0"), "is not a number"),
    ],
)
def test_wrong_keys_and_values_are_named(run, change, words):
    edit(run, change)
    if "number" in words:  # eps is looked at when the hashes fit
        reseal(run)
    with pytest.raises(InputError) as caught:
        load_record(run)
    assert words in str(caught.value)
    assert str(run / "record.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b["request"]["threat"].update(eps_float=0.1), "eps_float is 0.1"),
        (lambda b: b["metrics"][1].update(ci95=[0.6, 0.6]), "the interval of robust_accuracy"),
        (lambda b: b["metrics"][1].update(value=0.6049), "robust_accuracy = 0.6049 is not a share of 100"),
        (lambda b: b["metrics"].append(b["metrics"][0]), "distinct metrics"),
        (lambda b: b["metrics"][0].update(n=101), "over 101 examples, the data has 100"),
    ],
)
def test_a_resealed_record_that_contradicts_itself_is_found(run, change, words):
    reseal(run, change)
    with pytest.raises(VerificationError, match=words):
        load_record(run)


def test_a_run_key_of_another_request_is_found(run):
    path = run / "record.json"
    write_json(path, load_record(run).model_copy(update={"run_key": "0" * 16}).sealed())
    with pytest.raises(VerificationError, match="run_key is 0000000000000000"):
        load_record(run)


def test_a_newer_schema_asks_for_an_upgrade(run):
    edit(run, lambda b: b.update(schema_version=2, new_field=[]))
    with pytest.raises(InputError, match=r"schema version 2, this robustsuite reads up to 1: upgrade robustsuite"):
        load_record(run)


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.0])
def test_versions_that_never_were(run, version):
    edit(run, lambda b: b.update(schema_version=version))
    with pytest.raises(InputError, match=r"never|ever wrote|whole number"):
        load_record(run)


def as_version_0(body):
    """A made-up old format: the seed lay at the top and there was no `unreliable`; sealed as it was then."""
    import hashlib

    from robustsuite.results.schema import canonical

    body["schema_version"] = 0
    body["seed"] = body["request"].pop("seed")
    body.pop("unreliable")
    outside = ("provenance", "host", "outcome_sha256", "content_sha256")
    outcome = {k: v for k, v in body.items() if k not in outside}
    body["outcome_sha256"] = hashlib.sha256(canonical(outcome)).hexdigest()
    body.pop("content_sha256")
    body["content_sha256"] = hashlib.sha256(canonical(body)).hexdigest()


def from_version_0(body):
    body["request"]["seed"] = body.pop("seed")
    return body | {"schema_version": 1, "unreliable": False}


def test_an_older_record_is_migrated_and_sealed_anew(run, monkeypatch, make_record):
    monkeypatch.setitem(migrations.MIGRATIONS, 0, from_version_0)
    edit(run, as_version_0)
    assert load_record(run) == make_record()
    edit(run, lambda b: b["host"].update(cpu="better"))
    with pytest.raises(VerificationError, match="edited after it was sealed"):
        load_record(run)
    edit(run, lambda b: b.pop("seed"))
    with pytest.raises(InputError, match="not a valid record of its schema version 0"):
        load_record(run)


def test_migrations_chain_and_leave_their_input_alone():
    chain = {1: lambda b: b | {"schema_version": 2, "a": 1}, 2: lambda b: b | {"schema_version": 3, "b": b["a"] + 1}}
    body = {"schema_version": 1}
    assert migrations.migrate(body, "x", chain, 3) == {"schema_version": 3, "a": 1, "b": 2}
    assert body == {"schema_version": 1}


def test_a_run_without_a_record(tmp_path):
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(InputError, match="has not finished; run its command again"):
        load_record(tmp_path)
    (tmp_path / "request.json").unlink()
    with pytest.raises(InputError, match=r"holds no record\.json"):
        load_record(tmp_path)


def test_values_that_json_cannot_keep(run):
    path = run / "record.json"
    path.write_text(path.read_text().replace('"arch_params": {}', '"arch_params": {"width": 1e999}'))
    with pytest.raises(InputError, match=r"JSON cannot keep|not a record"):
        load_record(run)


def test_find_records_reports_the_bad_ones_and_goes_on(tmp_path, run, make_record):
    runs = run.parent
    shutil.copytree(run, runs / "cut")
    whole = (runs / "cut" / "record.json").read_text()
    (runs / "cut" / "record.json").write_text(whole[: len(whole) // 2])
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "request.json").write_text("{}")
    (run / "request.json").write_text("{}")
    (run / "checks.json").write_text("{cut")
    (run / "adversarials").mkdir()
    (run / "adversarials" / "index.json").write_text("")
    other = make_record("other", seed=1)
    write_json(tmp_path / "published" / f"{other.run_key}.json", other)
    write_json(tmp_path / "published" / "by-another-name.json", make_record("third", seed=2))
    write_json(tmp_path / "published" / "0123456789abcdef.json", {"not": "a record"})
    write_json(tmp_path / "published" / "board.json", {"kind": "board"})
    write_json(tmp_path / "published" / ".hidden" / "record.json", {})
    records, problems = find_records([runs, tmp_path / "published", run, tmp_path / "nowhere"])
    assert sorted(r.request.model.name for r in records) == ["net", "other", "third"]
    bad = {p.path.relative_to(tmp_path).as_posix(): p.reason for p in problems}
    assert bad.keys() == {"runs/cut/record.json", "runs/unfinished", "published/0123456789abcdef.json", "nowhere"}
    assert "cut short" in bad["runs/cut/record.json"]
    assert "not finished" in bad["runs/unfinished"]
    assert all(str(p.path) in str(p) for p in problems)


def test_find_records_in_nothing(tmp_path):
    assert find_records([]) == find_records([tmp_path]) == ([], [])


def test_the_published_schema_is_the_code_s():
    again = (
        'python -c "from robustsuite.results.records import write_schema; '
        "write_schema('leaderboards/schema/record.v1.json')\""
    )
    assert json.loads(PUBLISHED_SCHEMA.read_text()) == json_schema(), f"the schema changed; regenerate it: {again}"


def test_the_schema_forbids_unknown_keys(tmp_path):
    write_schema(tmp_path / "schema.json")
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert schema["properties"]["schema_version"]["const"] == 1
    assert all(part["additionalProperties"] is False for part in (schema, *schema["$defs"].values()))
