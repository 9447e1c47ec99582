import csv
import html
import io
import json
import random
import re
import subprocess
import sys
import time

import pytest

from robustsuite.errors import InputError, UsageError
from robustsuite.leaderboard.board import boards
from robustsuite.leaderboard.display import describe, table_rows
from robustsuite.leaderboard.export import build, to_csv, to_json, to_latex, to_markdown

HOSTILE = [
    "a|b",
    "back\\|slash",
    "\\end{tabular} 100% & $x_1^2$ #~{}",
    "line\nbreak\r\n| 1 | fake |",
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@cmd",
    "\t=1",
    "<script>alert(1)</script>",
    "[click](javascript:x) ![i](http://x/y.png) https://example.org www.example.org",
    "\u202egnp.exe \x1b[31mred\x00",
    'quote " comma, semicolon;',
    "网络 ü 🙂",
    "x" * 500,
    "*bold* _it_ `code` ~no~",
]


@pytest.fixture
def hostile(make_record):
    (board,) = boards([make_record(name, seed=i, robust=60 + i, arch=name) for i, name in enumerate(HOSTILE)])
    return board


def split_cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_by_hand(make_record):
    # 121 of 200: exact interval [53.4, 67.3]
    record = make_record("at", robust=121, clean=192, certified=0, n=200)
    (board,) = boards([record])
    text = to_markdown(board)
    header, rule, row = (line for line in text.splitlines() if line.startswith("| "))
    assert len(header) == len(rule) == len(row)
    cells = dict(zip(map(str.strip, split_cells(header)), map(str.strip, row.strip("| ").split(" | ")), strict=True))
    assert cells["Robust %"] == "60.5 [53.4, 67.3]"
    assert cells["Clean %"] == "96.0 [92.3, 98.3]"
    assert (cells["Rank"], cells["Model"], cells["Certifier"]) == ("1", "at", "ibp (deterministic)")
    assert (cells["Gap %"], cells["n"], cells["Run"]) == ("60.5", "200", record.run_key)
    assert "Threat model: Linf, eps 0.15" in text
    assert "standard version 1: ibp (when supported), apgd-ce" in text


def test_display_rows_are_text_and_mark_ties(make_record):
    (board,) = boards([make_record("a"), make_record("b", seed=1), make_record("c", seed=2, status="partial")])
    rows = table_rows(board)
    assert [(r["Rank"], r["Model"], r["Notes"]) for r in rows] == [
        ("1=", "a", ""),
        ("1=", "b", ""),
        ("-", "c", "partial"),
    ]
    assert rows[0]["Robust %"] == "60.0 [49.7, 69.7]"
    assert all(isinstance(text, str) for row in rows for text in row.values())
    assert describe(board)["Data"].startswith("digits-test, 100 examples")


