import hashlib
import json
import math
import os
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustsuite.cli.board_import import app
from robustsuite.errors import InputError
from robustsuite.leaderboard.board import defined_board
from robustsuite.leaderboard.definition import load_definition
from robustsuite.leaderboard.import_robustbench import published_order, read
from robustsuite.leaderboard.import_write import write
from robustsuite.leaderboard.published import load_imported, read_published
from robustsuite.results.statistics import interval

BOARD = "robustbench-cifar10-linf"
ENTRY = {
    "link": "https://arxiv.org/abs/1706.06083",
    "name": "A defense",
    "authors": "A, B",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "ICLR 2018",
    "architecture": "WideResNet-34-10",
    "eps": "8/255",
    "clean_acc": "87.14",
    "reported": "45.8",
    "autoattack_acc": "44.04",
    "unreliable": False,
}
# Of robustbench.github.io, 5 February 2025; two pairs have equal accuracies there.
PAGE_RANKS = {
    1: "Bartoldson2024Adversarial_WRN-94-16",
    2: "Amini2024MeanSparse_S-WRN-94-16",
    3: "Bartoldson2024Adversarial_WRN-82-8",
    16: "Kang2021Stable",
    17: "Rebuffi2021Fixing_70_16_cutmix_ddpm",
    36: "Carmon2019Unlabeled",
    47: "Gowal2020Uncovering_70_16",
    48: "Sehwag2020Hydra",
    79: "Madry2018Towards",
    94: "Xiao2020Enhancing",
    98: "Alfarra2020ClusTR",
    99: "Standard",
}
PAGE_SHA256 = "6c7e70db34c4a141c81aed9b7d920d4fa3222c905e49f23b8e38beea200d8475"
"""Over the 99 names of that page in its order, one a line, matched by clean, AutoAttack and external accuracy."""


@pytest.fixture
def put(tmp_path):
    """Writes ``source/<place>/<name>.json`` with changed fields of one entry, or with raw text."""

    def put(stem="Madry2018Towards", place="cifar10/Linf", raw=None, **changes):
        path = tmp_path / "source" / place / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {k: v for k, v in {**ENTRY, **changes}.items() if v is not ...}
        path.write_text(json.dumps(body) if raw is None else raw)
        return tmp_path / "source"

    return put


