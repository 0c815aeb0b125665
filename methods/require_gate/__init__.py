"""Check for services: refuse a prompt that could show or store an image that no Safety Gate has let through.

Pure standard library: it runs in the service that stands before ComfyUI, without torch and without the host.
"""

from .arguments import GateModel
from .check import require_gate
from .prompt import Refused

__all__ = ["GateModel", "Refused", "require_gate"]
