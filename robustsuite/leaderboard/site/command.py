"""The command that makes a run again, from its record alone, and the protocol file that the command names."""

import json
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from robustsuite.results.schema import ModelPart, ProtocolPart, Record, StagePlan

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS = {"true", "false", "null", "True", "False", "None", "NaN", "Infinity"}


def command(record: Record, protocol_file: str) -> list[str]:
    """`robustsuite eval` with everything that can change the outcome, one option (and its value) a text.

    The protocol comes from ``protocol_file``, which holds `protocol_yaml`: a tier's name would mean another protocol
    after its next version.
    """
    request = record.request
    threat, data, model = request.threat, request.data, request.model
    parts = [["robustsuite", "eval", _reference(model)], *_model(model), *_wrap(model, record.host.command)]
    parts.append(["--data", data.source])
    parts += [["--split", data.split]] * bool(data.split)
    parts += [["--subset", data.subset]] * (data.subset not in ("", "all"))
    classes = model.load_options.get("num_classes")
    parts += [["--num-classes", str(classes)]] * bool(classes)
    parts += [["--threat", f"{threat.norm}:{threat.eps}"], ["--protocol", protocol_file]]
    parts += _behind_the_tail(request.protocol)
    if request.protocol.tail_sample:
        parts.append(["--tail-sample", str(request.protocol.tail_sample)])
    parts += [["--seed", str(request.seed)], ["--slots", str(request.slots)], ["--threads", str(request.threads)]]
    parts.append(["--device", request.device])
    parts += [["--precision", request.precision]] * (request.precision != "float32")
    parts += [["--channels-last"]] * request.channels_last
    parts += [["--plugin", name] for name in sorted(request.plugins) if name != _own_code(model)]
    return [shlex.join(part) for part in parts]


def protocol_yaml(protocol: ProtocolPart) -> str:
    """The protocol as a file for ``--protocol``, every parameter written out."""
    import yaml

    late = {stage.name for stage in _late(protocol)}
    stages = [_stage(stage) for stage in protocol.stages if stage.name not in late]
    body = {
        "name": _base_name(protocol),
        "version": protocol.version,
        "contributions": protocol.contributions,
        "stages": stages,
    }
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


def _reference(model: ModelPart) -> str:
    return str(model.load_options.get("reference", model.reference))


def _model(model: ModelPart) -> list[list[str]]:
    """The options that load the model: as they were typed where the record says so, else as they were understood."""
    typed = dict(model.load_options)
    if "reference" not in typed:
        typed |= {"arch": model.arch, "arch_params": model.arch_params, "output": model.output}
        typed |= {"randomized": model.randomized, "trust_pickle": model.trust_pickle, **(model.normalization or {})}
    parts: list[list[str]] = []
    if typed.get("arch") and typed["arch"] != _reference(model):
        parts.append(["--arch", str(typed["arch"])])
    parts += [["-M", f"{name}={_value(value)}"] for name, value in (typed.get("arch_params") or {}).items()]
    for name in ("weights", "strip_prefix", "model_dir"):
        if typed.get(name):
            parts.append([f"--{name.replace('_', '-')}", str(typed[name])])
    for name in ("mean", "std"):
        if typed.get(name):
            parts.append([f"--{name}", ",".join(repr(float(v)) for v in typed[name])])
    if typed.get("output", "logits") != "logits":
        parts.append(["--output", str(typed["output"])])
    switches = {"by_order": "--match-by-order", "randomized": "--randomized", "trust_pickle": "--trust-pickle"}
    parts += [[option] for name, option in switches.items() if typed.get(name)]
    return parts + [["--eot", str(model.eot)]] * bool(model.eot)


def _wrap(model: ModelPart, typed: str) -> list[list[str]]:
    """Not what a sidecar puts around the network: that may not be named again.

    The record does not say who named it, so the command that was ``typed`` decides, if there is one; else whether
    there is a sidecar.
    """
    wrap = model.wrap or {}
    named = "--wrap" in typed if typed else model.defense is None
    if not wrap or not named or wrap.get("kind") == "certifier":
        return []
    params = {k: v for k, v in wrap.items() if k not in ("kind", "name")}
    return [["--wrap", str(wrap.get("name"))], *(["-W", f"{k}={_value(v)}"] for k, v in params.items())]


def _value(value: Any) -> str:
    """As the command line reads it back."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value not in _WORDS:
        return value
    return json.dumps(value)


def _own_code(model: ModelPart) -> str:
    """The file behind ``py:file.py:factory``, which is no plugin but hashed like one."""
    place = (model.arch or "").removeprefix("py:").partition(":")[0]
    return PurePosixPath(place).name if place.endswith(".py") else f"{place.rpartition('.')[2]}.py"


def _late(protocol: ProtocolPart) -> list[StagePlan]:
    """Certifiers behind tail stages: a protocol file may not hold them there, ``--certify-last`` puts them."""
    tail = [i for i, stage in enumerate(protocol.stages) if stage.tail]
    behind = protocol.stages[tail[0] :] if tail else ()
    return [stage for stage in behind if stage.kind == "certifier" and stage.when != "flagged"]


def _behind_the_tail(protocol: ProtocolPart) -> list[list[str]]:
    late = _late(protocol)
    if not late:
        return []
    parts = [["--certify-last", ",".join(stage.plugin for stage in late)]]
    changed = [(stage.name, k, v) for stage in late for k, v in stage.params.items()]
    if _plain_name(protocol).endswith("+"):
        return parts + [["-A", f"{stage}.{name}={_value(value)}"] for stage, name, value in changed]
    return parts


def _plain_name(protocol: ProtocolPart) -> str:
    return protocol.name.removesuffix(f"~{protocol.tail_sample}")


def _base_name(protocol: ProtocolPart) -> str:
    """The name before ``--certify-last`` and ``--tail-sample`` add theirs."""
    name, late = _plain_name(protocol), _late(protocol)
    return name.removesuffix("+").removesuffix("+" + "+".join(s.plugin for s in late)) if late else name


def _stage(stage: StagePlan) -> dict[str, Any]:
    body: dict[str, Any] = {stage.kind: stage.plugin, "name": stage.name}
    if stage.when != "always":
        body["when"] = stage.when
    if stage.tail:
        body["tail"] = True
    if stage.params:
        body["params"] = stage.params
    if stage.norm_params:
        body["norm_params"] = stage.norm_params
    return body
