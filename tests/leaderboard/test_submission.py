import json
import lzma
import shutil

import pytest

from robustsuite.errors import InputError, VerificationError
from robustsuite.leaderboard.check import check_folder
from robustsuite.leaderboard.published import read_published
from robustsuite.results.records import load_record
from robustsuite.results.schema import Record


@pytest.fixture
def root(toy, tmp_path):
    folder = tmp_path / "leaderboards"
    toy.define(folder)
    return folder


@pytest.fixture
def run(toy, tmp_path):
    return shutil.copytree(toy.weak, tmp_path / "run")


def edit(run, change):
    """Change a run's record and make all of its hashes fit again."""
    record = Record.model_validate_json((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(change(record).sealed().model_dump(mode="json")))


def test_the_files_of_a_submission(toy, root):
    done = toy.submit(toy.weak, root)
    key = load_record(toy.weak).run_key
    home = root / "runs" / "toy"
    assert sorted(p.name for p in home.iterdir()) == [f"{key}.gallery.xz", f"{key}.json", f"{key}.verdicts.xz"]
    assert [p.name for p in done.files][-1] == f"{key}.json"
    assert done.checks > 5
    packed = (home / f"{key}.verdicts.xz").read_bytes()
    assert lzma.decompress(packed) == (toy.weak / "verdicts.safetensors").read_bytes()
    record = load_record(home / f"{key}.json")
    assert [ref.role for ref in record.files] == ["verdicts", "adversarials", "gallery"]
    assert record.metrics == load_record(toy.weak).metrics
    assert all(f.ok for f in check_folder(root))
    entry = read_published(root, galleries=True).boards[0].entries[0]
    assert len(entry.gallery) == 4
    assert entry.gallery[0].x_adv.shape == (1, 4, 4)


def test_submitting_twice_changes_nothing(toy, root):
    toy.submit(toy.weak, root)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}
    again = toy.submit(toy.weak, root)
    assert again.files == ()
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()} == before


def test_another_record_of_a_published_run_is_refused(toy, root, run):
    toy.submit(toy.weak, root)

    def later(record):
        return record.model_copy(
            update={"host": record.host.model_copy(update={"created_utc": "2031-01-01T00:00:00Z"})}
        )

    edit(run, later)
    with pytest.raises(InputError, match="published already, with the same outcome and other content"):
        toy.submit(run, root)


def test_another_outcome_of_a_published_run_is_refused(toy, root, run):
    done = toy.submit(toy.weak, root)
    record = done.record
    forged = record.model_copy(update={"metrics": record.metrics[:1]}).sealed()
    done.files[-1].write_text(json.dumps(forged.model_dump(mode="json")))
    with pytest.raises(InputError, match="with ANOTHER outcome"):
        toy.submit(run, root)


def test_whereabouts_are_not_published(toy, root, run):
    def at_home(record):
        model = record.request.model.model_copy(update={"reference": "/home/ann/net.pt"})
        request = record.request.model_copy(update={"model": model})
        host = record.host.model_copy(update={"command": "robustsuite eval /home/ann/net.pt"})
        return record.model_copy(update={"request": request, "host": host})

    edit(run, at_home)
    done = toy.submit(run, root)
    assert "/home" not in done.files[-1].read_text()
    assert done.record.host.command == "robustsuite eval net.pt"


def test_a_path_that_cannot_be_cut_is_refused_by_its_key(toy, root, run):
    def told(record):
        flags = (*record.flags[:-1], record.flags[-1].model_copy(update={"evidence": "see /home/ann/log.txt"}))
        return record.model_copy(update={"flags": flags})

    edit(run, told)
    with pytest.raises(InputError, match=r"'flags\.\d+\.evidence' of run .* names a path of your machine"):
        toy.submit(run, root)
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda r: r.model_copy(update={"status": "partial"}), InputError, "is partial; only complete runs"),
        (lambda r: r.model_copy(update={"metrics": r.metrics[:1]}), None, ""),
    ],
)
def test_what_is_complete(toy, root, run, change, error, words):
    edit(run, change)
    if error is None:
        toy.submit(run, root)
        return
    with pytest.raises(error, match=words):
        toy.submit(run, root)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"threat": {"norm": "Linf", "eps": "0.06"}}, "eps: the board wants 0.06, the run has 0.05"),
        ({"data": {"name": "toy", "fingerprint": "0" * 64}}, "data fingerprint"),
        ({"protocol": {"name": "standard", "version": 1}}, "protocol: the board wants standard version 1"),
        ({"division": "closed", "closed": {"training_data": "x", "arch": "mlp"}}, "closed division: "),
        ({"ranking": {"rule": "reported"}}, "holds what its source reports"),
    ],
)
def test_a_run_that_does_not_fit_its_board(toy, root, parts, words):
    toy.define(root, **parts)
    with pytest.raises(InputError, match=words):
        toy.submit(toy.weak, root)
    assert not (root / "runs").exists()


def test_an_unknown_board_and_no_folder(toy, root, tmp_path):
    with pytest.raises(InputError, match=r"has no board 'nonsense'\. Its boards: toy"):
        toy.submit(toy.weak, root, "nonsense")
    with pytest.raises(InputError, match=r"has no board '\.\./toy'"):
        toy.submit(toy.weak, root, "../toy")
    with pytest.raises(InputError, match="Its boards: none"):
        toy.submit(toy.weak, tmp_path / "nowhere")


def test_what_does_not_hold_is_not_published(toy, root, run):
    def better(record):
        from robustsuite.results.statistics import metric

        metrics = [metric(m.name, m.n, m.n) if m.name == "robust_accuracy" else m for m in record.metrics]
        return record.model_copy(update={"metrics": tuple(metrics)})

    edit(run, better)
    with pytest.raises(VerificationError, match=r"robust_accuracy: record 1\.0000, ledger"):
        toy.submit(run, root)
    shutil.rmtree(run / "adversarials")
    with pytest.raises(VerificationError, match="missing"):
        toy.submit(run, root)
    assert not (root / "runs").exists()


def test_a_published_record_is_no_run(toy, published):
    (path, *_) = sorted((published / "runs" / "toy").glob("*.json"))
    with pytest.raises(InputError, match="is published already; name the run's own directory"):
        toy.submit(path, published)


def test_without_pictures(toy, root):
    from robustsuite.leaderboard.submission import submit

    done = submit(toy.weak, root, "toy")
    assert [p.suffix for p in done.files] == [".xz", ".json"]
    assert all(f.ok for f in check_folder(root))
