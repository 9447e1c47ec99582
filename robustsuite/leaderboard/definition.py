"""Definitions of boards: ``boards/<id>.yaml`` says which runs answer a board's question, and how they are ranked."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from robustsuite.errors import InputError, UsageError
from robustsuite.leaderboard.display import COLUMNS
from robustsuite.leaderboard.importing import is_safe
from robustsuite.results.schema import Part, ProtocolPart, Record, canonical
from robustsuite.results.store import read_bytes
from robustsuite.results.validation import validated
from robustsuite.threat import NORMS, Eps

_MOST_BYTES = 1 << 18


class BoardData(Part):
    """The examples. With a fingerprint a run must have evaluated exactly those; names alone decide nothing then."""

    name: str
    split: str | None = None
    subset: str = "all"
    n: int | None = Field(default=None, ge=1)
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class BoardThreat(Part):
    """The threat model; ``eps`` as exact text (8/255 is not 0.031). Other norms and none only for reported numbers."""

    norm: str
    eps: str | None = None

    @field_validator("eps", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        """YAML reads 0.15 as a number; the shortest text that gives it is what was typed."""
        return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class BoardProtocol(Part):
    """Which protocol a run must have followed; `sha256` pins every stage and parameter, whatever it calls itself."""

    name: str
    version: int = Field(ge=1)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """`protocol_sha256` of its runs."""


class Closed(Part):
    """What all entries of the closed division have in common, so that their defenses alone differ.

    What a run says of its training is its author's word.
    """

    training_data: str
    """Fingerprint (64 hex digits) or name of the data that the model was trained on."""
    arch: str
    arch_params: dict[str, Any] | None = None
    epochs: int | None = Field(default=None, ge=1)


class Ranking(Part):
    """``verified``: by the lower end of best known, from ``minimum_level`` of verification on.

    ``reported``: in the order of the sources' own numbers, of which nothing was verified here.
    """

    rule: Literal["verified", "reported"] = "verified"
    minimum_level: int = Field(default=0, ge=0, le=3)


class BoardDefinition(Part):
    """One board. Whatever is not said here is no condition."""

    id: str
    title: str
    description: str = ""
    data: BoardData
    threat: BoardThreat
    protocol: BoardProtocol | None = None
    division: Literal["open", "closed"] = "open"
    """``closed`` admits nothing else; on an open board the entries that fulfil `closed` are marked."""
    closed: Closed | None = None
    columns: tuple[str, ...] = ()
    """Titles of the table's columns in their order; empty: all that have content."""
    ranking: Ranking = Ranking()

    @field_validator("id")
    @classmethod
    def _safe(cls, value: str) -> str:
        if not is_safe(value) or value.casefold() == "readme":
            raise ValueError("must be a plain file name of letters, digits and ._- that no system reserves")
        return value

    @field_validator("columns")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [title for title in value if title not in COLUMNS]:
            raise ValueError(f"there is no column '{unknown[0]}'; there are {', '.join(COLUMNS)}")
        return value

    @model_validator(mode="after")
    def _checkable(self) -> "BoardDefinition":
        if self.division == "closed" and self.closed is None:
            raise ValueError("a closed division needs 'closed': training_data and arch")
        if self.ranking.rule == "verified":
            _verifiable(self)
        return self

    @property
    def eps(self) -> str:
        """The budget in its one spelling; empty where the board has none."""
        return "" if self.threat.eps is None else _spelled(self.threat.eps)

    def misfits(self, record: Record) -> list[str]:
        """Why a run does not belong here, in words; none where it does."""
        request = record.request
        asked = {
            "data fingerprint": (self.data.fingerprint, request.data.fingerprint),
            "number of examples": (self.data.n, request.data.n),
            "norm": (self.threat.norm, request.threat.norm),
            "eps": (self.eps or None, str(Eps.parse(request.threat.eps))),
            "protocol": (
                self.protocol and f"{self.protocol.name} version {self.protocol.version}",
                f"{request.protocol.name} version {request.protocol.version}",
            ),
        }
        words = [_differs(what, *pair) for what, pair in asked.items() if pair[0] not in (None, pair[1])]
        pinned = self.protocol.sha256 if self.protocol else None
        if pinned not in (None, found := protocol_sha256(request.protocol)):
            words.append(_differs("sha256 of the protocol's stages", pinned, found))
        if self.division == "closed":
            words += [f"closed division: {why}" for why in self.outside(record)]
        return words

    def outside(self, record: Record) -> list[str]:
        """Why a run is not in the closed division; one reason at least where the board has none."""
        if self.closed is None:
            return ["the board has no closed division"]
        model = record.request.model
        trained = model.defense or {}
        data, settings = (part if isinstance(part := trained.get(k), dict) else {} for k in ("data", "settings"))
        asked: dict[str, tuple[Any, Any]] = {"architecture": (self.closed.arch, model.arch)}
        if self.closed.training_data not in (data.get("fingerprint"), data.get("name")):
            named = data.get("fingerprint") or data.get("name")
            asked["training data"] = (self.closed.training_data, named)
        if self.closed.arch_params is not None:
            asked["parameters of the architecture"] = (self.closed.arch_params, model.arch_params)
        if self.closed.epochs is not None:
            asked["epochs"] = (self.closed.epochs, settings.get("epochs"))
        return [_differs(what, want, got) for what, (want, got) in asked.items() if want != got]


def load_definition(path: Path) -> BoardDefinition:
    """The definition in a file; raises `InputError` that names file, key and what was expected."""
    import yaml

    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} is larger than {_MOST_BYTES} bytes: it is no definition of a board.")
    try:
        body = yaml.safe_load(read_bytes(path).decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}.") from error
    if not isinstance(body, dict):
        raise InputError(f"{path} must hold keys like id, title, data and threat, got {type(body).__name__}.")
    found = validated(BoardDefinition, body, str(path), "the definition of a board")
    if found.id != path.stem:
        raise InputError(f"{path}: 'id' is '{found.id}', but the file's name says '{path.stem}'; make them equal.")
    return found


def protocol_sha256(protocol: ProtocolPart) -> str:
    """Over name, version and all stages with their parameters; not over whether contributions were looked for."""
    return hashlib.sha256(canonical(protocol.model_dump(mode="json", exclude={"contributions"}))).hexdigest()


def _verifiable(board: BoardDefinition) -> None:
    """What can be verified: a data set by its hash, a norm with an eps, a protocol."""
    if board.threat.norm not in NORMS:
        raise ValueError(f"threat.norm '{board.threat.norm}' must be one of {', '.join(NORMS)}, or ranking 'reported'")
    if board.threat.eps is None or board.data.fingerprint is None or board.protocol is None:
        raise ValueError("a board of verified runs needs threat.eps, data.fingerprint and protocol")
    try:
        Eps.parse(board.threat.eps)
    except UsageError as error:
        raise ValueError(f"threat.eps: {error}") from error


def _spelled(eps: str) -> str:
    try:
        return str(Eps.parse(eps))
    except UsageError:  # a source's own words
        return eps


def _differs(what: str, want: object, got: object) -> str:
    return f"{what}: the board wants {want}, the run has {'none' if got is None else got}"
