"""A classifier as an ONNX file, checked to be the same function: what verifiers outside of Python's reach read."""

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.models.classifier import Classifier

# Newer ones write some operators in forms that verifiers do not read yet.
OPSET = 13
# Of the largest logit: batch normalisation is folded into weights, which moves the last bits.
_TOLERANCE = 1e-4
_NEED = "onnx is needed to hand a network to a verifier and cannot be imported ({}): pip install onnx"


def export(model: Classifier, path: Path) -> None:
    """Write the network of ``model`` to ``path``: input ``x`` ``[N,...]``, output ``y`` ``[N,K]``, N left open.

    Raises `PrerequisiteError` without the package onnx, `InputError` where the network cannot be exported, for example
    because it takes another way for other inputs.
    """
    _import("onnx")
    network = copy.deepcopy(model.module).cpu().eval()
    example = torch.zeros(1, *model.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # The exporter below follows one input and would write down its way alone; this one refuses.
            torch.export.export(network, (example,), strict=False)
            torch.onnx.export(
                network,
                (example,),
                str(path),
                dynamo=False,  # the other writes the batch size of the example into reshapes
                opset_version=OPSET,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            )
        except Exception as error:  # it raises whatever comes
            raise InputError(f"this network cannot be exported to ONNX ({_first_line(error)}).") from error


def check(model: Classifier, path: Path, x: Tensor) -> None:
    """Compare the file with the classifier on images ``x`` ``[N,...]`` and their negatives; `InputError` where it errs.

    By onnxruntime, or without it by the slower evaluator that onnx brings along.
    """
    points = torch.cat([x, 1 - x])
    expected = model.logits(points).double().cpu()
    try:
        found = logits(path, points).double()
    except Exception as error:  # as above
        raise InputError(f"the network's ONNX file cannot be run ({_first_line(error)}).") from error
    if found.shape != expected.shape:
        raise InputError(f"the network gives logits {list(expected.shape)}, its ONNX file {list(found.shape)}.")
    error = float((found - expected).abs().max())
    if not error <= _TOLERANCE * float(expected.abs().max()):
        raise InputError(f"the network's ONNX file is another function: its logits differ by up to {error:.3g}.")


def logits(path: Path, x: Tensor) -> Tensor:
    """What the file computes of ``x`` ``[N,...]``, on the CPU."""
    values = {"x": x.detach().cpu().numpy()}
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        graph = _import("onnx.reference").ReferenceEvaluator(str(path), new_ops=[_batch_normalization()])
    else:
        graph = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.as_tensor(graph.run(None, values)[0])


def _batch_normalization() -> type:
    """Batch normalisation for onnx's evaluator, whose own mixes in the statistics of the batch in opsets 9 to 13."""

    def run(_: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float, **unused: Any) -> Any:
        del unused
        scale, bias, mean, var = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var))
        return ((scale * (x - mean) / (var + epsilon) ** 0.5 + bias).astype(x.dtype),)

    return type("BatchNormalization", (_import("onnx.reference.op_run").OpRun,), {"op_domain": "", "_run": run})


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PrerequisiteError(_NEED.format(error)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
