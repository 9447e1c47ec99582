import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm
from typer.testing import CliRunner

from robustsuite.cli.board_import import app
from robustsuite.errors import InputError
from robustsuite.leaderboard.board import defined_board
from robustsuite.leaderboard.import_smoothing import read
from robustsuite.leaderboard.import_write import write
from robustsuite.leaderboard.published import read_published
from robustsuite.leaderboard.smoothing_log import largest_radius, needed_alpha
from robustsuite.results.statistics import interval

BOARD = "smoothing-cifar10"
HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
GOOD = [
    "0\t3\t3\t0.5\t1\t15.4",
    "20\t7\t-1\t0.0\t0\t0:00:15.600000",
    "40\t4\t4\t0.25\t1\t15.7",
    "60\t7\t2\t0.9\t0\t1.0",
]
RADII = [quarter / 4 for quarter in range(17)]
# Cohen et al. 2019 by their own analysis of these logs: average certified radius, accuracy at 0, 0.25, ...
PUBLISHED = {
    "0.12": (0.2701, [0.814, 0.586, 0.0]),
    "0.25": (0.4289, [0.748, 0.600, 0.428, 0.266]),
    "0.50": (0.5375, [0.652, 0.546, 0.414, 0.320, 0.234, 0.152, 0.094, 0.052]),
    "1.00": (0.5417, [0.472, 0.392, 0.340, 0.278, 0.216, 0.174, 0.140, 0.118, 0.100, 0.076]),
}


@pytest.fixture
def put(tmp_path):
    """Writes one log; its lines or its whole text."""

    def put(*lines, noise="0.25", sigma="0.25", model="cifar10/net", text=None):
        path = tmp_path / "source" / model / f"noise_{noise}" / "test" / f"sigma_{sigma}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER + "".join(f"{line}\n" for line in lines or GOOD) if text is None else text)
        return tmp_path / "source"

    return put


@pytest.fixture
def logs(shared_data):
    folder = shared_data / "smoothing"
    if not folder.is_dir():
        pytest.skip(f"Cohen et al.'s certification logs not found at {folder}")
    return folder


def raised(entry) -> dict[str, str]:
    return {flag.name: flag.evidence for flag in entry.flags if flag.raised}


def entries(result):
    return {kept.entry.id: kept.entry for kept in result.kept}


def only(source, **options):
    (kept,) = read(source, **options).kept
    return kept.entry


def values(entry) -> list[float]:
    return [entry.metric(f"certified_accuracy@{radius:g}").value for radius in RADII]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_number_is_what_the_log_gives(logs):
    found = entries(read(logs))
    paths = sorted(path for path in logs.rglob("sigma_*"))
    assert len(paths) == 7
    for path in paths:
        entry = found[f"resnet110-{path.parts[-3]}-{path.name}"]
        frame = pd.read_csv(path, sep="\t")
        assert entry.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry.average_radius == pytest.approx((frame.correct * frame.radius).mean(), abs=1e-12)
        for radius in RADII:
            count = int(((frame.correct == 1) & (frame.radius >= radius)).sum())
            metric = entry.metric(f"certified_accuracy@{radius:g}")
            assert (metric.value, metric.n) == (count / len(frame), len(frame))
            assert metric.ci95 == interval(count, len(frame))
        assert entry.metric("clean_accuracy").value == frame.correct.mean()
        assert entry.metric("certified_accuracy").value == entry.metric("certified_accuracy@0.5").value
        assert entry.metric("abstained").value == (frame.predict == -1).mean()
        (curve,) = entry.curves
        assert curve.points[-1].x == (frame.correct * frame.radius).max()
        for point in curve.points:
            alive = (frame.correct == 1) & (frame.radius >= point.x)
            assert (point.value, point.ci95) == (alive.mean(), interval(int(alive.sum()), len(frame)))
        stored = np.array(entry.details["proved_radii"].split(), float)
        assert (stored == frame.correct * frame.radius).all()
        start, stop, step = map(int, entry.details["positions"].split(":"))
        assert list(range(start, stop, step)) == frame.idx.tolist()


