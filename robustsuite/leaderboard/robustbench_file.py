"""One ``model_info`` file of RobustBench to an entry, and what it says against itself to corrections.

A file is ``<dataset>/<threat>/<model>.json``; its numbers are text in percent (github.com/RobustBench/robustbench).
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from html.parser import HTMLParser
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal

from robustsuite.errors import InputError
from robustsuite.leaderboard.importing import Kept, is_safe
from robustsuite.results.published import Correction, ImportedEntry
from robustsuite.results.schema import Flag, Metric
from robustsuite.results.statements import statement_sha256
from robustsuite.results.statistics import interval
from robustsuite.results.store import json_bytes, read_json, sha256_file
from robustsuite.threat import Eps

PROVENANCE = "robustbench"
EXAMPLES: Mapping[str, int] = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""What RobustBench evaluates on: whole test sets, and a fixed part of ImageNet's validation set."""
_NORMS = ("Linf", "L2", "L1")
_OURS = ("name", "authors", "venue", "link", "architecture", "additional_data", "number_forward_passes", "eps")
_LONGEST = 2_000
_PERCENT = re.compile(r"\d{1,3}(\.\d{1,6})?")
_EPS = re.compile(r"\d{1,4}(\.\d{1,12})?( ?/ ?\d{1,6})?")


def read_file(path: Path, board: str | None, utc: str) -> Kept:
    """The entry for ``board`` (by default ``robustbench-<dataset>-<norm>``), with corrections that ``utc`` dates.

    Raises `InputError` with what is wrong in the file, without its path.
    """
    dataset, threat = path.parent.parent.name, path.parent.name
    if not is_safe(path.stem):
        raise InputError("has a name that cannot be an id; letters, digits and ._- can.")
    body = read_json(path)
    if threat.startswith("corruptions") or "corruptions_acc" in body:
        raise InputError("is about common corruptions: there is no norm and no eps, so no board of this suite has it.")
    if threat not in _NORMS:
        raise InputError(
            f"lies in a folder {threat!r}, expected <dataset>/<threat>/<model>.json with {', '.join(_NORMS)}."
        )
    if dataset not in EXAMPLES:
        raise InputError(f"lies in a folder of the dataset {dataset!r}, expected one of {', '.join(EXAMPLES)}.")
    entry = _entry(path, body, dataset, threat)
    place = board or f"robustbench-{dataset}-{threat.lower()}"
    kept = Kept(place, entry, _corrections(place, entry.id, body, utc))
    for part in (kept.entry, *kept.corrections):
        json_bytes(part, "what it says")  # a lone surrogate is valid JSON and cannot be written
    return kept


def _entry(path: Path, body: Mapping[str, Any], dataset: str, threat: str) -> ImportedEntry:
    n = EXAMPLES[dataset]
    clean, robust = _percent(body, "clean_acc"), _percent(body, "autoattack_acc")
    ranked = _percent(body, "external") if body.get("external") is not None else robust
    link = _text(body, "link")
    is_web = not link or link.startswith(("https://", "http://"))
    rest = {key: value for key, value in body.items() if key not in _OURS or (key == "link" and not is_web)}
    return ImportedEntry(
        id=path.stem,
        provenance=PROVENANCE,
        name=_text(body, "name"),
        authors=_text(body, "authors"),
        venue=_text(body, "venue"),
        link=link if is_web else "",
        architecture=_text(body, "architecture"),
        extra_data=_boolean(body, "additional_data"),
        forward_passes=_count(body, "number_forward_passes"),
        data_name=dataset,
        norm=threat,
        eps=_eps(body),
        metrics=(_metric("clean_accuracy", clean, n), _metric("robust_accuracy", robust, n)),
        flags=(
            _whole(body, n),
            _order(clean, robust, ranked),
            _link(is_web),
            _dataset(_text(body, "dataset"), dataset),
        ),
        unreliable=body.get("unreliable") is not None and _boolean(body, "unreliable"),
        source_file=f"{dataset}/{threat}/{path.name}",
        source_sha256=sha256_file(path),
        details={"ranked_by": str(ranked), **_reported(body, robust), "source": rest},
    )


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    line = " ".join(value.split()) if isinstance(value, str) else ""
    if not isinstance(value, str) or (key == "name" and not line) or len(line) > _LONGEST or not line.isprintable():
        raise InputError(f"has '{key}': {_shown(value)}, expected one line of text.")
    return line


def _boolean(body: Mapping[str, Any], key: str) -> bool:
    if not isinstance(body.get(key), bool):
        raise InputError(f"has '{key}': {_shown(body.get(key))}, expected true or false.")
    return body[key]


