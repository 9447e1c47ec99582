import pytest

from robustsuite.errors import InputError
from robustsuite.leaderboard.board import boards
from robustsuite.results.schema import StageResult
from robustsuite.results.statistics import interval


def only(records):
    (board,) = boards(records)
    return board


def places(board):
    return [(row.label, row.rank, row.tied) for row in board.rows]


def test_ranks_and_ties_by_hand(make_record):
    # n = 100; 95 % intervals: 90 [82.4, 95.1], 85 [76.5, 91.4], 60 [49.7, 69.7], 55 [44.7, 65.0], 20 [12.7, 29.2]
    assert [round(100 * end, 1) for end in interval(85, 100)] == [76.5, 91.4]
    assert [round(100 * end, 1) for end in interval(60, 100)] == [49.7, 69.7]
    records = [make_record(f"r{k}", robust=k, seed=k) for k in (20, 60, 90, 55, 85)]
    assert places(only(records)) == [
        ("r90", 1, True),
        ("r85", 1, True),
        ("r60", 3, True),
        ("r55", 3, True),
        ("r20", 5, False),
    ]


def test_overlap_is_not_transitive(make_record):
    # 70 [60.0, 78.8] and 50 [39.8, 60.2] overlap each other, and so do 50 and 40 [30.3, 50.3]; 70 lies above 40.
    records = [make_record(f"r{k}", robust=k, seed=k) for k in (70, 50, 40)]
    assert places(only(records)) == [("r70", 1, True), ("r50", 1, True), ("r40", 2, False)]


def test_more_examples_tell_apart(make_record):
    few = [make_record(f"r{k}", robust=k, n=100, seed=k) for k in (60, 55)]
    many = [make_record(f"r{k}", robust=100 * k, clean=9600, n=10_000, seed=k) for k in (60, 55)]
    assert [r.rank for r in only(few).rows] == [1, 1]
    assert [r.rank for r in only(many).rows] == [1, 2]


def test_equal_robust_accuracy_is_ordered_by_clean_then_name(make_record):
    records = [
        make_record("b", clean=90, seed=1),
        make_record("c", clean=95, seed=2),
        make_record("a", clean=90, seed=3),
    ]
    assert [r.label for r in only(records).rows] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"status": "partial"}, "partial"),
        ({"status": "failed"}, "failed"),
        ({"unreliable": True}, "unreliable"),
        ({"randomized": True}, "randomized"),
        ({"contradiction": True}, "contradiction"),
        ({"robust": None}, "no robust accuracy"),
        ({"covered": 99, "clean": 99, "robust": 99}, "covers 99 of 100 examples"),
    ],
)
def test_what_is_never_ranked(make_record, facts, note):
    board = only([make_record("doubtful", **{"robust": 100, "clean": 100, "seed": 1} | facts), make_record("sound")])
    assert places(board) == [("sound", 1, False), ("doubtful", None, False)]
    assert note in board.rows[1].notes


def test_taking_back_the_word_unreliable_changes_nothing(make_record):
    row = only([make_record(flags=("zero_gradients",), unreliable=False)]).rows[0]
    assert (row.rank, row.unreliable) == (None, True)
    assert row.notes == ("unreliable", "flag: zero_gradients")


def test_flags_and_plugins_are_noted_but_do_not_unrank(make_record):
    row = only([make_record(flags=("zero-gradients",), plugins={"mine.py": "0" * 64})]).rows[0]
    assert row.rank == 1
    assert row.flags == ("zero-gradients",)
    assert row.notes == ("flag: zero-gradients", "plugin: mine.py")


@pytest.mark.parametrize(
    "facts",
    [
        {"fingerprint": "e" * 64},
        {"threat": "L2:0.15"},
        {"threat": "Linf:0.16"},
        {"protocol": "quick"},
        {"version": 2},
        {"steps": 101},
    ],
)
def test_different_questions_never_share_a_table(make_record, facts):
    built = boards([make_record("a"), make_record("b", **facts)])
    assert [len(b.rows) for b in built] == [1, 1]
    assert len({b.id for b in built}) == 2
    assert all(b.rows[0].rank == 1 and not b.rows[0].tied for b in built)


def test_seeds_spellings_of_eps_and_names_of_the_data_do_share_one(make_record):
    records = [
        make_record("a", threat="Linf:8/255"),
        make_record("b", threat="Linf:16/510", seed=1),
        make_record("c", threat="Linf:8/255", data="my-digits", seed=2),
    ]
    board = only(records)
    assert len(board.rows) == 3
    assert board.eps == "8/255"
    assert board.data_name == "digits-test"


