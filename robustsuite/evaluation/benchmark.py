"""robustbench's ``benchmark()`` on this suite: the same arguments, the same two numbers, a run that can be checked."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from robustsuite.attacks.reference.passes import unchanged
from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError, UsageError
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.models.checkpoint import weights_sha256
from robustsuite.models.classifier import Classifier, exact_arithmetic
from robustsuite.registry import DATASETS
from robustsuite.results.schema import ModelPart, ProtocolPart
from robustsuite.threat import NORMS, Eps, ThreatModel

_ASKED = 16
_INSTEAD = {
    "log_path": "the run's directory (runs=DIR) keeps what every stage did",
    "aa_state_path": "the run's directory is the state: give runs=DIR, and the same call resumes",
    "preprocessing": "hand in images in [0,1], as (x, y) or as a data reference",
    "corruptions_data_dir": "corruptions are no threat model of this suite",
}


def benchmark(
    model: nn.Module,
    n_examples: int = 10_000,
    dataset: str | tuple[Tensor, Tensor] | Dataset = "cifar10",
    threat_model: str = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path = "./data",
    corruptions_data_dir: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    eps: float | str | None = None,
    log_path: str | None = None,
    preprocessing: object = None,
    aa_state_path: str | Path | None = None,
    *,
    protocol: str | ProtocolPart = "standard",
    seed: int = 0,
    runs: str | Path | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy of ``model`` on the first ``n_examples`` of ``dataset`` (all, if there are fewer).

    ``model`` takes images in [0,1] and returns logits; it is evaluated in eval mode on ``device`` (default: cpu), and
    its modes are restored. ``dataset`` is whatever ``--data`` takes, also relative to ``data_dir``, or ``(x, y)``.
    ``eps`` is required (8/255 or "8/255"). ``batch_size`` is the number of slots: part of the run's identity. The
    record is kept below ``runs`` (with ``to_disk``: below ./runs), under the name ``model_name``; there the same call
    resumes. Raises `UsageError` for arguments of robustbench that mean nothing here and says what to use instead.
    """
    given = {"log_path": log_path, "aa_state_path": aa_state_path, "preprocessing": preprocessing}
    _refuse(given | {"corruptions_data_dir": corruptions_data_dir})
    threat = _threat(threat_model, eps)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be one torch.nn.Module, got {type(model).__name__}; call it once a model.")
    data = _first(dataset, n_examples, Path(data_dir))
    with ExitStack() as stack:
        folder = runs or ("runs" if to_disk else stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(unchanged(model))
        classifier, answers = _classifier(model, data, device or "cpu")
        part = ModelPart(
            name=model_name or type(model).__name__,
            reference="memory",
            arch=type(model).__name__,
            arch_params={"answers_sha256": answers},
            weights_sha256=weights_sha256(model.state_dict()),
            format="memory",
            n_params=sum(p.numel() for p in model.parameters()),
        )
        data = dataclasses.replace(data, num_classes=classifier.num_classes)
        plan = load_protocol(protocol) if isinstance(protocol, str) else protocol
        slots = min(batch_size, len(data))
        record = evaluate(prepare(classifier, part, data, threat, plan, seed=seed, slots=slots), Path(folder)).record
    clean, robust = (record.metric(name) if record else None for name in ("clean_accuracy", "robust_accuracy"))
    if clean is None or robust is None:
        raise UsageError(f"protocol '{plan.name}' attacks nothing, so there is no robust accuracy; choose another one.")
    return clean.value, robust.value


def _refuse(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"benchmark() here has no use for {name}: {_INSTEAD[name]}.")


def _threat(norm: str, eps: float | str | None) -> ThreatModel:
    if norm not in NORMS:
        raise UsageError(
            f"threat_model '{norm}' is none of {', '.join(NORMS)}; robustbench's corruptions are not here."
        )
    if eps is None:
        raise UsageError(f"threat_model {norm} needs eps, such as eps=8/255.")
    steps = round(float(eps) * 255) if isinstance(eps, float) else 0
    # A division in the caller's code has lost the fraction: 8/255 is meant, not the float next to it.
    return ThreatModel(norm, Eps.parse(f"{steps}/255" if steps and eps == steps / 255 else eps))


def _first(dataset: str | tuple[Tensor, Tensor] | Dataset, count: int, folder: Path) -> Dataset:
    """The first ``count`` examples; all, if there are fewer."""
    if count < 1:
        raise UsageError(f"n_examples must be at least one, got {count}.")
    if isinstance(dataset, str):
        beside = folder / dataset
        reference = str(beside) if dataset not in DATASETS and beside.exists() else dataset
        with suppress(InputError):  # fewer examples than that, or an error that the next line raises again
            return load_data(reference, subset=f"first:{count}")
        return load_data(reference)
    if not isinstance(dataset, Dataset):
        x, y = dataset
        labels = max(2, int(y.max()) + 1) if len(y) else 2
        dataset = Dataset("tensors", x.cpu(), y.cpu(), torch.arange(len(y)), labels, source="memory")
    return dataset if count >= len(dataset) else dataset.take(torch.arange(count), f"first:{count}")


def _classifier(model: nn.Module, data: Dataset, device: str | torch.device) -> tuple[Classifier, str]:
    """The classifier, and a hash of its answers: what a forward pass does besides its tensors shows in nothing else."""
    x = data.x[:_ASKED].to(device)
    with torch.no_grad(), exact_arithmetic():
        logits = model.to(device).eval()(x).float()
    answers = hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()
    return Classifier(model, num_classes=logits.shape[1], input_shape=data.input_shape, device=device), answers