def test_the_published_averages_and_accuracies_come_out(logs):
    found = entries(read(logs))
    for sigma, (average, accuracies) in PUBLISHED.items():
        entry = found[f"resnet110-noise_{sigma}-sigma_{sigma}"]
        assert round(entry.average_radius, 4) == average
        assert values(entry)[: len(accuracies)] == accuracies


def test_radii_that_n_and_alpha_do_not_allow_are_found(logs):
    found = entries(read(logs))
    flagged = {name: raised(e)["impossible_radii"] for name, e in found.items() if "impossible_radii" in raised(e)}
    assert sorted(flagged) == ["resnet110-noise_0.25-sigma_0.25", "resnet110-noise_0.50-sigma_0.50"]
    assert flagged["resnet110-noise_0.25-sigma_0.25"].startswith("77 radii above the largest possible 0.9529")
    assert flagged["resnet110-noise_0.50-sigma_0.50"].startswith("9 radii above the largest possible 1.906")
    for name, noise in (("0.25", "0.25"), ("0.50", "0.50")):
        frame = pd.read_csv(logs / f"cifar10/resnet110/noise_{noise}/test/sigma_{name}", sep="\t")
        limit = float(f"{float(name) * norm.ppf(0.001 ** (1 / 100_000)):.3}")  # as such a log prints it
        above = int((frame.radius > limit).sum())
        assert flagged[f"resnet110-noise_{noise}-sigma_{name}"].startswith(f"{above} radii")
    allowed = entries(read(logs, alpha=0.01))
    assert not any("impossible_radii" in raised(entry) for entry in allowed.values())
    assert {name for name, entry in found.items() if entry.unreliable} == {*flagged, "resnet110-envelope"}


def test_the_envelope_is_the_best_matched_sigma_at_each_radius(logs):
    envelope = entries(read(logs))["resnet110-envelope"]
    frames = [pd.read_csv(logs / f"cifar10/resnet110/noise_{s}/test/sigma_{s}", sep="\t") for s in PUBLISHED]
    for radius in RADII:
        counts = [int(((f.correct == 1) & (f.radius >= radius)).sum()) for f in frames]
        metric = envelope.metric(f"certified_accuracy@{radius:g}")
        lower = max(beta.ppf(0.00625, k, 501 - k) if k else 0.0 for k in counts)
        upper = max(beta.ppf(1 - 0.00625, k + 1, 500 - k) for k in counts)
        assert (metric.value, metric.n) == (max(counts) / 500, 500)
        assert metric.ci95 == pytest.approx((lower, upper), abs=1e-9)
    assert "chosen after the fact" in raised(envelope)["selected_after_the_fact"]
    assert "resnet110-noise_0.25-sigma_0.25" in raised(envelope)["unreliable_parts"]
    assert envelope.metric("certified_accuracy") is None
    assert [envelope.details["best_sigma"][r] for r in ("0", "0.5", "1", "1.5")] == ["0.12", "0.25", "0.50", "1.00"]


def test_the_board_can_be_built_and_numbers_no_envelope(logs, tmp_path):
    write(read(logs), tmp_path)
    found = read_published(tmp_path)
    assert not found.problems
    board = defined_board(found.boards[0])
    assert (board.id, board.norm, board.eps, board.n) == (BOARD, "L2", "0.5", 500)
    ranks = {row.key: row.reported_rank for row in board.rows}
    assert len(ranks) == 8
    assert ranks.pop("resnet110-envelope") is None
    assert ranks["resnet110-noise_0.25-sigma_0.25"] == 1
    assert sorted(ranks.values()) == list(range(1, 8))


def test_two_imports_give_the_same_bytes_and_the_second_changes_nothing(put, tmp_path):
    put(noise="0.50", sigma="0.50")
    source = put()
    assert len(write(read(source), tmp_path / "a").new) == 4  # a definition, two logs, the envelope
    write(read(source), tmp_path / "b")
    before = content(tmp_path / "a")
    assert content(tmp_path / "b") == before
    again = write(read(source), tmp_path / "a")
    assert (again.new, again.unchanged) == ((), 3)
    assert content(tmp_path / "a") == before
    put(GOOD[0])
    refused = write(read(source), tmp_path / "a").refused
    assert [problem.path.stem for problem in refused] == ["net-noise_0.25-sigma_0.25"]
    assert content(tmp_path / "a") == before


