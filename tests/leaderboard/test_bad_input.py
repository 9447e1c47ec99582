"""Published folders as strangers leave them: a clear outcome for each, and nothing that costs the other entries."""

import hashlib
import json
import lzma
import time

import numpy as np
import pytest

from robustsuite.leaderboard.board import boards, defined_board
from robustsuite.leaderboard.check import check_folder
from robustsuite.leaderboard.display import table_rows
from robustsuite.leaderboard.export import contents, write
from robustsuite.leaderboard.published import read_published
from robustsuite.results.packed import pack, unpack
from robustsuite.results.published import Correction
from robustsuite.results.schema import Record
from robustsuite.results.statements import statement_sha256
from robustsuite.results.store import array_bytes, json_bytes, parse_arrays, write_json


@pytest.fixture
def victim(published):
    return sorted((published / "runs" / "toy").glob("*.json"))[0]


def look(root):
    """(the one board, problems by path)"""
    found = read_published(root)
    (board,) = [defined_board(b) for b in found.boards]
    return board, {p.path.relative_to(root).as_posix(): p.reason for p in found.problems}


def broken(root):
    return " ".join(f"{f.name}: {f.detail}\n" for f in check_folder(root) if not f.ok)


def test_a_record_of_a_newer_schema(published, victim):
    body = json.loads(victim.read_text())
    victim.write_text(json.dumps(body | {"schema_version": 2, "news": True}))
    board, problems = look(published)
    assert len(board.rows) == 2
    assert (
        "has schema version 2, this robustsuite reads up to 1: upgrade robustsuite"
        in problems[f"runs/toy/{victim.name}"]
    )
    assert "upgrade robustsuite" in broken(published)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": "1"}', "\x00", '{"a": 1, "a": 1}'])
def test_what_is_no_record(published, victim, text):
    victim.write_text(text)
    board, problems = look(published)
    assert len(board.rows) == 2
    assert list(problems) == [f"runs/toy/{victim.name}"]
    assert f"runs/toy/{victim.name}" in broken(published)


def hostile(body, path, value):
    *way, last = path
    for key in way:
        body = body[key]
    body[last] = value


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("request", "data", "n"), 10**400),
        (("metrics", 0, "n"), 10**400),
        (("request", "threat", "eps"), "1e99"),
        (("request", "threat", "eps"), "9" * 500),
        (("request", "data", "n"), 10**9),
        (("request", "model", "draws"), 10**300),
        (("request", "protocol", "stages"), []),
        (("stages",), []),
        (("files",), []),
        (("files", 0, "path"), "../../../etc/passwd"),
        (("files", 0, "bytes"), -1),
        (("files", 0, "bytes"), 1),
    ],
)
def test_records_that_a_stranger_made_up(published, victim, path, value, sealed):
    """Whatever is wrong is said, the other entries stay, and nothing of it is ranked."""
    body = json.loads(victim.read_text())
    hostile(body, path, value)
    victim.write_text(json.dumps(body))
    if sealed:
        record = Record.model_validate(body)
        victim.write_bytes(json_bytes(record.model_copy(update={"run_key": record.request.run_key}).sealed(), "it"))
    start = time.perf_counter()
    board, _ = look(published)
    assert time.perf_counter() - start < 10
    assert [row.rank for row in board.rows if row.key != victim.stem] == [1, 1]
    assert [row.rank for row in board.rows if row.key == victim.stem] in ([], [None])
    assert f"runs/toy/{victim.name}" in broken(published)