@pytest.fixture
def model_info(shared_data):
    folder = shared_data / "robustbench" / "model_info"
    if not folder.is_dir():
        pytest.skip(f"RobustBench's model_info not found at {folder}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def reasons(result) -> dict[str, str]:
    return {problem.path.name: problem.reason for problem in result.problems}


def raised(entry) -> dict[str, str]:
    return {flag.name: flag.evidence for flag in entry.flags if flag.raised}


def test_the_order_is_that_of_robustbenchs_page(model_info, tmp_path):
    result = read(model_info)
    names = [kept.entry.id for kept in published_order(result.kept)]
    assert {rank: names[rank - 1] for rank in PAGE_RANKS} == PAGE_RANKS
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == PAGE_SHA256
    write(result, tmp_path)
    found = read_published(tmp_path)
    assert not found.problems
    rows = defined_board(found.boards[0]).rows
    assert [row.key for row in rows] == names
    assert [row.reported_rank for row in rows] == list(range(1, 100))
    assert {row.rank for row in rows} == {None}


def test_every_real_file_becomes_an_entry_that_says_what_the_file_says(model_info):
    result = read(model_info)
    assert (result.read, len(result.kept), result.problems) == (99, 99, ())
    for kept in result.kept:
        entry = kept.entry
        source = json.loads((model_info / entry.source_file).read_bytes())
        assert (kept.board, entry.provenance) == (BOARD, "robustbench")
        assert entry.eps == source["eps"]
        assert entry.extra_data is source["additional_data"]
        assert entry.unreliable is source.get("unreliable", False)
        assert entry.source_sha256 == hashlib.sha256((model_info / entry.source_file).read_bytes()).hexdigest()
        for name, key in (("clean_accuracy", "clean_acc"), ("robust_accuracy", "autoattack_acc")):
            metric = entry.metric(name)
            count = round(Decimal(source[key]) * 100)
            assert metric is not None
            assert (metric.n, metric.value) == (10_000, count / 10_000)
            assert metric.ci95 == interval(count, 10_000)


def test_overrides_are_corrections_with_their_reasons(model_info):
    kept = {k.entry.id: k for k in read(model_info).kept}
    actions = [c.action for k in kept.values() for c in k.corrections]
    assert (actions.count("lower"), actions.count("unreliable"), actions.count("annotate")) == (16, 2, 1)
    xiao = kept["Xiao2020Enhancing"]
    assert [(c.number, c.action, c.robust_accuracy) for c in xiao.corrections] == [
        (1, "lower", 0.074),
        (2, "unreliable", None),
    ]
    assert "30 restarts of Square Attack" in xiao.corrections[0].reason
    assert "<" not in xiao.corrections[0].reason
    assert "this adaptive evaluation (https://arxiv.org/abs/2002.08347)" in xiao.corrections[0].reason
    assert xiao.entry.details["source"]["footnote"].count("<a href") == 1
    assert kept["Qin2019Adversarial"].corrections[0].action == "annotate"  # its external evaluation equals AutoAttack's
    assert {c.utc for k in kept.values() for c in k.corrections} == {""}


def test_an_eps_of_0_031_is_not_8_255(model_info):
    others = {k.entry.id: k.entry for k in read(model_info).kept if k.entry.eps != "8/255"}
    assert {entry.eps for entry in others.values()} == {"0.031"}
    assert sorted(others) == [
        "Atzmon2019Controlling",
        "Cui2020Learnable_34_10",
        "Cui2020Learnable_34_20",
        "Huang2020Self",
        "Xiao2020Enhancing",
        "Zhang2019Theoretically",
    ]
    assert all("0.031" in raised(entry)["other_eps"] for entry in others.values())
    assert sum("other_eps" in raised(k.entry) for k in read(model_info).kept) == len(others)


def test_two_imports_give_the_same_bytes_and_the_second_changes_nothing(put, tmp_path):
    source = put(external="43.90", footnote="By APGD.", unreliable=True)
    put("Other")
    first = write(read(source), tmp_path / "a")
    assert write(read(source), tmp_path / "b").unchanged == 0
    before = content(tmp_path / "a")
    assert content(tmp_path / "b") == before
    assert len(first.new) == len(before) == 5  # a definition, two entries, two corrections
    again = write(read(source), tmp_path / "a")
    assert (again.new, again.unchanged, again.refused) == ((), 2, ())
    assert content(tmp_path / "a") == before
    assert load_definition(tmp_path / "a" / "boards" / f"{BOARD}.yaml").threat.eps == "8/255"


def test_an_import_that_died_half_way_is_completed(put, tmp_path):
    source = put(external="43.90", unreliable=True)
    write(read(source), tmp_path / "out")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "corrections" / BOARD / "Madry2018Towards-2.json").unlink()
    assert len(write(read(source), tmp_path / "out").new) == 1
    assert content(tmp_path / "out") == whole


def test_a_changed_source_is_refused_and_the_rest_imported(put, tmp_path):
    write(read(put()), tmp_path / "out")
    before = content(tmp_path / "out")
    source = put(autoattack_acc="40.00")
    put("New")
    written = write(read(source), tmp_path / "out")
    assert [path.stem for path in written.new] == ["New"]
    assert "never edited" in written.refused[0].reason
    assert before.items() <= content(tmp_path / "out").items()
    (source / "cifar10" / "Linf" / "New.json").unlink()
    with pytest.raises(InputError, match="1 entries were refused"):
        write(read(source), tmp_path / "out")