def test_a_hand_made_log(put):
    entry = only(put())
    assert not raised(entry)
    assert values(entry)[:4] == [0.5, 0.5, 0.25, 0.0]
    assert entry.metric("clean_accuracy").value == 0.5
    assert entry.average_radius == 0.75 / 4
    assert entry.details["seconds"] == pytest.approx(15.4 + 15.6 + 15.7 + 1.0)
    assert entry.details["proved_radii"] == "0.5 0 0.25 0"
    assert entry.details["positions"] == "0:61:20"
    assert [(p.x, p.value) for p in entry.curves[0].points if p.x in (0, 0.25, 0.3, 0.5)] == [
        (0, 0.5),
        (0.25, 0.5),
        (0.3, 0.25),
        (0.5, 0.25),
    ]


@pytest.mark.parametrize(
    ("line", "flag", "words", "at_0_25"),
    [
        ("80\t1\t1\t-0.5\t1\t1.0", "bad_radii", "line 6 (-0.5)", 2 / 5),
        ("80\t1\t1\tnan\t1\t1.0", "bad_radii", "line 6 (nan)", 2 / 5),
        ("80\t1\t1\tinf\t1\t1.0", "bad_radii", "line 6 (inf)", 2 / 5),
        ("80\t1\t2\t0.5\t1\t1.0", "contradictory_lines", "line 6", 2 / 5),
        ("80\t1\t1\t0.5\t0\t1.0", "contradictory_lines", "line 6", 2 / 5),
        ("80\t1\t-1\t0.5\t0\t1.0", "contradictory_lines", "line 6", 2 / 5),
        ("0\t3\t3\t0.9\t1\t1.0", "repeated_examples", "line 6", 2 / 4),
        ("80\t1\t1\t0.5", "unparsable_lines", "line 6 has 4 fields", 2 / 4),
        ("80\t1\t1\t0.5\t1\t0:00:1", "unparsable_lines", "line 6 has the time", 2 / 4),
        ("80\t1\t1\t0,5\t1\t1.0", "unparsable_lines", "line 6 has the radius", 2 / 4),
        ("80\tcat\t1\t0.5\t1\t1.0", "unparsable_lines", "line 6 has 'cat' as label", 2 / 4),
        ("-80\t1\t1\t0.5\t1\t1.0", "unparsable_lines", "line 6 has idx -80", 2 / 4),
        ("80\t1\t1\t0.5\t2\t1.0", "unparsable_lines", "correct 2", 2 / 4),
        ("8_0\t1\t1\t0.5\t1\t1.0", "unparsable_lines", "'8_0' as idx", 2 / 4),
        ("120\t1\t1\t0.2\t1\t1.0", "truncated", "2 missing between the others, from idx 80 on", 2 / 5),
        ("999999999\t1\t1\t0.2\t1\t1.0", "truncated", "missing between the others", 2 / 5),
        ("80\t1\t1\t0.954\t1\t1.0", "impossible_radii", "1 radii above the largest possible 0.9529", 3 / 5),
    ],
)
def test_a_bad_line_is_named_and_the_rest_used(put, line, flag, words, at_0_25):
    entry = only(put(*GOOD, line))
    assert words in raised(entry)[flag]
    assert list(raised(entry)) == [flag]
    assert entry.unreliable
    assert entry.metric("certified_accuracy@0.25").value == at_0_25


def test_the_largest_possible_radius_as_it_is_printed_is_no_fault(put):
    assert not raised(only(put(*GOOD, "80\t1\t1\t0.953\t1\t1.0")))
    assert "impossible_radii" in raised(only(put(*GOOD, "80\t1\t1\t0.9530\t1\t1.0")))  # four digits were printed