def edit_verdicts(victim, change):
    """Change the victim's verdicts, and make the hashes fit."""
    arrays, meta = parse_arrays(unpack(victim.with_suffix(".verdicts.xz").read_bytes(), 1 << 24, "it"), "it")
    changed = change(arrays, meta)
    body = array_bytes(arrays if changed is None else changed, meta, "it")
    victim.with_suffix(".verdicts.xz").write_bytes(pack(body))
    record = Record.model_validate_json(victim.read_text())
    ref = record.files[0].model_copy(update={"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})
    victim.write_bytes(json_bytes(record.model_copy(update={"files": (ref, *record.files[1:])}).sealed(), "it"))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, m: {k: v[:-1] for k, v in a.items()},
        lambda a, m: {k: np.stack([v, v], 1) for k, v in a.items()},
        lambda a, m: {k: v for k, v in a.items() if k != "fgsm/distance"},
        lambda a, m: {k: v.astype(np.float64) * np.nan for k, v in a.items()},
        lambda a, m: m.update(stages="clean"),
        lambda a, m: m.update(stages=["clean", 7]),
        lambda a, m: m.update(stages=["clean"]),
        lambda a, m: m.update(stages=[]),
        lambda a, m: m.update(run_key="0" * 16),
    ],
    ids=["short", "wide", "lacking", "nan", "text", "number", "left out", "none", "another run"],
)
def test_verdicts_that_a_stranger_made_up(published, victim, change):
    edit_verdicts(victim, change)
    board, problems = look(published)
    assert [(row.key == victim.stem, row.rank) for row in board.rows] == [(False, 1), (False, 1), (True, None)]
    assert list(problems) == [f"runs/toy/{victim.name}"]
    assert f"runs/toy/{victim.name}" in broken(published)


def test_verdicts_without_labels_give_no_pictures(published, victim):
    edit_verdicts(victim, lambda a, m: {k: v for k, v in a.items() if k != "label"})
    assert f"runs/toy/{victim.name}" in broken(published)


def test_missing_verdicts_show_the_entry_without_a_rank(published, victim):
    victim.with_suffix(".verdicts.xz").unlink()
    board, problems = look(published)
    assert len(board.rows) == 3
    (row,) = [r for r in board.rows if r.rank is None]
    assert (row.key, row.level, row.kept, row.best_known) == (victim.stem, None, b"", None)
    assert row.notes[0] == "unverified"
    assert "verdicts.xz is missing" in row.notes[1]
    assert "is missing" in problems[f"runs/toy/{victim.name}"]
    assert f"runs/toy/{victim.name}: verdicts.safetensors: {victim.stem}.verdicts.xz is missing" in broken(published)
    shown = next(cells for cells in table_rows(board) if cells["Run"] == victim.stem)
    assert (shown["Rank"], shown["Verified"]) == ("-", "no")


@pytest.mark.parametrize(
    "packed",
    [b"", b"not xz", lzma.compress(b"\0" * (1 << 28)), lzma.compress(b"short"), lzma.compress(b"x") + b"more"],
    ids=["empty", "no xz", "bomb", "other", "more behind"],
)
def test_verdicts_that_are_none(published, victim, packed):
    victim.with_suffix(".verdicts.xz").write_bytes(packed)
    start = time.perf_counter()
    board, problems = look(published)
    assert time.perf_counter() - start < 5
    assert [row.rank for row in board.rows] == [1, 1, None]
    assert list(problems) == [f"runs/toy/{victim.name}"]


def statement(entry, number, previous="", **parts):
    body = {"board": "toy", "entry": entry, "number": number, "by": "a", "utc": "2026-01-01T00:00:00Z", "reason": "r"}
    return Correction.model_validate(body | {"action": "annotate", "previous_sha256": previous} | parts)


def put(root, name, said):
    path = root / "corrections" / "toy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_bytes(said, name))


@pytest.mark.parametrize("case", ["gap", "same number twice", "broken chain", "edited", "of another entry", "no JSON"])
def test_corrections_that_conflict_take_the_entry_out_until_they_are_settled(published, victim, case):
    key = victim.stem
    first = statement(key, 1)
    second = statement(key, 2, statement_sha256(first))
    put(published, f"{key}-1.json", first)
    if case == "gap":
        put(published, f"{key}-3.json", statement(key, 3, statement_sha256(second)))
    elif case == "same number twice":
        put(published, f"{key}-01.json", statement(key, 1, reason="another"))
    elif case == "broken chain":
        put(published, f"{key}-2.json", statement(key, 2, "0" * 64))
    elif case == "edited":
        put(published, f"{key}-2.json", second)
        put(published, f"{key}-1.json", statement(key, 1, reason="never mind"))
    elif case == "of another entry":
        put(published, f"{key}-2.json", statement("0" * 16, 2, statement_sha256(first)))
    else:
        (published / "corrections" / "toy" / f"{key}-2.json").write_text("{")
    board, problems = look(published)
    assert [row.rank for row in board.rows] == [1, 1, None]
    assert "its corrections are damaged" in board.rows[2].notes
    assert [path.startswith(f"corrections/toy/{key}-") for path in problems] == [True]
    assert f"corrections/toy/{key}-" in broken(published)