def test_hostile_names_in_markdown(hostile):
    lines = [line for line in to_markdown(hostile).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(HOSTILE)
    assert {len(split_cells(line)) for line in lines} == {13}
    assert len({len(line) for line in lines}) == 1
    text = "\n".join(lines)
    for raw in ("<script>", "https://", " www.", "\x1b", "\u202e", "\x00", " *bold", " `code"):
        assert raw not in text
    assert "网络 ü 🙂" in text


def test_hostile_names_render_as_they_are_written(hostile):
    markdown_it = pytest.importorskip("markdown_it")
    page = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(to_markdown(hostile))
    rows = page[page.index("<tbody>") : page.index("</tbody>")].split("<tr>")[1:]
    assert len(rows) == len(HOSTILE)
    assert {row.count("<td>") for row in rows} == {13}
    assert not re.findall(r"<(?!/?(?:td|tr)>)[^>]*>", "".join(rows))
    cells = {html.unescape(re.findall(r"<td>(.*?)</td>", row)[1]) for row in rows}
    assert {"a|b", "back\\|slash", "*bold* _it_ `code` ~no~", "line break | 1 | fake |"} <= cells


def test_hostile_names_in_latex(hostile):
    table = to_latex(hostile)
    body = table[table.index(r"\midrule") : table.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(HOSTILE)
    for line in body:
        bare = re.sub(r"\\[&%$#_{}]", "", line)
        assert bare.count("&") == 8
        assert bare.endswith(r"\\")
        assert not re.search(r"[%$#_^~]", bare)
    assert table.count(r"\end{tabular}") == 1
    assert table.count(r"\toprule") == 1


def test_hostile_names_in_csv(hostile):
    rows = list(csv.DictReader(io.StringIO(to_csv(hostile))))
    assert len(rows) == len(HOSTILE)
    names = {row["name"] for row in rows}
    assert {"a|b", "'=HYPERLINK(1)", "'+1", "'-1", "'@cmd", "'=1", 'quote " comma, semicolon;'} <= names
    assert all(row["name"][0] not in "=+-@\t\r" for row in rows)
    assert all("\n" not in value for row in rows for value in row.values())
    assert "x" * 500 in names


def test_hostile_names_survive_json_as_they_are(hostile):
    assert {row["name"] for row in json.loads(to_json(hostile))["rows"]} == set(HOSTILE)


def test_json_and_csv_hold_raw_fractions(make_record):
    record = make_record(robust=121, clean=192, certified=40, n=200)
    (board,) = boards([record, make_record("doubt", seed=1, n=200, robust=None, certified=None, status="failed")])
    body = json.loads(to_json(board))
    first, second = body["rows"]
    robust = record.metric("robust_accuracy")
    assert first["metrics"][1] == {"name": "robust_accuracy", "value": 0.605, "ci95": list(robust.ci95), "n": 200}
    assert [m["name"] for m in second["metrics"]] == ["clean_accuracy"]
    assert (first["rank"], second["rank"], second["status"]) == (1, None, "failed")
    assert first["certifiers"] == [{"name": "ibp", "guarantee": "deterministic"}]
    assert body["threat"] == {"norm": "Linf", "eps": "0.15"}
    assert body["protocol"] == record.request.protocol.model_dump(mode="json")
    line, other = csv.DictReader(io.StringIO(to_csv(board)))
    assert (float(line["robust_accuracy"]), float(line["robust_accuracy_lower"])) == (0.605, robust.ci95[0])
    assert (line["rank"], other["rank"], other["robust_accuracy"], other["gap"]) == ("1", "", "", "")


def test_latex_is_a_booktabs_table(make_record):
    (board,) = boards([make_record("pgd_at", threat="Linf:8/255")])
    text = to_latex(board)
    for part in (
        r"\begin{tabular}{lllllllll}",
        r"\toprule",
        r"\bottomrule",
        r"pgd\_at",
        r"Robust \%",
        "60.0 [49.7, 69.7]",
    ):
        assert part in text
    assert text.startswith("% Data: digits-test")


def many(make_record, count):
    return [
        make_record(
            f"net-{i % (count // 2)}",
            seed=i,
            robust=i % 101,
            certified=0,
            clean=100 - i % 7,
            threat=("Linf:0.15", "Linf:8/255", "L2:0.5")[i % 3],
            status="partial" if i % 11 == 0 else "complete",
            flags=("noise",) if i % 5 == 0 else (),
        )
        for i in range(count)
    ]


def test_the_order_of_records_changes_no_byte(make_record, tmp_path):
    records = [*many(make_record, 60), make_record(robust=1), make_record(robust=2), make_record("x", robust=2)]
    contents = []
    for seed in range(3):
        random.Random(seed).shuffle(records)
        paths = build(records, tmp_path / str(seed))
        contents.append({p.relative_to(tmp_path / str(seed)): p.read_bytes() for p in paths})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == 3 * 4 + 1
    again = build(records, tmp_path / "0")
    assert {p.relative_to(tmp_path / "0"): p.read_bytes() for p in again} == contents[0]


def test_the_index_lists_every_board(make_record, tmp_path):
    paths = build(many(make_record, 12), tmp_path / "boards", ["md", "json", "md"])
    assert [p.name for p in paths] == [
        "digits-test-l2-0.5-standard-v1.md",
        "digits-test-l2-0.5-standard-v1.json",
        "digits-test-linf-0.15-standard-v1.md",
        "digits-test-linf-0.15-standard-v1.json",
        "digits-test-linf-8-255-standard-v1.md",
        "digits-test-linf-8-255-standard-v1.json",
        "README.md",
    ]
    assert all(p.is_file() for p in paths)
    index = paths[-1].read_text(encoding="utf-8")
    assert "[md](digits-test-linf-8-255-standard-v1.md), [json](digits-test-linf-8-255-standard-v1.json)" in index
    assert index.count("4 (") == 3


def test_conflicts_are_on_the_page(make_record, tmp_path):
    paths = build([make_record(robust=60), make_record(robust=61)], tmp_path, ["md"])
    assert "different outcomes" in paths[0].read_text(encoding="utf-8")


def test_a_readme_of_the_user_is_kept(make_record, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match="choose another folder"):
        build([make_record()], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_bad_calls(make_record, tmp_path):
    with pytest.raises(UsageError, match=r"no table format 'xlsx'. Available: md, csv, json, tex"):
        build([make_record()], tmp_path, ["xlsx"])
    with pytest.raises(InputError, match="no records"):
        build([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_records_take_seconds(make_record, tmp_path):
    records = many(make_record, 1000)
    start = time.perf_counter()
    build(records, tmp_path)
    assert time.perf_counter() - start < 10


def test_boards_need_no_torch(make_record, tmp_path):
    from robustsuite.results.store import write_json

    write_json(tmp_path / "runs" / "a" / "record.json", make_record())
    code = (
        "import sys; from pathlib import Path\n"
        "from robustsuite.leaderboard import board, display, export\n"
        "from robustsuite.results.records import find_records\n"
        "records, problems = find_records([Path(sys.argv[1], 'runs')])\n"
        "export.build(records, Path(sys.argv[1], 'boards'))\n"
        "print(len(records), problems, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 [] False"