def test_an_existing_definition_stays_and_must_be_about_the_same(put, tmp_path):
    source = put()
    definition = tmp_path / "out" / "boards" / "mine.yaml"
    definition.parent.mkdir(parents=True)
    text = "id: mine\ntitle: Mine\ndata: {name: cifar10}\nthreat: {norm: Linf, eps: 8/255}\nranking: {rule: reported}\n"
    definition.write_text(text)
    write(read(source, "mine"), tmp_path / "out")
    assert definition.read_text() == text
    definition.write_text(text.replace("Linf", "L2"))
    with pytest.raises(InputError, match="is about cifar10, L2"):
        write(read(source, "mine"), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"autoattack_acc": "144.04"}, "autoattack_acc"),
        ({"autoattack_acc": "-1"}, "autoattack_acc"),
        ({"autoattack_acc": "nan"}, "autoattack_acc"),
        ({"autoattack_acc": ...}, "'autoattack_acc': nothing"),
        ({"clean_acc": True}, "clean_acc"),
        ({"external": "1e1"}, "external"),
        ({"additional_data": "yes"}, "expected true or false"),
        ({"unreliable": 1}, "expected true or false"),
        ({"number_forward_passes": 0}, "at least 1"),
        ({"name": ""}, "'name'"),
        ({"name": 7}, "'name'"),
        ({"name": "x" * 5_000}, "'name'"),
        ({"authors": "\u202eevil"}, "'authors'"),
        ({"authors": "\ud800"}, "'authors'"),
        ({"footnote": "\ud800"}, "cannot be written"),
        ({"eps": None}, "'eps': nothing"),
        ({"eps": 0.031}, "'eps'"),
        ({"eps": "1/0"}, "eps"),
        ({"corruptions_acc": "92.78", "eps": None}, "common corruptions"),
        ({"raw": "{"}, "not whole, valid JSON"),
        ({"raw": '{"name": "a", "name": "b"}'}, "occurs twice"),
        ({"raw": "[]"}, "expected an object"),
        ({"raw": '{"clean_acc": NaN}'}, "not a JSON number"),
        ({"raw": "[" * 60_000}, "not whole, valid JSON"),
        ({"raw": " " * 70_000}, "70000 bytes"),
        ({"place": "cifar10/Patch"}, "folder 'Patch'"),
        ({"place": "svhn/Linf"}, "dataset 'svhn'"),
        ({"place": "cifar10/corruptions"}, "common corruptions"),
        ({"stem": "..bad name"}, "cannot be an id"),
    ],
)
def test_a_malformed_entry_is_named_and_the_rest_imported(put, tmp_path, changes, words):
    source = put(**{"stem": "Bad", **changes})
    put("Good")
    result = read(source)
    assert [kept.entry.id for kept in result.kept] == ["Good"]
    (reason,) = reasons(result).values()
    assert words in reason
    assert str(tmp_path) not in reason
    assert len(write(result, tmp_path / "out").new) == 2