def test_a_chain_that_holds_keeps_the_entry_in(published, victim):
    first = statement(victim.stem, 1)
    put(published, f"{victim.stem}-1.json", first)
    put(published, f"{victim.stem}-2.json", statement(victim.stem, 2, statement_sha256(first)))
    board, problems = look(published)
    assert problems == {}
    assert [row.rank for row in board.rows] == [1, 1, 1]


def test_a_board_without_entries(define, tmp_path):
    define(tmp_path)
    board, problems = look(tmp_path)
    assert (board.rows, problems) == ((), {})
    paths = write([board], tmp_path / "tables")
    assert "There are no entries yet." in paths[0].read_text()
    assert "0 (0 ranked)" in paths[-1].read_text()
    assert all(f.ok for f in check_folder(tmp_path))


def test_a_broken_definition_costs_no_other_board(published, define):
    (published / "boards" / "bad.yaml").write_text("{")
    define(published, "empty")
    found = read_published(published)
    assert [b.definition.id for b in found.boards] == ["empty", "toy"]
    assert "bad.yaml is not valid YAML" in found.problems[0].reason
    assert "boards/bad.yaml" in broken(published)


HOSTILE = ["<script>alert(1)</script>", "../../etc/passwd", "a|b\n| 1 | fake |", "\\end{tabular}", "=1+1", "\u202exyz"]


def test_names_with_markup_and_path_separators(make_record, define, tmp_path):
    for i, name in enumerate(HOSTILE):
        record = make_record(name, seed=i, arch=name, robust=60 + i, weights_sha256=f"{i:064x}")
        write_json(tmp_path / "runs" / "toy" / f"{record.run_key}.json", record)
    define(tmp_path, title="<b>Toys</b>\n# x", description="[x](javascript:y) | `z`")
    board, _ = look(tmp_path)
    assert {row.label for row in board.rows} == set(HOSTILE)
    made = contents([board])
    assert sorted(made) == ["README.md", "toy.csv", "toy.json", "toy.md", "toy.tex"]
    page = made["toy.md"].decode()
    assert "# &lt;b&gt;Toys&lt;/b&gt; # x\n" in page
    assert "\\[x\\](javascript:y) \\| \\`z\\`" in page
    for raw in ("<script>", "\u202e", "<b>", "\n| 1 | fake"):
        assert raw not in page
    assert b"'=1+1" in made["toy.csv"]
    assert made["toy.tex"].count(rb"\end{tabular}") == 1
    assert {row["name"] for row in json.loads(made["toy.json"])["rows"]} == set(HOSTILE)


def test_ten_thousand_entries(make_record, tmp_path):
    """Ranks, marks and four formats of one table; reading ten thousand files is a test of its own."""
    record = make_record()
    records = []
    for i in range(10_000):
        made = make_record(f"net-{i}", seed=i, robust=i % 101, clean=100, certified=0) if i < 101 else None
        if made is None:
            like = records[i % 101]
            request = like.request.model_copy(
                update={"seed": i, "model": like.request.model.model_copy(update={"name": f"net-{i}"})}
            )
            made = like.model_copy(update={"request": request, "run_key": f"{i:016x}", "outcome_sha256": f"{i:064x}"})
        records.append(made)
    assert record.run_key == records[0].run_key
    start = time.perf_counter()
    (board,) = boards(records)
    made = contents([board])
    seconds = time.perf_counter() - start
    assert len(board.rows) == 10_000
    assert len(made["digits-test-linf-0.15-standard-v1.md"].splitlines()) > 10_000
    assert seconds < 60


@pytest.mark.slow
def test_ten_thousand_files(make_record, define, tmp_path):
    define(tmp_path)
    for i in range(10_000):
        record = make_record(f"net-{i}", seed=i, robust=i % 101, clean=100, certified=0)
        path = tmp_path / "runs" / "toy" / f"{record.run_key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json_bytes(record, "it"))
    start = time.perf_counter()
    board, _ = look(tmp_path)
    contents([board])
    assert time.perf_counter() - start < 120
    assert len(board.rows) == 10_000
