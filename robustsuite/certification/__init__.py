"""One file a certifier. A certificate is a proof about the model as it is executed in float32."""

from robustsuite.certification.base import Certificates, Certifier
from robustsuite.registry import register_certifier

__all__ = ["Certificates", "Certifier", "register_certifier"]