def test_nothing_usable_is_an_error(put, tmp_path):
    with pytest.raises(InputError, match="1 of 1 files"):
        write(read(put(eps=None)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file of the kind"):
        write(read(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "missing")


def test_hostile_text_stays_text_and_hostile_names_stay_out(put, tmp_path):
    source = put(
        "Markup", name='<script>alert("1")</script>', footnote="<img src=x onerror=alert(1)>&lt;b&gt;", external="1"
    )
    put("Script", link="javascript:alert(1)")
    put("nul")
    put("x" * 120)
    result = read(source)
    kept = {k.entry.id: k for k in result.kept}
    assert sorted(kept) == ["Markup", "Script"]
    assert kept["Markup"].entry.name == '<script>alert("1")</script>'  # pages escape, data does not
    assert (kept["Script"].entry.link, list(raised(kept["Script"].entry))) == ("", ["link_left_out"])
    assert kept["Script"].entry.details["source"]["link"] == "javascript:alert(1)"
    write(result, tmp_path / "out")
    assert load_imported(tmp_path / "out" / "imported" / BOARD / "Markup.json") == kept["Markup"].entry


def test_links_are_not_followed(put, tmp_path):
    source = put("Good")
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(ENTRY))
    (source / "cifar10" / "Linf" / "Linked.json").symlink_to(secret)
    (source / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(source / "cifar10" / "Linf" / "Pipe.json")
    result = read(source)
    assert [kept.entry.id for kept in result.kept] == ["Good"]
    assert {name: reason.split(",")[0] for name, reason in reasons(result).items()} == {
        "Linked.json": "is a symbolic link",
        "elsewhere": "is a symbolic link",
        "Pipe.json": "is no regular file",
    }


def test_the_second_of_two_equal_ids_is_named(put):
    source = put("Twice")
    put("twice")
    put("Twice", place="copy/cifar10/Linf")
    result = read(source)
    assert len(result.kept) == 1
    assert len(result.problems) == 2
    assert all("has on the board" in problem.reason for problem in result.problems)


def test_one_threat_folder_and_several_boards(put, tmp_path):
    source = put()
    put(place="cifar100/L2", dataset="cifar100", eps="0.5", autoattack_acc="44.041")
    both = read(source)
    assert [kept.board for kept in both.kept] == [BOARD, "robustbench-cifar100-l2"]
    assert [seed.eps for seed in both.boards] == ["8/255", "0.5"]
    alone = read(source / "cifar10" / "Linf")
    assert alone.kept == both.kept[:1]
    with pytest.raises(InputError, match="the files belong to 2"):
        read(source, "mine")
    assert read(source / "cifar10", "mine").kept[0].board == "mine"


def test_what_does_not_fit_together_is_flagged(put):
    put("Rounded", autoattack_acc="44.045")
    put("Above", autoattack_acc="90.00")
    put("Raised", external="50.00")
    source = put("Elsewhere", dataset="cifar100")
    found = {k.entry.id: k for k in read(source).kept}
    assert {name: list(raised(k.entry)) for name, k in found.items()} == {
        "Above": ["accuracies_out_of_order"],
        "Elsewhere": ["other_dataset"],
        "Raised": ["accuracies_out_of_order"],
        "Rounded": ["no_whole_number_of_examples"],
    }
    metric = found["Rounded"].entry.metric("robust_accuracy")
    assert metric.value == 0.44045
    assert metric.ci95 == (interval(4404, 10_000)[0], interval(4405, 10_000)[1])
    assert found["Raised"].corrections[0].action == "annotate"
    assert found["Rounded"].entry.details["reported_minus_autoattack"] == "1.755"


def test_imagenet_has_5000_examples(put):
    entry = (
        read(put(place="imagenet/Linf", dataset="imagenet", eps="4/255", autoattack_acc="59.68", clean_acc="78.62"))
        .kept[0]
        .entry
    )
    assert entry.metric("robust_accuracy").n == 5_000
    assert math.isclose(entry.metric("robust_accuracy").value, 2984 / 5000)
    assert not raised(entry)


def test_the_command_says_what_it_read_kept_and_flagged(put, tmp_path):
    source = put(external="43.90", eps="0.031")
    put("Broken", raw="{")
    run = CliRunner().invoke(app, ["robustbench", str(source), "--to", str(tmp_path / "out"), "--date", "2025-02-05"])
    assert run.exit_code == 0, run.output
    assert "read 2 files: 1 entries, 1 files not used; 3 files written" in run.output
    assert "corrections: 1 lower" in run.output
    assert "Madry2018Towards: other_eps: evaluated at eps 0.031" in run.output
    assert "Broken.json: is not whole" in run.output
    said = json.loads((tmp_path / "out" / "corrections" / BOARD / "Madry2018Towards-1.json").read_text())
    assert said["utc"] == "2025-02-05T00:00:00Z"
    again = CliRunner().invoke(
        app, ["robustbench", str(source), "--to", str(tmp_path / "out"), "--date", "2025-02-05", "--json"]
    )
    document = json.loads(again.stdout)
    assert (document["read"], document["unchanged"], document["files"]) == (2, 1, [])
    assert document["entries"][0]["corrections"] == ["lower"]
    assert [Path(p["path"]).name for p in document["not_used"]] == ["Broken.json"]


def test_the_command_shows_file_names_of_any_bytes(put, tmp_path):
    put("red\x1b[31m\udcff")
    run = CliRunner().invoke(app, ["robustbench", str(put()), "--to", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "red\\x1b[31m\\udcff.json: has a name that cannot be an id" in run.output
    (tmp_path / "source" / "cifar10" / "Linf" / "Madry2018Towards.json").unlink()
    run = CliRunner().invoke(app, ["robustbench", str(tmp_path / "source"), "--to", str(tmp_path / "out")])
    assert "1 of 1 files could not be used (red\\x1b[31m" in str(run.exception)
    assert run.exception.exit_code == 3
    assert len(run.exception.document["not_used"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--board", "../up"], "cannot be a file's name"), (["--date", "yesterday"], "is no date")],
)
def test_the_command_refuses_bad_options(put, tmp_path, options, words):
    run = CliRunner().invoke(app, ["robustbench", str(put()), "--to", str(tmp_path / "out"), *options])
    assert run.exit_code != 0
    assert words in str(run.exception)
    assert not (tmp_path / "out").exists()
