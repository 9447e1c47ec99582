"""How float32 is multiplied: in full where verdicts are made, on request in TF32 or bfloat16 where attacks search."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch

from robustsuite.errors import UsageError

Precision = Literal["float32", "tf32", "bf16"]


def parse_precision(text: str, device: torch.device) -> Precision:
    """What ``--precision`` names; raises `UsageError` for what does not exist, or not on this device."""
    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    if text not in known:
        raise UsageError(f"--precision must be one of {', '.join(known)}, got '{text}'.")
    if text == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 is an arithmetic of CUDA, not of '{device.type}'; give float32 or bf16.")
    return known[text]


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32 inside, whatever global switches say, and these as they were after: verdicts are made here.

    Off are TF32, cudnn's choice of algorithms by timing, and bfloat16 inside of float32 products, which
    `torch.set_float32_matmul_precision` allows on a CPU too.
    """
    precision, cuda = _overall(), torch.cuda.is_initialized()
    if precision == "highest" and not cuda and all(map(_plain, _PARTS[:1])):
        yield  # nothing to switch (the overall setting covers all but convolutions), and this is an inner loop
        return
    if precision not in (None, "highest"):
        torch.set_float32_matmul_precision("highest")
    parts = {part: part.fp32_precision for part in _PARTS if not _plain(part)}
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        with _deterministic(tf32=False) if cuda else nullcontext():
            yield
    finally:
        for part, value in parts.items():
            part.fp32_precision = value
        if precision not in (None, "highest"):
            torch.set_float32_matmul_precision(precision)


@contextmanager
def tf32_arithmetic() -> Iterator[None]:
    """The same but for float32 products on CUDA, which are TF32: for attacks, whose word does not count."""
    with exact_arithmetic(), _deterministic(tf32=True):
        parts = {part: part.fp32_precision for part in _PARTS}
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")
            for part, value in parts.items():
                part.fp32_precision = value


def _plain(part: Any) -> bool:
    """Whether a backend multiplies float32 as float32."""
    return part.fp32_precision not in ("bf16", "tf32")


# Before torch 2.9 single backends cannot be told anything.
_PARTS: list[Any] = [
    part
    for backend, name in (("mkldnn", "conv"), ("mkldnn", "matmul"), ("cuda", "matmul"))
    if hasattr(part := getattr(getattr(torch.backends, backend), name, None), "fp32_precision")
]


def _overall() -> str | None:
    """torch's one setting for all; None where single backends have been set, which it then refuses to summarise."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _deterministic(*, tf32: bool) -> Any:
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=tf32)
