"""Certification logs of randomised smoothing to entries: one a log, and the upper envelope over sigma.

Layout: ``<data>/<architecture>/noise_<training>/test/sigma_<certification>``, as in github.com/locuslab/smoothing
(Cohen et al. 2019). Everything is computed from the lines; no table of the source is read.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from robustsuite.errors import InputError, RobustsuiteError
from robustsuite.leaderboard.importing import BoardSeed, Import, Kept, duplicates, is_safe, source_files
from robustsuite.leaderboard.smoothing_entry import RADIUS, Source, envelope, log_entry
from robustsuite.leaderboard.smoothing_log import read_log
from robustsuite.results.published import ImportedEntry
from robustsuite.results.records import Problem
from robustsuite.results.store import sha256_file

PROVENANCE = "locuslab/smoothing"
SAMPLES, ALPHA = 100_000, 0.001
"""What the source says that every log was made with."""
_LEVEL = re.compile(r"(?:noise|sigma)_([0-9]{1,3}(?:\.[0-9]{1,6})?)")
_MOST_BYTES = 1 << 26


def read(root: Path, board: str | None = None, n: int = SAMPLES, alpha: float = ALPHA, by: str = PROVENANCE) -> Import:
    """Every log below a folder, on the board ``smoothing-<data>`` or ``board``.

    ``by`` is who made them; ``n`` samples an example and the failure probability ``alpha`` are what that source states:
    radii that they do not allow are flagged. Logs that cannot be used are named in the result. Raises `InputError` when
    one ``board`` is named for logs of several data sets, or for numbers that are no n and alpha.
    """
    if n < 1 or not 0 < alpha < 1:
        raise InputError(
            f"n={n} samples and alpha={alpha:g} were given; n must be at least 1 and alpha between 0 and 1."
        )
    sources, problems, n_read = [], [], 0
    for path, problem in source_files(root, lambda p: p.name.startswith("sigma_"), _MOST_BYTES):
        n_read += 1
        try:
            if problem:
                problems.append(problem)
            else:
                sources.append(_source(path, by))
        except RobustsuiteError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path} ")))
    models: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for source in sources:
        models[source.data_name, source.arch].append(source)
    places = {data: board or f"smoothing-{data}" for data, _ in models}
    if board is not None and len(places) > 1:
        raise InputError(f"one board was named, but the logs are about {len(places)} data sets: {', '.join(places)}.")
    entries = [entry for logs in models.values() for entry in _entries(logs, n, alpha)]
    kept, second = duplicates([Kept(places[entry.data_name], entry) for entry in entries])
    return Import(
        n_read, tuple(kept), tuple(_seed(b, data, by) for data, b in places.items()), tuple(problems + second)
    )


def _source(path: Path, by: str) -> Source:
    """Read one log; raises `InputError` when its place does not say what it is."""
    parts = path.parts[-5:]
    levels = [_LEVEL.fullmatch(parts[i]) for i in (2, 4)] if len(parts) == 5 else [None]
    texts = [level.group(1) for level in levels if level and float(level.group(1)) > 0]
    if len(texts) < 2 or not all(map(is_safe, parts[:2])):
        raise InputError(
            "does not lie where a log does: <data>/<architecture>/noise_<training>/test/sigma_<certification>, such as "
            "cifar10/resnet110/noise_0.25/test/sigma_0.25."
        )
    return Source(read_log(path), parts[0], parts[1], texts[0], texts[1], "/".join(parts), sha256_file(path), by)


def _entries(sources: Sequence[Source], n: int, alpha: float) -> list[ImportedEntry]:
    """One entry a log of a model, and the envelope where several sigmas were certified on the same examples."""
    most = max(len(source.log.lines) for source in sources)
    entries = [log_entry(source, most, n, alpha) for source in sources]
    alike: dict[bytes, list[int]] = defaultdict(list)
    for i, source in enumerate(sources):
        if source.matched:
            alike[source.log.idx.tobytes() + source.log.label.tobytes()].append(i)
    widest = max(alike.values(), key=len, default=[])
    if len(widest) > 1:
        left = [s.file for i, s in enumerate(sources) if s.matched and i not in widest]
        entries.append(envelope([sources[i] for i in widest], [entries[i] for i in widest], left, alpha))
    return entries


def _seed(board: str, data_name: str, by: str) -> BoardSeed:
    return BoardSeed(
        board,
        f"Randomized smoothing: {data_name}, L2",
        f"Certified accuracy on {data_name}, computed from the lines of certification logs ({by}), in the order at "
        f"radius {RADIUS}. An envelope is the best sigma at each radius, chosen after the fact. Nothing was certified "
        "here.",
        data_name,
        "L2",
        RADIUS,
    )
