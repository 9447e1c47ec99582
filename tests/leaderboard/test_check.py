"""`check_folder`: everything that a contribution may get wrong, each named by its path."""

import shutil
import subprocess

import pytest

from robustsuite.errors import InputError
from robustsuite.leaderboard.check import check_folder
from robustsuite.leaderboard.published import read_published
from robustsuite.results.published import Attestation, Correction
from robustsuite.results.schema import FileRef
from robustsuite.results.statements import write_attestation, write_correction
from robustsuite.results.store import json_bytes

EVIDENCE = FileRef(path="adv.pt", sha256="0" * 64, bytes=1, role="adversarials")


@pytest.fixture
def victim(published):
    return sorted((published / "runs" / "toy").glob("*.json"))[0]


def failures(root, against=None):
    return {f.name: f.detail for f in check_folder(root, against) if not f.ok}


def correction(entry, action="lower", **parts):
    body = {"board": "toy", "entry": entry, "number": 1, "by": "somebody", "utc": "2026-02-01T00:00:00Z"}
    return Correction.model_validate(body | {"action": action, "reason": "broken"} | parts)


def only_tables_are_behind(root):
    found = failures(root)
    return list(found) == ["tables"]


def test_a_folder_as_it_is_written(published):
    findings = check_folder(published)
    assert [f.name for f in findings] == ["boards/toy.yaml", "runs/toy", "folder", "tables"]
    assert all(f.ok for f in findings)


def test_without_tables_there_is_nothing_to_compare(published):
    shutil.rmtree(published / "tables")
    assert failures(published) == {}


def test_tables_of_some_formats_are_compared_in_those(published):
    for ending in ("csv", "tex"):
        (published / "tables" / f"toy.{ending}").unlink()
    assert set(failures(published)) == {"tables"}  # the index still names them
    from robustsuite.leaderboard.board import defined_board
    from robustsuite.leaderboard.export import write

    write([defined_board(b) for b in read_published(published).boards], published / "tables", ["md", "json"])
    assert failures(published) == {}


def test_no_published_folder(tmp_path):
    with pytest.raises(InputError, match="has no folder 'boards'"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runs/toy/notes.txt", "only <run_key>.json"),
        ("runs/toy/0123456789abcdef.verdicts.xz", "there is no record beside it"),
        ("runs/toy/deep/er.json", "files lie in runs/<board>/"),
        ("runs/other/0123456789abcdef.json", "there is no boards/other.yaml"),
        ("runs/loose.json", "files lie in runs/<board>/"),
        ("boards/toy.yml", "only <id>.yaml"),
        ("tables/old.md", "no table of a board"),
        ("corrections/toy/what.json", "not a name"),
        ("attestations/toy/.hidden-1.json", "not a name"),
        ("imported/toy/entry.csv", "not a name"),
    ],
)
def test_strangers(published, path, words):
    (published / path).parent.mkdir(parents=True, exist_ok=True)
    (published / path).write_text("{}")
    assert words in failures(published)[f"folder: {path}"]


def test_other_folders_are_nobody_s_business(published):
    for path in ("README.md", "schema/record.v1.json", "defenses/x.csv"):
        (published / path).parent.mkdir(exist_ok=True)
        (published / path).write_text("x")
    assert failures(published) == {}


def test_links_are_never_followed(published, victim, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text(victim.read_text())
    name = "runs/toy/" + victim.name
    victim.unlink()
    victim.symlink_to(secret)
    found = failures(published)
    assert "a link" in found[f"folder: {name}"]
    assert len(read_published(published).boards[0].entries) == 2
    (published / "runs" / "toy").rename(tmp_path / "away")
    (published / "runs" / "toy").symlink_to(tmp_path / "away", target_is_directory=True)
    assert "a link" in failures(published)["folder: runs/toy"]


def test_a_run_under_another_name_or_on_another_board(published, victim, toy):
    moved = victim.with_name("0123456789abcdef.json")
    for suffix in (".json", ".verdicts.xz", ".gallery.xz"):
        victim.with_suffix(suffix).rename(moved.with_suffix(suffix))
    assert f"{moved.name} holds run {victim.stem}" in failures(published)[f"runs/toy/{moved.name}: name"]
    toy.define(published, "far", threat={"norm": "Linf", "eps": "0.5"})
    shutil.copytree(published / "runs" / "toy", published / "runs" / "far")
    found = failures(published)
    assert "eps: the board wants 0.5, the run has 0.05" in found[f"runs/far/{moved.name}: board"]


def test_runs_of_one_board_follow_one_protocol(published, toy, tmp_path):
    """The same name and version, other stages: forged, or a protocol file that took the name."""
    toy.submit(toy.problem.run(tmp_path, ["fgsm", "pgd"]).directory, published)
    found = failures(published)
    assert "2 different protocols call themselves so" in found["runs/toy: protocol"]


def test_corrections(published, victim):
    write_correction(published, correction(victim.stem, examples=(1, 5), evidence=EVIDENCE))
    write_correction(published, correction(victim.stem, "annotate"))
    assert only_tables_are_behind(published)
    assert any(f.name == "corrections/toy" and f.detail.startswith("2 corrections") for f in check_folder(published))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"examples": (5, 1), "evidence": EVIDENCE}, "examples must ascend within 0 and 39"),
        ({"examples": (1, 40), "evidence": EVIDENCE}, "examples must ascend within 0 and 39"),
        ({"examples": (1, 1), "evidence": EVIDENCE}, "examples must ascend"),
        ({"examples": (1,)}, "needs the file of images"),
        ({"robust_accuracy": 0.1}, "names the examples"),
        ({"action": "annotate", "examples": (1,)}, "only 'lower' names examples"),
    ],
)
def test_corrections_that_make_no_sense(published, victim, parts, words):
    write_correction(published, correction(victim.stem, **parts))
    assert words in failures(published)[f"corrections/toy/{victim.stem}-1.json"]


