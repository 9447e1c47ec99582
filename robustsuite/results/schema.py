"""The record of one run, schema version 1: what is stored, published and checked.

The order and the meaning of the fields are part of the format: change either only with a new `SCHEMA_VERSION` and a
migration. JSON holds no NaN; an unknown key is an error that names it.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

SCHEMA_VERSION = 1


class Part(BaseModel):
    """Base of every part of a record."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(Part):
    """One number: a share of ``n`` examples with its exact (Clopper-Pearson) 95 % interval."""

    name: str
    value: float = Field(ge=0, le=1)
    ci95: tuple[float, float]
    n: int = Field(ge=1)


class ModelPart(Part):
    """The model: how to load it again, and what its tensors are."""

    name: str
    reference: str
    """What the user named: a path or ``py:module:factory``."""
    arch: str | None = None
    arch_params: dict[str, Any] = {}
    weights_sha256: str
    """Over the tensors (sorted name, shape, dtype, bytes), so that .pt and .safetensors agree."""
    format: str
    n_params: int
    normalization: dict[str, Any] | None = None
    output: Literal["logits", "probabilities"] = "logits"
    wrap: dict[str, Any] | None = None
    """The inference-time defense around it (name and parameters), such as smoothing."""
    defense: dict[str, Any] | None = None
    """What its sidecar says of its training."""
    randomized: bool = False
    eot: int | None = Field(default=None, ge=1)
    """Draws of a randomised model for one evaluation by an attack; None for others, and then left out of the JSON."""
    draws: int | None = Field(default=None, ge=1)
    """Draws for one verdict, likewise."""
    differentiable: str = "full"
    trust_pickle: bool = False
    load_options: dict[str, Any] = {}
    """Whatever else the user typed to load it (weights file, prefix, mean and std, ...): enough to do it again."""

    @model_serializer(mode="wrap")
    def _only_where_random(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No trace of draws in the record, and so in the run key, of a model that has none."""
        return {k: v for k, v in dump(self).items() if v is not None or k not in ("eot", "draws")}


class DataPart(Part):
    """The examples: where they come from and the hash of what was evaluated."""

    name: str
    source: str
    split: str | None = None
    subset: str
    n: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    input_shape: tuple[int, ...]
    fingerprint: str


class ThreatPart(Part):
    """The threat model; ``eps`` is the exact fraction as text."""

    norm: Literal["Linf", "L2", "L1"]
    eps: str
    eps_float: float = Field(ge=0)


class StagePlan(Part):
    """One stage of a protocol: a plugin with all its parameters, defaults included."""

    name: str
    kind: Literal["attack", "certifier"]
    plugin: str
    params: dict[str, Any] = {}
    norm_params: dict[str, dict[str, Any]] = {}
    """Parameters for one norm alone (``params`` win over them); none are left in the plan of a run."""
    when: Literal["always", "supported", "flagged"] = "always"
    """``supported``: skipped, with the reason in the record, where the plugin does not apply. ``flagged``: run on what
    is left when a suspicion was raised."""
    tail: bool = False
    """Expensive and seldom fruitful: `ProtocolPart.tail_sample` thins it out."""


class ProtocolPart(Part):
    """The ordered list of stages that was run."""

    name: str
    version: int
    stages: tuple[StagePlan, ...]
    contributions: bool = False
    """Whether later attacks also try what earlier ones broke, so that exclusive contributions are known."""
    tail_sample: int | None = Field(default=None, ge=1)
    """Run tail stages only on this many of the examples that the other stages leave."""


class Request(Part):
    """Everything that can change an outcome, and nothing else; its hash is the run's key."""

    semantics_version: int
    model: ModelPart
    data: DataPart
    threat: ThreatPart
    protocol: ProtocolPart
    seed: int
    slots: int
    block_size: int
    threads: int
    device: str
    plugins: dict[str, str] = {}
    """sha256 of every plugin file that was loaded, by name."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: bool = False
    """How attacks make their passes; verdicts are float32 always. Both are left out of the JSON at their defaults."""

    @model_serializer(mode="wrap")
    def _only_where_reduced(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No trace in the run key of attacks in plain float32."""
        plain = {"precision": "float32", "channels_last": False}
        return {k: v for k, v in dump(self).items() if k not in plain or v != plain[k]}

    @property
    def run_key(self) -> str:
        """16 hex digits of the sha256 over the canonical JSON, without where model and data lie and their names."""
        body = self.model_dump(mode="json")
        for part, names in _WHEREABOUTS:
            for name in names:
                body[part].pop(name)
        return hashlib.sha256(canonical(body)).hexdigest()[:16]


class StageResult(Part):
    """What one stage did. Passes are those that its examples needed, padding and speculation left out.

    ``extra``: passes on examples that were decided already (audit and overlap).
    """

    name: str
    kind: Literal["clean", "attack", "certifier"]
    plugin: str
    status: Literal["done", "skipped", "error"]
    reason: str = ""
    """Why it was skipped, or the error that stopped it."""
    n_in: int = 0
    """Examples that were undecided when it began."""
    n_audited: int = 0
    """Decided examples that it worked on all the same: certified ones for an attack, broken ones for a certifier. 0 of
    an attack of the tail, where no suspicion was raised."""
    n_overlapped: int = 0
    """Examples that attacks before had broken and it tried all the same, for the exclusive contributions."""
    n_broken: int = 0
    """The marginal contribution: what the stages before had left."""
    n_exclusive: int | None = None
    """Broken by this attack, and by no other of the protocol (None: not looked at)."""
    n_certified: int = 0
    n_error: int = 0
    n_refused: int = 0
    """Candidates that the attack claimed and the evaluator did not confirm."""
    forward: int = 0
    backward: int = 0
    extra_forward: int = 0
    extra_backward: int = 0
    guarantee: str = ""
    slots: int = 0


class Flag(Part):
    """A check of the model or of the attacks: raised or not, with the evidence in words."""

    name: str
    raised: bool
    evidence: str
    remedy: str = ""


class TailPart(Part):
    """What the tail stages did to a random sample of the examples that the other stages had left undecided.

    ``lower`` is a one-sided 95 % limit of the robust accuracy that the whole protocol would find on these ``n``
    examples; it cannot be above ``upper``, which counts every example that was not broken.
    """

    survivors: int
    sampled: int
    broken: int
    rest_run: bool
    """Whether so many were broken that the tail went on to all survivors; the figure is then exact."""
    estimate: float = Field(ge=0, le=1)
    lower: float = Field(ge=0, le=1)
    upper: float = Field(ge=0, le=1)


class Contradiction(Part):
    """An example that one stage certified and another broke."""

    example: int
    certified_by: str
    radius: float
    broken_by: str
    distance: float


class FileRef(Part):
    """A file of the run directory."""

    path: str
    sha256: str
    bytes: int
    role: Literal["verdicts", "adversarials", "gallery"]


class Provenance(Part):
    """The software that made the run."""

    suite_version: str
    git: dict[str, Any]
    python: str
    packages: dict[str, str]
    determinism: dict[str, Any]


class Host(Part):
    """Times and the machine: the only part that may differ between two runs of one request."""

    created_utc: str
    command: str = ""
    hostname_sha256: str
    os: str
    cpu: str
    device_name: str
    stage_seconds: dict[str, float]
    executed_forward: int = 0
    executed_backward: int = 0
    wall_seconds: float = 0.0


class Record(Part):
    """One sealed run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["evaluation"] = "evaluation"
    run_key: str
    status: Literal["complete", "partial", "failed"]
    request: Request
    metrics: tuple[Metric, ...]
    stages: tuple[StageResult, ...]
    flags: tuple[Flag, ...] = ()
    unreliable: bool = False
    tail: TailPart | None = None
    contradictions: tuple[Contradiction, ...] = ()
    files: tuple[FileRef, ...] = ()
    provenance: Provenance
    outcome_sha256: str = ""
    """Over everything but `provenance`, `host` and the two hashes: equal for equal outcomes."""
    host: Host
    content_sha256: str = ""
    """Over everything but itself: integrity."""

    def metric(self, name: str) -> Metric | None:
        """The metric called ``name``, if the run has it."""
        return next((m for m in self.metrics if m.name == name), None)

    def sealed(self) -> "Record":
        """The same record with both hashes filled in."""
        body = self.model_dump(mode="json")
        outcome = {k: v for k, v in body.items() if k not in _OUTSIDE_OUTCOME}
        body["outcome_sha256"] = hashlib.sha256(canonical(outcome)).hexdigest()
        body.pop("content_sha256")
        body["content_sha256"] = hashlib.sha256(canonical(body)).hexdigest()
        return Record.model_validate(body)


_WHEREABOUTS = (
    ("model", ("name", "reference", "format", "defense", "trust_pickle", "load_options")),
    ("data", ("name", "source", "split", "subset")),
)
_OUTSIDE_OUTCOME = frozenset({"provenance", "host", "outcome_sha256", "content_sha256"})


def canonical(body: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Hashes are taken over it."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