def _count(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
        raise InputError(f"has '{key}': {_shown(value)}, expected a number of passes, at least 1.")
    return value


def _percent(body: Mapping[str, Any], key: str) -> Decimal:
    value = body.get(key)
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not _PERCENT.fullmatch(text) or Decimal(text) > 100:
        raise InputError(f"has '{key}': {_shown(value)}, expected percent from 0 to 100 as text, such as \"53.42\".")
    return Decimal(text)


def _eps(body: Mapping[str, Any]) -> str:
    value = body.get("eps")
    if not isinstance(value, str) or not _EPS.fullmatch(value):
        raise InputError(f"has 'eps': {_shown(value)}, expected text such as \"8/255\".")
    Eps.parse(value)
    return value


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.80}"


def _metric(name: str, percent: Decimal, n: int) -> Metric:
    """Percent to a share; between two numbers of examples, the interval reaches over both."""
    share = percent / 100
    ci95 = interval(floor(share * n), n)[0], interval(ceil(share * n), n)[1]
    return Metric(name=name, value=float(share), ci95=ci95, n=n)


def _whole(body: Mapping[str, Any], n: int) -> Flag:
    keys = [k for k in ("clean_acc", "autoattack_acc", "external") if body.get(k) is not None]
    odd = [f"{k} {body[k]} %" for k in keys if Decimal(str(body[k])) / 100 * n % 1]
    said = f"of {n} examples: {', '.join(odd)}" if odd else f"of {n} examples"
    return Flag(
        name="no_whole_number_of_examples",
        raised=bool(odd),
        evidence=f"{'no whole number ' if odd else 'every accuracy is a whole number '}{said}",
        remedy="It was rounded, or measured on other examples." if odd else "",
    )


def _order(clean: Decimal, robust: Decimal, ranked: Decimal) -> Flag:
    wrong = robust > clean or ranked > clean
    above = ranked > robust
    evidence = f"clean {clean} %, AutoAttack {robust} %, ranked by {ranked} %"
    remedy = "An error of the source: what an attack broke stays broken." if wrong or above else ""
    return Flag(name="accuracies_out_of_order", raised=wrong or above, evidence=evidence, remedy=remedy)


def _link(is_web: bool) -> Flag:
    evidence = "none, or a web address" if is_web else "no web address; kept among the details alone"
    return Flag(name="link_left_out", raised=not is_web, evidence=evidence)


def _dataset(said: str, folder: str) -> Flag:
    evidence = f"the file says {said} and lies in the folder {folder}, which is what RobustBench's page goes by"
    return Flag(
        name="other_dataset", raised=said != folder, evidence=evidence if said != folder else f"{said}, as its folder"
    )


def _reported(body: Mapping[str, Any], robust: Decimal) -> dict[str, str]:
    """How far AutoAttack is below what the authors say, in percentage points, where it is not the same."""
    try:
        claimed = _percent(body, "reported")
    except InputError:  # a few papers give no such number
        return {}
    return {} if claimed == robust else {"reported_minus_autoattack": str(claimed - robust)}


def _corrections(board: str, entry: str, body: Mapping[str, Any], utc: str) -> tuple[Correction, ...]:
    """What RobustBench itself says against an entry; each correction is chained to the one before."""
    corrections: list[Correction] = []
    for number, (action, reason, share) in enumerate(_statements(body), 1):
        corrections.append(
            Correction(
                board=board,
                entry=entry,
                number=number,
                utc=utc,
                by=PROVENANCE,
                action=action,
                reason=" ".join(f"{reason} {_plain(body.get('footnote'))}".split()),
                robust_accuracy=share,
                previous_sha256=statement_sha256(corrections[-1]) if corrections else "",
            )
        )
    return tuple(corrections)


def _statements(
    body: Mapping[str, Any],
) -> Iterator[tuple[Literal["lower", "annotate", "unreliable"], str, float | None]]:
    if body.get("external") is not None:
        external, attacked = _percent(body, "external"), _percent(body, "autoattack_acc")
        reason = f"External evaluation: {external} %, where AutoAttack leaves {attacked} %."
        if external < attacked:
            yield "lower", reason, float(external / 100)
        else:
            yield "annotate", reason, None
    if body.get("unreliable"):
        yield "unreliable", "RobustBench marks AutoAttack's evaluation of this model as potentially unreliable.", None


class _Text(HTMLParser):
    """The words of a footnote; a link's address stands in brackets behind its words."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.address: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.words.append(" ")
        self.address = dict(attrs).get("href") if tag == "a" else self.address

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self.address:
            self.words.append(f" ({self.address})")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _plain(footnote: Any) -> str:
    """A footnote as plain text; RobustBench's page takes it as HTML."""
    parser = _Text()
    parser.feed(footnote if isinstance(footnote, str) else "")
    parser.close()
    return "".join(parser.words)