@pytest.mark.parametrize(
    ("facts", "board_id"),
    [
        ({}, "digits-test-linf-0.15-standard-v1"),
        ({"threat": "Linf:8/255", "data": "cifar10"}, "cifar10-test-linf-8-255-standard-v1"),
        ({"subset": "first:1000", "version": 3}, "digits-test-first-1000-linf-0.15-standard-v3"),
        ({"data": "../../etc/passwd", "split": None}, "etc-passwd-linf-0.15-standard-v1"),
        ({"data": "Çıfar\n|:*?", "split": None}, "cfar-linf-0.15-standard-v1"),
        ({"data": "数据", "split": None}, "x-linf-0.15-standard-v1"),
    ],
)
def test_ids_are_safe_file_names(make_record, facts, board_id):
    assert only([make_record(**facts)]).id == board_id


def test_ids_that_would_collide_get_a_hash_and_keep_it(make_record):
    a, b = make_record("a"), make_record("b", fingerprint="e" * 64)
    ids = {board.rows[0].label: board.id for board in boards([a, b])}
    assert ids["a"] != ids["b"]
    assert all(i.startswith("digits-test-linf-0.15-standard-v1-") for i in ids.values())
    assert {board.rows[0].label: board.id for board in boards([b, a])} == ids


def test_a_run_that_is_found_twice_counts_once(make_record):
    again = make_record(created="2026-02-02T00:00:00Z", suite="0.2.0")
    moved = make_record("renamed", source="elsewhere", reference="/other/net.pt", created="2026-03-03T00:00:00Z")
    board = only([moved, again, make_record()])
    assert places(board) == [("net", 1, False)]
    assert board.rows[0].suite_version == "0.1.0"
    assert board.conflicts == ()


def test_a_finished_run_replaces_its_partial_record(make_record):
    board = only([make_record(status="partial", robust=90), make_record(robust=60)])
    assert [(r.status, r.rank) for r in board.rows] == [("complete", 1)]
    assert board.conflicts == ()


def test_different_outcomes_of_one_run_are_a_conflict(make_record):
    records = [make_record(robust=60), make_record(robust=61), make_record("other", seed=1)]
    board = only(records)
    assert places(board)[0] == ("other", 1, False)
    assert [r.rank for r in board.rows] == [1, None, None]
    assert all(r.notes[0] == f"conflict: outcome {r.outcome_sha256[:8]}" for r in board.rows[1:])
    (conflict,) = board.conflicts
    assert conflict.run_key == records[0].run_key
    assert set(conflict.outcomes) == {r.outcome_sha256 for r in records[:2]}
    assert records[0].run_key in str(conflict)


def test_models_that_look_alike_are_told_apart(make_record):
    records = [
        make_record("net", seed=1),
        make_record("Net ", seed=2),
        make_record("n\u200bet", seed=3),
        make_record("b"),
    ]
    board = only(records)
    expected = {f"{r.request.model.name} ({r.run_key[:8]})" for r in records[:3]} | {"b"}
    assert {row.label for row in board.rows} == expected


def test_a_row_says_what_it_rests_on(make_record):
    smoothing = StageResult(
        name="rs", kind="certifier", plugin="smoothing", status="done", guarantee="confidence 0.999"
    )
    skipped = StageResult(name="ibp", kind="certifier", plugin="ibp", status="skipped", reason="no bounds")
    record = make_record(
        robust=60, certified=20, certifiers=(skipped, smoothing), wrap={"name": "smoothing", "sigma": 0.25}
    )
    row = only([record]).rows[0]
    assert row.certifiers == (("smoothing", "confidence 0.999"),)
    assert row.defense == "pgd-at + smoothing"
    assert row.gap == pytest.approx(0.4)
    assert (row.arch, row.n, row.run_key, row.suite_version) == ("small-cnn", 100, record.run_key, "0.1.0")
    assert [m.name for m in row.metrics] == ["clean_accuracy", "robust_accuracy", "certified_accuracy"]


def test_without_certifier_and_defense(make_record):
    row = only([make_record(certified=None, certifiers=(), defense=None, arch=None)]).rows[0]
    assert (row.certified, row.gap, row.certifiers, row.defense, row.arch) == (None, None, (), "", "")


def test_no_records_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="robustsuite eval"):
        boards([])


def test_the_defense_tells_its_modifiers(make_record):
    trained = {"name": "trades", "modifiers": [{"name": "awp"}, {"name": "ema"}, 3]}
    assert only([make_record(defense=trained, wrap={"name": "jpeg"})]).rows[0].defense == "trades + awp + ema + jpeg"
    assert only([make_record(defense={"name": "own", "modifiers": "many"})]).rows[0].defense == "own"
