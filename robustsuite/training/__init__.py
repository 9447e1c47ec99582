"""The loop that a training-time defense plugs into, and what it hands back."""

from robustsuite.training.checkpoint import save_trained, sidecar_of
from robustsuite.training.loop import train
from robustsuite.training.method import make_composed, make_method, make_trainable
from robustsuite.training.settings import Settings
from robustsuite.training.trained import DivergedError, Epoch, Trained

__all__ = [
    "DivergedError",
    "Epoch",
    "Settings",
    "Trained",
    "make_composed",
    "make_method",
    "make_trainable",
    "save_trained",
    "sidecar_of",
    "train",
]