def test_truncated_logs_are_flagged(put):
    put(noise="0.50", sigma="0.50")
    put(*GOOD[:3], noise="1.00", sigma="1.00")
    source = put(text=HEADER + "\n".join(GOOD))
    found = entries(read(source))
    assert raised(found["net-noise_0.25-sigma_0.25"]) == {"truncated": "the last line has no end"}
    assert raised(found["net-noise_1.00-sigma_1.00"]) == {
        "truncated": "3 examples, where another log of the same model has 4"
    }
    envelope = found["net-envelope"]
    assert sorted(envelope.details["files"]) == [f"cifar10/net/noise_{s}/test/sigma_{s}" for s in ("0.25", "0.50")]
    assert envelope.details["left_out"] == ["cifar10/net/noise_1.00/test/sigma_1.00"]


def test_an_envelope_needs_two_matched_logs_of_the_same_examples(put):
    source = put()
    put(noise="0.50", sigma="0.25")
    put(*GOOD[:2], noise="1.00", sigma="1.00")
    put(model="cifar10/other", noise="0.50", sigma="0.50")
    assert not [name for name in entries(read(source)) if "envelope" in name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": ""}, "expected the columns"),
        ({"text": "idx\tlabel\tpredict\tcorrect\ttime\n"}, "expected the columns"),
        ({"text": HEADER}, "no readable line"),
        ({"text": HEADER + "\x00\xff\n"}, "no readable line (line 2 has 1 fields of 6)"),
        ({"sigma": "big"}, "does not lie where a log does"),
        ({"sigma": "0.00"}, "does not lie where a log does"),
        ({"noise": "-1"}, "does not lie where a log does"),
        ({"model": "cifar10/<b>"}, "does not lie where a log does"),
    ],
)
def test_a_file_that_is_no_log_is_named_and_the_rest_imported(put, options, words):
    put(noise="0.50", sigma="0.50")
    result = read(put(**options))
    assert [kept.entry.id for kept in result.kept] == ["net-noise_0.50-sigma_0.50"]
    (problem,) = result.problems
    assert words in problem.reason


def test_boards_of_several_data_sets_and_options(put):
    put(model="mnist/net")
    source = put()
    assert sorted(kept.board for kept in read(source).kept) == [BOARD, "smoothing-mnist"]
    with pytest.raises(InputError, match="2 data sets"):
        read(source, "mine")
    with pytest.raises(InputError, match="alpha between 0 and 1"):
        read(source, alpha=1.0)
    other = only(source / "cifar10" / "net" / "noise_0.25", by="me")
    assert (other.provenance, other.authors, other.venue) == ("me", "", "")
    assert other.data_name == "cifar10"


def test_limits_are_those_of_clopper_and_pearson():
    assert largest_radius(0.25, 100_000, 0.001) == pytest.approx(0.25 * norm.ppf(beta.ppf(0.001, 100_000, 1)), rel=1e-9)
    for n, alpha in ((100, 0.05), (100_000, 0.001)):
        assert needed_alpha(largest_radius(0.5, n, alpha), 0.5, n) == pytest.approx(alpha, rel=1e-6)


def test_the_command_says_what_it_read_kept_and_flagged(put, tmp_path):
    put(text="", noise="1.00", sigma="1.00")
    source = put(*GOOD, "80\t1\t1\t0.978\t1\t1.0")
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["smoothing-log", str(source), "--to", str(out)])
    assert run.exit_code == 0, run.output
    assert "read 2 files: 1 entries, 1 files not used; 2 files written" in run.output
    assert "net-noise_0.25-sigma_0.25: impossible_radii: 1 radii" in run.output
    assert "sigma_1.00: begins with ''" in run.output
    again = CliRunner().invoke(app, ["smoothing-log", str(source), "--to", str(out), "--json"])
    assert (json.loads(again.stdout)["unchanged"], json.loads(again.stdout)["files"]) == (1, [])
    lax = CliRunner().invoke(app, ["smoothing-log", str(source), "--to", str(tmp_path / "lax"), "--alpha", "0.01"])
    assert "flagged: 0 of 1 entries" in lax.output
