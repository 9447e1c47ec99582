"""Boards from definitions: best known, ranks, groups, marks."""

import numpy as np
import pytest

from robustsuite.leaderboard.board import defined_board
from robustsuite.leaderboard.definition import load_definition
from robustsuite.leaderboard.display import describe, table_rows
from robustsuite.leaderboard.export import to_csv, to_json, to_latex, to_markdown
from robustsuite.leaderboard.published import Entry, PublishedBoard, Reported
from robustsuite.results.published import Correction, ImportedEntry
from robustsuite.results.statistics import interval, metric

N = 100


def said(action, number=1, **parts):
    body = {"board": "toy", "entry": "x", "by": "somebody", "utc": "2026-01-01T00:00:00Z", "reason": "seen"}
    return Correction.model_validate(body | {"number": number, "action": action} | parts)


def source(name, robust=None, clean=90, n=10_000, corrections=(), certified=None, **parts):
    counts = {"clean_accuracy": clean, "robust_accuracy": robust, "certified_accuracy": certified}
    body = {
        "id": name,
        "provenance": "robustbench",
        "name": name,
        "data_name": "cifar10",
        "norm": "Linf",
        "eps": "8/255",
        "metrics": [metric(m, k, n) for m, k in counts.items() if k is not None],
        "source_file": f"{name}.json",
        "source_sha256": "0" * 64,
    }
    return Reported(ImportedEntry.model_validate(body | parts), tuple(corrections))


@pytest.fixture
def entry(make_record):
    def make(name, kept, *, level=0, corrections=(), doubts=(), seed=0, weights=None, **facts):
        kept = np.isin(np.arange(N), list(kept))
        weights = weights or name.encode().hex().ljust(64, "0")
        record = make_record(name, robust=int(kept.sum()), seed=seed, weights_sha256=weights, **facts)
        return Entry(record, level, kept if level is not None else None, corrections=tuple(corrections), doubts=doubts)

    return make


@pytest.fixture
def board(define, tmp_path):
    def make(*entries, imported=(), **parts):
        definition = load_definition(define(tmp_path, **parts))
        return defined_board(PublishedBoard(definition, tuple(entries), tuple(imported)))

    return make


def test_best_known_is_the_pointwise_worst_case_over_runs_of_the_same_weights(board, entry):
    built = board(
        entry("net", range(0, 60), seed=1, weights="a" * 64),
        entry("net", range(20, 70), seed=2, weights="a" * 64),
        entry("other", range(0, 55)),
    )
    best = {row.key: (row.best_known.value, row.robust.value) for row in built.rows}
    assert sorted(best.values()) == [(0.4, 0.5), (0.4, 0.6), (0.55, 0.55)]
    assert built.rows[0].label == "other"
    net = built.rows[1]
    assert net.best_known.ci95 == pytest.approx(interval(40, 100), abs=1e-9)
    assert net.gap == pytest.approx(0.4 - 0.2)
    assert np.unpackbits(np.frombuffer(net.kept, np.uint8), count=N).sum() == 40


@pytest.mark.parametrize(
    "facts", [{"wrap": {"name": "smoothing", "sigma": 0.1}}, {"arch": "mlp"}, {"output": "probabilities"}]
)
def test_other_functions_of_the_same_weights_are_other_models(board, entry, facts):
    built = board(entry("a", range(60), weights="a" * 64), entry("b", range(20, 70), weights="a" * 64, seed=1, **facts))
    assert sorted(row.best_known.value for row in built.rows) == [0.5, 0.6]


def test_a_run_that_is_not_verified_lowers_nobody(board, entry):
    good = entry("net", range(60), weights="a" * 64, level=1)
    claimed = entry("net", range(0), weights="a" * 64, seed=1, level=0)
    (first, second) = board(good, claimed, ranking={"minimum_level": 1}).rows
    assert (first.best_known.value, first.rank, first.level) == (0.6, 1, 1)
    assert (second.rank, second.notes[0]) == (None, "verified to level 0, the board ranks from 1 on")
    invalid = entry("net", range(0), weights="a" * 64, seed=1, corrections=[said("invalidate")])
    assert board(good, invalid).rows[0].best_known.value == 0.6


def test_examples_of_a_correction_lower_all_runs_of_the_model(board, entry):
    lower = said("lower", examples=(0, 1, 2, 99))  # 99 was not kept before
    built = board(
        entry("net", range(60), weights="a" * 64, corrections=[lower]),
        entry("net", range(60), weights="a" * 64, seed=1),
    )
    assert [row.best_known.value for row in built.rows] == [0.57, 0.57]
    assert [row.robust.value for row in built.rows] == [0.6, 0.6]
    corrected = next(row for row in built.rows if row.corrections)
    assert "lowered: seen" in corrected.notes
    assert "lower (4 examples): seen (somebody, 2026-01-01T00:00:00Z)" in to_markdown(built)


def test_ranks_and_groups_by_hand(board, entry):
    # 95 % intervals: 90 [82.4, 95.1], 85 [76.5, 91.4], 75 [65.3, 83.1], 60 [49.7, 69.7], 20 [12.7, 29.2]
    built = board(*(entry(f"r{k}", range(k), clean=100) for k in (20, 60, 75, 85, 90)))
    assert [(r.label, r.rank, r.tied, r.group) for r in built.rows] == [
        ("r90", 1, True, 1),
        ("r85", 1, True, 1),
        ("r75", 1, True, 1),  # its upper end 83.1 reaches the 82.4 of the best
        ("r60", 3, False, 2),
        ("r20", 5, False, 3),
    ]


