"""Boards for tests of the site, made directly from rows: every kind of entry, any number of them."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np

from robustsuite.leaderboard.paired import comparisons
from robustsuite.leaderboard.ranking import reported, verified
from robustsuite.leaderboard.row import Board, Cost, Picture, Row
from robustsuite.leaderboard.rows import gap
from robustsuite.results.published import Correction, Curve, CurvePoint, ImportedEntry
from robustsuite.results.schema import FileRef, Metric
from robustsuite.results.statistics import interval, metric

make_record = runpy.run_path(str(Path(__file__).parents[1] / "results" / "record_builder.py"))["make_record"]
ARCHITECTURES = ("small_cnn", "resnet18", "wide_resnet")
HOSTILE = '<script>window.hit=1</script><img src=x onerror="window.hit=1">"\'</script><!--'


def make_row(name: str, kept: np.ndarray, *, seed: int = 0, certified: int | None = 10, **changes: Any) -> Row:
    """A ranked entry on ``len(kept)`` examples; ``changes`` replace fields of the row."""
    n, clean = len(kept), min(len(kept), int(kept.sum()) + len(kept) // 4)
    record = make_record(name, seed=seed, robust=int(kept.sum()), clean=clean, certified=certified, n=n)
    best = metric("best_known", int(kept.sum()), n)
    proved = None if certified is None else metric("certified_accuracy", certified, n)
    fields: dict[str, Any] = {
        "rank": 0,
        "tied": False,
        "label": name,
        "defense": "pgd_at",
        "arch": ARCHITECTURES[seed % 3],
        "clean": metric("clean_accuracy", clean, n),
        "robust": metric("robust_accuracy", int(kept.sum()), n),
        "certified": proved,
        "certifiers": (("ibp", "deterministic"),) if proved else (),
        "gap": gap(best, proved),
        "n": n,
        "status": "complete",
        "unreliable": False,
        "randomized": False,
        "flags": (),
        "notes": (),
        "run_key": record.run_key,
        "outcome_sha256": record.outcome_sha256,
        "weights_sha256": "a" * 64,
        "suite_version": "0.1.0",
        "best_known": best,
        "key": record.run_key,
        "level": seed % 4,
        "division": "closed" if seed % 2 else "open",
        "extra_data": seed % 5 == 0,
        "n_params": 41898 + seed,
        "cost": Cost(120_000 + seed, 90_000, 12.5 + seed, "cpu"),
        "record": record,
        "kept": np.packbits(kept).tobytes(),
    }
    return Row(**fields | changes)


def make_board(rows: list[Row], **changes: Any) -> Board:
    """A board of rows that answer the same question, ranked as published boards are."""
    placed = reported(rows) if changes.get("ranking") == "reported" else verified(rows)
    first = next((row.record for row in rows if row.record), None)
    fields: dict[str, Any] = {
        "id": "digits-linf",
        "data_name": "digits-test",
        "subset": "all",
        "fingerprint": "f" * 64,
        "n": max((row.n for row in rows), default=0),
        "norm": "Linf",
        "eps": "0.15",
        "protocol": first.request.protocol if first else None,
        "rows": tuple(placed),
        "conflicts": (),
        "title": "Digits, Linf 0.15",
        "description": "Small networks on small digits.",
        "comparisons": comparisons(placed),
    }
    return Board(**fields | changes)


def draws(seed: int, share: float, n: int) -> np.ndarray:
    """Which of ``n`` examples are kept, each with probability ``share``."""
    return np.random.default_rng(seed).random(n) < share


def mixed_board(n: int = 200) -> Board:
    """Nine entries: four plain ones, one of each kind that is not ranked, one corrected, one with every part."""
    grid = [0.0, 0.05, 0.1, 0.15, 0.2]
    curves = tuple(
        Curve(kind=kind, label=label, norm="Linf", points=tuple(_point(x, top * (1 - 3 * x), n) for x in grid))
        for kind, label, top in (("robust", "fab-t", 0.95), ("certified", "ibp", 0.5))
    )
    rng = np.random.default_rng(5)
    pictures = tuple(
        Picture(i, i, i, (i + 1) % 10, "apgd-ce", 0.15, *_pair(rng, channels)) for i, channels in enumerate((1, 3, 1))
    )
    rows = [
        make_row("Best net", draws(1, 0.8, n), seed=1, certified=40, curves=curves, gallery=pictures),
        make_row("Second net", draws(2, 0.78, n), seed=2, curves=curves[:1]),
        make_row("Weak net", draws(3, 0.45, n), seed=3, certified=None),
        make_row("Extra net", draws(4, 0.6, n), seed=5, certified=0),
        make_row("Random net", draws(5, 0.9, n), seed=6, rank=None, randomized=True, notes=("randomized",)),
        make_row("Partial net", draws(6, 0.9, n), seed=7, rank=None, status="partial", notes=("partial",)),
        make_row(
            "Flagged net",
            draws(7, 0.95, n),
            seed=8,
            rank=None,
            unreliable=True,
            flags=("zero_gradients",),
            notes=("unreliable", "flag: zero_gradients"),
        ),
        make_row("Unchecked net", draws(8, 0.85, n), seed=9, rank=None, level=None, notes=("unverified",)),
    ]
    corrected = make_row("Corrected net", draws(9, 0.5, n), seed=10)
    return make_board([*rows, _corrected(corrected)])


def _corrected(row: Row) -> Row:
    from dataclasses import replace

    evidence = FileRef(path="adv.npz", sha256="b" * 64, bytes=10, role="adversarials")
    made = [
        ("lower", "A longer attack breaks these.", (3, 17), evidence, ""),
        ("annotate", "The authors agree.", (), None, "c" * 64),
    ]
    chain = tuple(
        Correction(
            board="digits-linf",
            entry=row.key,
            number=number,
            utc="2026-02-01T00:00:00Z",
            by="a reader",
            action=action,  # pyright: ignore[reportArgumentType]
            reason=reason,
            examples=examples,
            evidence=file,
            previous_sha256=before,
        )
        for number, (action, reason, examples, file, before) in enumerate(made, 1)
    )
    return replace(row, corrections=chain)


def hostile_board() -> Board:
    """Names, authors, links and keys that try to leave their page or folder."""
    from dataclasses import replace

    rows = [
        make_row(f"{HOSTILE} {i}", draws(i, 0.7, 64), seed=i, key=key, arch=HOSTILE, defense=HOSTILE, venue=HOSTILE)
        for i, key in enumerate(("../../evil", "a/b", "CON", "x" * 300, "..", "A", "a"))
    ]
    rows[0] = replace(rows[0], link="javascript:window.hit=1", notes=(HOSTILE,), authors=HOSTILE)
    rows[1] = replace(rows[1], link='https://example.org/?a=1&b="><script>window.hit=1</script>')
    return make_board(rows, id="../outside/<b>", title=HOSTILE, description=HOSTILE)


def large_board(entries: int = 300, n: int = 1000) -> Board:
    """Many plain entries."""
    rows = [
        make_row(f"Net {i:04d}", draws(i, 0.2 + 0.6 * (i * 37 % 101) / 101, n), seed=i, authors="A. Author, B. Author")
        for i in range(entries)
    ]
    return make_board(rows, id="large", title="Many entries")


def reported_board() -> Board:
    """Numbers of a source, one of them with an eps and a correction of its own."""
    rows = [_imported(f"Paper{i}", 0.7 - 0.02 * i) for i in range(6)]
    return make_board(rows, id="robustbench", title="As reported", ranking="reported", n=0)


def _imported(name: str, robust: float) -> Row:
    values = {"clean_accuracy": robust + 0.2, "robust_accuracy": robust}
    metrics = tuple(Metric(name=k, value=v, ci95=interval(round(1000 * v), 1000), n=1000) for k, v in values.items())
    entry = ImportedEntry(
        id=name,
        provenance="robustbench",
        name=f"A paper called {name}",
        authors="Some Body, Any Body",
        venue="ICML 2024",
        link="https://example.org/paper",
        architecture="WideResNet-28-10",
        extra_data=True,
        data_name="cifar10",
        norm="Linf",
        eps="8/255",
        metrics=metrics,
        source_file=f"{name}.json",
        source_sha256="d" * 64,
        details={"footnote": "uses <b>more</b> data"},
    )
    clean, attacked = metrics
    return Row(
        rank=None,
        tied=False,
        label=entry.name,
        defense="",
        arch=entry.architecture,
        clean=clean,
        robust=attacked,
        certified=None,
        certifiers=(),
        gap=None,
        n=1000,
        status="imported",
        unreliable=name == "Paper3",
        randomized=False,
        flags=(),
        notes=("not verified: robustbench",),
        run_key="",
        outcome_sha256="",
        weights_sha256="",
        suite_version="",
        best_known=attacked,
        key=entry.id,
        provenance="robustbench",
        extra_data=True,
        authors=entry.authors,
        venue=entry.venue,
        link=entry.link,
        imported=entry,
    )


def _pair(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
    x = rng.random((channels, 8, 8)).astype(np.float32)
    return x, np.clip(x + np.float32(0.15) * np.sign(rng.normal(size=x.shape)).astype(np.float32), 0, 1)


def _point(x: float, share: float, n: int) -> CurvePoint:
    k = round(max(share, 0.0) * n)
    return CurvePoint(x=x, value=k / n, ci95=interval(k, n))
