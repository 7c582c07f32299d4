"""Which torch device "auto" is, and a clear error for one that is not there."""

from __future__ import annotations

import torch

from tadpipe.errors import ConfigError


def resolve_device(name: str) -> str:
    """ "auto" -> "cuda" where there is one, else "cpu"; anything else is checked.

    Raises:
        ConfigError: not a device name, or a device this machine lacks.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return name
    if kind == "cuda":
        raise ConfigError(
            "No CUDA device on this machine.", f"device {name}", "Use --device cpu or auto."
        )
    raise ConfigError("Unknown device.", f"device {name}", "Use cpu, cuda, cuda:1 or auto.")