def test_a_correction_of_nobody(published):
    write_correction(published, correction("0123456789abcdef", "annotate"))
    assert "corrects no entry" in failures(published)["corrections/toy/0123456789abcdef-1.json"]


def attestation(victim, **parts):
    from robustsuite.results.records import load_record

    body = {"run_key": victim.stem, "content_sha256": load_record(victim).content_sha256, "level": 2}
    return Attestation.model_validate(
        body | {"by": "somebody", "utc": "2026-02-01T00:00:00Z", "suite_version": "1"} | parts
    )


def test_attestations_raise_the_level(published, victim):
    write_attestation(published, "toy", attestation(victim))
    write_attestation(published, "toy", attestation(victim, level=1))
    assert only_tables_are_behind(published)
    entries = {e.record.run_key: e.level for e in read_published(published).boards[0].entries}
    assert sorted(entries.values()) == [0, 0, 2]
    assert entries[victim.stem] == 2


def test_an_attestation_of_another_record_is_worth_nothing(published, victim):
    write_attestation(published, "toy", attestation(victim, content_sha256="0" * 64))
    assert "content_sha256 differs" in failures(published)[f"attestations/toy/{victim.stem}-2.json"]
    assert {e.level for e in read_published(published).boards[0].entries} == {0}


def test_an_attestation_under_another_name(published, victim):
    path = published / "attestations" / "toy" / f"{victim.stem}-3.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(json_bytes(attestation(victim, level=1), "it"))
    assert "attests level 1" in failures(published)[f"attestations/toy/{path.name}"]
    assert {e.level for e in read_published(published).boards[0].entries} == {0}


def git(root, *arguments):
    base = ("git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run([*base, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(published):
    """The folder inside of a repository whose main line has one commit."""
    root = published.parent
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "leaderboards")
    git(root, "commit", "-qm", "published")
    return root


def test_adding_is_all_that_a_contribution_does(repository, published, victim, toy):
    git(repository, "switch", "-qc", "contribution")
    write_correction(published, correction(victim.stem, "annotate"))
    toy.define(published, "new")
    assert set(failures(published)) == {"tables"}
    assert failures(published, "main") == {}  # tables are built on the main line, not by contributions
    git(repository, "add", "leaderboards")
    git(repository, "commit", "-qm", "new")
    assert failures(published, "main") == {}
    (published / "tables" / "toy.md").write_text("mine")
    assert set(failures(published, "main")) == {"tables"}


def test_a_main_line_that_went_on_deletes_nothing_here(repository, published, victim):
    git(repository, "branch", "contribution")
    write_correction(published, correction(victim.stem, "annotate"))
    git(repository, "add", "leaderboards")
    git(repository, "commit", "-qm", "later")
    git(repository, "switch", "-q", "contribution")
    assert failures(published, "main") == {}


def test_changed_and_deleted_files_are_named(repository, published, victim):
    other = sorted(victim.parent.glob("*.json"))[1]
    victim.write_text(victim.read_text() + "\n")
    other.with_suffix(".gallery.xz").unlink()
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "quietly")
    found = failures(published, "HEAD~1")
    assert "was changed" in found[f"add-only since HEAD~1: runs/toy/{victim.name}"]
    assert "was deleted" in found[f"add-only since HEAD~1: runs/toy/{other.stem}.gallery.xz"]
    assert "was deleted" not in str(failures(published, "HEAD"))


@pytest.mark.parametrize("ref", ["nowhere", "--output=x", ""])
def test_a_commit_that_is_not_there(repository, published, ref):
    with pytest.raises(InputError, match="takes a commit or branch"):
        check_folder(published, ref)
    assert not (repository / "x").exists()


def test_no_repository(published):
    with pytest.raises(InputError, match="--against takes a commit"):
        check_folder(published, "HEAD")