def test_order_is_by_the_lower_end_then_clean(board, entry):
    built = board(entry("a", range(50), clean=80), entry("b", range(50), clean=90), entry("c", range(51), clean=70))
    assert [row.label for row in built.rows] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("parts", "note"),
    [
        ({"level": None}, "unverified"),
        ({"level": None, "doubts": ("verdicts.xz is missing",)}, "verdicts.xz is missing"),
        ({"doubts": ("its corrections are damaged",)}, "its corrections are damaged"),
        ({"corrections": (said("invalidate"),)}, "invalidated: seen"),
        ({"corrections": (said("unreliable"),)}, "unreliable: seen"),
        ({"unreliable": True}, "unreliable"),
        ({"randomized": True}, "randomized"),
        ({"status": "partial"}, "partial"),
    ],
)
def test_what_is_shown_and_marked_but_never_ranked(board, entry, parts, note):
    built = board(entry("doubtful", range(96), **parts), entry("sound", range(50)))
    assert [(row.label, row.rank, row.group) for row in built.rows] == [("sound", 1, 1), ("doubtful", None, None)]
    assert note in built.rows[1].notes
    assert built.comparisons == ()
    assert table_rows(built)[1]["Rank"] == "-"


def test_a_remark_takes_nobody_out(board, entry):
    (row,) = board(entry("a", range(50), corrections=[said("annotate")])).rows
    assert (row.rank, row.notes) == (1, ("remark: seen",))


def test_better_than(board, entry):
    built = board(entry("a", range(80)), entry("b", range(40)), entry("c", range(38)))
    assert [row["Better than"] for row in table_rows(built)] == ["2 of 2", "0 of 2", "0 of 2"]


def test_divisions(board, entry):
    closed = {"training_data": "d" * 64, "arch": "small-cnn"}
    inside = {"defense": {"name": "at", "data": {"fingerprint": "d" * 64}}}
    built = board(entry("in", range(60), **inside), entry("out", range(50)), closed=closed)
    assert [(r.label, r.division, r.extra_data) for r in built.rows] == [("in", "closed", False), ("out", "open", None)]


def test_imported_entries_among_verified_runs_are_marked(board, entry):
    built = board(entry("run", range(10)), imported=[source("theirs", 9000, eps="0.15"), source("near", 8000)])
    assert [(r.label, r.rank, r.reported_rank, r.level) for r in built.rows] == [
        ("run", 1, None, 0),
        ("theirs", None, None, None),
        ("near", None, None, None),
    ]
    assert built.rows[1].notes == ("not verified: robustbench",)
    assert built.rows[2].notes == ("not verified: robustbench", "eps 8/255")
    assert [row["Verified"] for row in table_rows(built)] == ["0: arithmetic", "no", "no"]


REPORTED = {
    "data": {"name": "cifar10"},
    "threat": {"norm": "Linf", "eps": "8/255"},
    "protocol": None,
    "ranking": {"rule": "reported"},
}


def test_reported_order_is_the_source_s(board):
    external = said("lower", robust_accuracy=0.5312)
    built = board(
        imported=[
            source("a", 5342),
            source("b", 6000, corrections=[external]),
            source("d", 5342, eps="0.031"),
            source("c", 5342),
            source("gone", 9000, corrections=[said("invalidate")]),
            source("nothing", None, clean=50),
        ],
        **REPORTED,
    )
    assert [(r.label, r.reported_rank) for r in built.rows] == [
        ("gone", None),
        ("a", 1),
        ("c", 2),
        ("d", 3),
        ("b", 4),
        ("nothing", None),
    ]
    assert all(row.rank is None for row in built.rows)
    b = built.rows[4]
    assert (b.robust.value, b.best_known.value, b.best_known.name) == (0.6, 0.5312, "best_known")
    assert b.best_known.ci95 == pytest.approx(interval(5312, 10_000), abs=1e-9)
    assert "eps 0.031" in built.rows[3].notes
    page = to_markdown(built)
    assert "The numbers are the source's own" in page
    assert "b: lower to 53.12 %: seen" in page
    assert "| Rank" not in page


def test_without_attacks_the_certified_accuracy_counts(board):
    built = board(imported=[source("low", certified=2000), source("high", certified=4000)], **REPORTED)
    assert [(r.label, r.reported_rank) for r in built.rows] == [("high", 1), ("low", 2)]


def test_a_board_without_entries_says_so(board):
    built = board()
    assert (built.rows, built.n, built.protocol) == ((), 0, None)
    page = to_markdown(built)
    assert "There are no entries yet." in page
    assert "# The toy board" in page
    assert "There are no entries yet." in to_latex(built)
    assert to_csv(built).startswith("rank,tied,group,")
    assert to_csv(built).count("\n") == 1
    assert '"rows": []' in to_json(built)
    assert describe(built)["Data"].startswith("digits-test (fingerprint ffff")


def test_columns_are_chosen_by_the_definition(board, entry):
    built = board(entry("a", range(50)), columns=["Model", "Best known %", "Run"])
    assert list(table_rows(built)[0]) == ["Model", "Best known %", "Run"]


def test_the_order_of_the_files_plays_no_part(board, entry):
    entries = [entry(f"r{k}", range(k), corrections=[said("annotate")] * (k % 2)) for k in (20, 33, 47, 60, 75)]
    one, other = board(*entries), board(*reversed(entries))
    assert to_json(one) == to_json(other)
    assert to_markdown(one) == to_markdown(other)


def test_who_claims_another_number_of_examples_breaks_nothing(board, entry, make_record):
    honest = entry("net", range(60), weights="a" * 64)
    record = make_record("net", n=50, robust=0, clean=50, weights_sha256="a" * 64, seed=9)
    odd = Entry(record, 0, np.zeros(50, bool))
    built = board(honest, odd)
    assert sorted(row.best_known.value for row in built.rows) == [0.0, 0.6]
    assert built.comparisons == ()
