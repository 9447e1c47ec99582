"""Packed files, and the gallery's reader against files that are none."""

import lzma

import numpy as np
import pytest

from robustsuite.errors import InputError
from robustsuite.results.gallery import GALLERY, read_gallery
from robustsuite.results.packed import pack, unpack
from robustsuite.results.store import array_bytes


def test_what_is_packed_comes_out_again_and_the_same_bytes_every_time():
    data = bytes(range(256)) * 400
    assert pack(data) == pack(data)
    assert unpack(pack(data), len(data), "it") == data
    assert len(pack(data)) < 2000
    assert unpack(lzma.compress(data), len(data), "it") == data  # other presets, too


def test_a_bomb_is_not_unpacked():
    bomb = pack(bytes(50_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(InputError, match="more than the 1000 bytes"):
        unpack(bomb, 1000, "it")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-10], "cut off"),
        (lambda b: b[:40] + bytes([b[40] ^ 255]) + b[41:], "damaged or no xz file"),
        (lambda b: b + b"more", "behind its end"),
        (lambda b: b"{}" * 20, "damaged or no xz file"),
        (lambda b: b"", "cut off"),
        (lambda b: lzma.compress(b"abc", format=lzma.FORMAT_ALONE), "no xz file"),
    ],
)
def test_damage_is_named(damage, words):
    with pytest.raises(InputError, match=words):
        unpack(damage(pack(bytes(range(256)) * 9)), 1 << 20, "it")


def arrays(k: int = 2, **change) -> dict[str, np.ndarray]:
    x = np.full((k, 1, 4, 4), 0.5, np.float32)
    numbers = {name: np.arange(k, dtype=np.int64) for name in ("position", "label", "before", "after")}
    return {**numbers, "distance": np.full(k, 0.1), "x": x, "x_adv": x + np.float32(0.1), **change}


def packed(content: dict[str, np.ndarray], **meta) -> bytes:
    return pack(array_bytes(content, {"run_key": "a" * 16, "stages": ["pgd", "fab"], **meta}, GALLERY))


def test_a_gallery_is_read():
    found = read_gallery(packed(arrays()))
    assert found.stages == ("pgd", "fab")
    assert found.run_key == "a" * 16
    assert found.x_adv.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("content", "meta", "words"),
    [
        (arrays(extra=np.zeros(2)), {}, "it holds after, .*extra"),
        ({k: v for k, v in arrays().items() if k != "x"}, {}, "it holds"),
        (arrays(3), {}, "for 2 stages"),
        (arrays(65), {"stages": ["pgd"] * 65}, "for 65 stages"),
        (arrays(), {"stages": "pgd"}, "must be texts"),
        (arrays(), {"stages": [1, 2]}, "must be texts"),
        (arrays(), {"run_key": None}, "must be texts"),
        (arrays(x=np.zeros((2, 7, 4, 4), np.float32), x_adv=np.zeros((2, 7, 4, 4), np.float32)), {}, "1 or 3 channels"),
        (
            arrays(x=np.zeros((2, 1, 1, 1025), np.float32), x_adv=np.zeros((2, 1, 1, 1025), np.float32)),
            {},
            "1024 pixels",
        ),
        (arrays(label=np.zeros(2)), {}, "'label' is float64"),
        (arrays(after=np.zeros((2, 2), np.int64)), {}, "'after' is int64"),
        (arrays(x=np.full((2, 1, 4, 4), np.nan, np.float32)), {}, r"\[0,1\]"),
        (arrays(x_adv=np.full((2, 1, 4, 4), 1.5, np.float32)), {}, r"\[0,1\]"),
        (arrays(distance=np.array([0.1, np.inf])), {}, "finite"),
        (arrays(position=np.array([0, -1])), {}, ">= 0"),
    ],
)
def test_what_is_no_gallery_is_refused(content, meta, words):
    with pytest.raises(InputError, match=words):
        read_gallery(packed(content, **meta))
