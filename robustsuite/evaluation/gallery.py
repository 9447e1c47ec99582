"""The gallery: a few broken examples of a run for people to look at, and whether those of a published run are true."""

from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.verdicts import read_points
from robustsuite.noise import Noise
from robustsuite.results.arithmetic import Finding
from robustsuite.results.gallery import GALLERY, MOST_PICTURES, MOST_PIXELS, Gallery, read_gallery
from robustsuite.results.ledger import AUDIT, CLEAN, OVERLAP, REST, Ledger, Outcome
from robustsuite.results.packed import pack
from robustsuite.results.store import array_bytes
from robustsuite.results.stored import StoredRun, find_run

_CLEAR = 1e-3
"""Margins beyond this come first: they hold on every machine."""


def write_gallery(run_dir: Path, data: Dataset, count: int = 8) -> bytes | None:
    """The packed gallery of a sealed run; None where it broke nothing, or where its images are no pictures.

    The stages take turns, each with the broken example of the smallest keyed number: the same run gives the same
    bytes, and nobody picks. Raises `InputError` for other data than the run's, or when its files are not all there.
    """
    run = find_run(run_dir)
    request, ledger = run.record.request, run.ledger()
    if data.fingerprint != request.data.fingerprint:
        raise InputError(f"the run's data is {request.data.fingerprint[:12]}, this is {data.fingerprint[:12]}.")
    channels, *sides = data.input_shape
    chosen = _choose(ledger, data, request.seed)[: min(count, MOST_PICTURES)]
    if not chosen or channels not in (1, 3) or max(sides) > MOST_PIXELS:
        return None
    store = LedgerStore(run_dir, Blocks(request.data.n, request.block_size))
    positions = np.array([position for _, position in chosen], np.int64)
    arrays = {
        "position": positions,
        "label": data.y.numpy()[positions],
        "before": ledger.arrays[f"{CLEAN}/predicted"][positions],
        "after": np.array([ledger.arrays[f"{stage}/predicted"][p] for stage, p in chosen], np.int64),
        "distance": np.array([ledger.arrays[f"{stage}/distance"][p] for stage, p in chosen], np.float64),
        "x": data.x.numpy()[positions],
        "x_adv": np.stack([_point(store, stage, p) for stage, p in chosen]),
    }
    meta = {"run_key": run.record.run_key, "stages": [stage.removeprefix(REST) for stage, _ in chosen]}
    return pack(array_bytes(arrays, meta, GALLERY))


def check_gallery(run: StoredRun, ledger: Ledger, bench: Bench) -> Iterator[Finding]:
    """Whether the pictures of a published run are its images and its adversarial examples; nothing without a gallery.

    Raises `InputError` for a file that is none.
    """
    packed = run.gallery()
    if packed is None:
        return
    found = read_gallery(packed)
    if found.run_key != run.record.run_key or found.position.max() >= len(bench.data):
        yield Finding("gallery", False, f"it is of run {found.run_key}, or of positions that this one has not")
        return
    wrong = [int(p) for p, true in zip(found.position, _true(found, ledger, bench), strict=True) if not true]
    detail = f"not the run's: positions {wrong[:5]}" if wrong else f"{len(found.position)} pictures hold"
    yield Finding("gallery", not wrong, detail)


def _true(found: Gallery, ledger: Ledger, bench: Bench) -> list[bool]:
    """Of every picture: the run's image, label and verdict, and a verified adversarial example."""
    positions = found.position
    x, y, ids, _ = bench.rows(positions.tolist())
    verdicts = bench.judge().exact(x, y, ids, torch.from_numpy(found.x_adv.copy()).to(x))
    held = (x.cpu().numpy() == found.x).all((1, 2, 3)) & (y.cpu().numpy() == found.label)
    held &= ledger.arrays[f"{CLEAN}/predicted"][positions] == found.before
    held &= np.array([verdict.broken for verdict in verdicts])
    held &= np.array([verdict.predicted for verdict in verdicts]) == found.after
    near = np.array([verdict.distance for verdict in verdicts])
    return (held & np.isclose(near, found.distance, rtol=1e-9, atol=1e-12) & _broken(found, ledger)).tolist()


def _broken(found: Gallery, ledger: Ledger) -> np.ndarray:
    """Whether the ledger says that the stage broke it, bool ``[K]``."""
    names = [[n for n in (stage, REST + stage) if n in ledger.stages] for stage in found.stages]
    pairs = zip(names, found.position, strict=True)
    return np.array([any(ledger.outcome(n)[p] == Outcome.BROKEN for n in both) for both, p in pairs], bool)


def _choose(ledger: Ledger, data: Dataset, seed: int) -> list[tuple[str, int]]:
    """(ledger's stage, position) of what was broken, the stages in turn."""
    keys = Noise(seed, "gallery").at(data.ids).bits(1)[:, 0].numpy()
    stages = [s for s in ledger.stages if s != CLEAN and not s.startswith((AUDIT, OVERLAP))]
    queues = []
    for stage in stages:
        broken = np.flatnonzero(ledger.outcome(stage) == Outcome.BROKEN)
        edge = ledger.arrays[f"{stage}/margin"][broken] > -_CLEAR
        queues.append([(stage, int(p)) for p in broken[np.lexsort((broken, keys[broken], edge))]])
    return [pair for pair in chain.from_iterable(zip_longest(*queues)) if pair is not None]


def _point(store: LedgerStore, stage: str, position: int) -> np.ndarray:
    path = store.adversarials_path(stage, position // store.blocks.size)
    points = read_points(path)
    if position not in points:
        raise InputError(f"{path} lacks the adversarial example of position {position}; run the command again.")
    return points[position]
