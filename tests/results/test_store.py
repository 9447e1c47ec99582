import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.results import store


def test_write_replaces_whole_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    store.write_atomic(path, b"old, and longer")
    store.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_written_files_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        store.write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "cannot")],
)
def test_a_failing_disk_keeps_the_old_file_and_says_how_to_go_on(tmp_path, monkeypatch, code, words):
    path = tmp_path / "record.json"
    store.write_atomic(path, b"old")

    def fail(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PrerequisiteError, match=words) as caught:
        store.write_atomic(path, b"new")
    assert str(path) in str(caught.value)
    assert "kept" in str(caught.value)
    assert "same command" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_real_size_limit_is_a_full_disk(tmp_path):
    code = (
        "import resource, signal, sys; from robustsuite.results.store import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(sys.argv[1], bytes(100))\n"
        "try: write_atomic(sys.argv[1], bytes(5000))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("PrerequisiteError the disk is full")
    assert [(p.name, p.stat().st_size) for p in tmp_path.iterdir()] == [("f", 100)]


def test_a_folder_that_is_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PrerequisiteError, match="cannot write"):
        store.write_atomic(tmp_path / "file" / "record.json", b"x")


@pytest.mark.skipif(os.name != "posix", reason="asks for processes by signal 0")
def test_only_what_dead_processes_left_is_cleaned(tmp_path):
    kill = "import os, signal, sys; from robustsuite.results import store\n"
    kill += "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL); store.write_atomic(sys.argv[1], b'x')"
    subprocess.run([sys.executable, "-c", kill, str(tmp_path / "ledger" / "00001.safetensors")], check=False)
    (left,) = (tmp_path / "ledger").iterdir()
    assert store.is_temporary(left)
    mine = left.with_name(left.name.replace(left.name.split("-")[-2], str(os.getpid())))
    foreign = left.with_name(left.name.replace(store._host(), "0" * 8))
    old = foreign.with_name(foreign.name.replace("00001", "00002"))
    other = tmp_path / ".notes.tmp"
    for path in (mine, foreign, old, other):
        path.write_bytes(b"y")
    os.utime(old, (0, 0))
    assert store.clean_temporaries(tmp_path) == 2
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted([mine, foreign, other])


def test_json_round_trip_is_for_people(tmp_path):
    path = tmp_path / "x.json"
    store.write_json(path, {"b": 1, "a": ["é", None, 0.1]})
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "b": 1,\n  "a"')
    assert text.endswith("}\n")
    assert "é" in text
    assert store.read_json(path) == {"b": 1, "a": ["é", None, 0.1]}


def test_a_record_keeps_the_order_of_its_fields(tmp_path, make_record):
    record = make_record()
    store.write_json(tmp_path / "record.json", record)
    assert list(store.read_json(tmp_path / "record.json")) == list(type(record).model_fields)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object()])
def test_what_json_cannot_keep_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="cannot be written as JSON"):
        store.write_json(tmp_path / "x.json", {"a": value})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1', "cut short"),
        (b"", "cut short"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"\xff\xfe", "cut short"),
        (b"[1]", "JSON list, expected an object"),
        (b"[" * 100_000, "cut short"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cut short"),
        (b"<!DOCTYPE html>", "cut short"),
    ],
)
def test_bad_json_names_the_file(tmp_path, text, words):
    path = tmp_path / "record.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=words) as caught:
        store.read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path):
    for read in (store.read_json, store.read_arrays, store.sha256_file):
        with pytest.raises(InputError, match="cannot read"):
            read(tmp_path / "nothing")


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert store.sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


ARRAYS = {
    "outcome": np.array([0, 2, 4], np.uint8),
    "x_adv": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10)[::3],
    "big": np.array([1, 256], ">i4"),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3), np.int64),
    "mask": np.array([True, False]),
}


def test_arrays_round_trip(tmp_path):
    path = tmp_path / "block.safetensors"
    store.write_arrays(path, ARRAYS, {"stage": "apgd-ce", "block": 7, "note": "é"})
    arrays, meta = store.read_arrays(path)
    assert meta == {"stage": "apgd-ce", "block": 7, "note": "é"}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].shape == array.shape
    assert arrays["mask"].dtype == np.uint8
    assert arrays["big"].dtype == np.int32


def test_the_file_is_plain_safetensors_with_one_metadata_key(tmp_path):
    from safetensors import safe_open

    store.write_arrays(tmp_path / "f", ARRAYS, {"stage": "x"})
    with safe_open(tmp_path / "f", framework="np") as file:
        assert list(file.metadata()) == ["meta"]
        np.testing.assert_array_equal(file.get_tensor("x_adv"), ARRAYS["x_adv"])


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, numpy as np; from robustsuite.results.store import write_arrays\n"
        "names = sys.argv[2].split(','); meta = {n: n for n in names}\n"
        "write_arrays(sys.argv[1], {n: np.full(3, len(n), np.float32) for n in names}, meta)"
    )
    names, contents = ["a", "bb", "ccc", "dddd", "eeeee"], set()
    for seed, order in (("0", names), ("1", names[::-1]), ("2", names[2:] + names[:2])):
        path = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(path), ",".join(order)], check=True, env=environment)
        contents.add(path.read_bytes())
    assert len(contents) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_cut_or_flipped_byte_is_found(tmp_path, data):
    path = tmp_path / "block.safetensors"
    store.write_arrays(path, {"a": np.arange(8), "b": np.ones(3, np.float32)}, {"stage": "s"})
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    try:
        arrays, meta = store.read_arrays(path)
    except InputError as caught:
        message = str(caught)
    else:  # a flip of white space in the JSON header leaves the same content
        message = f"{path} Delete it"
        assert (arrays["a"].tolist(), arrays["b"].tolist(), meta) == (list(range(8)), [1, 1, 1], {"stage": "s"})
    assert str(path) in message
    assert "Delete it" in message


def test_a_longer_file_and_a_foreign_file_are_refused(tmp_path):
    from safetensors.numpy import save

    path = tmp_path / "block.safetensors"
    store.write_arrays(path, {"a": np.arange(8)}, {})
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="not a whole array file"):
        store.read_arrays(path)
    for metadata in (None, {"meta": "{}"}, {"meta": "[]"}, {"meta": "{"}):
        Path(path).write_bytes(save({"a": np.arange(8)}, metadata=metadata))
        with pytest.raises(InputError, match="not a whole array file"):
            store.read_arrays(path)


def test_what_an_array_file_cannot_keep_is_refused(tmp_path):
    with pytest.raises(InputError, match="array 'names' has dtype"):
        store.write_arrays(tmp_path / "f", {"names": np.array(["x"])}, {})
    with pytest.raises(InputError, match="meta cannot be written"):
        store.write_arrays(tmp_path / "f", {}, {"a": float("nan")})
    with pytest.raises(InputError, match="reserved"):
        store.write_arrays(tmp_path / "f", {}, {"sha256": "x"})
    assert list(tmp_path.iterdir()) == []
