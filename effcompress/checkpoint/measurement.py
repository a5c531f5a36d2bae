"""A measurement on disk: its tensors, and its values that are none, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effcompress.checkpoint.save import MISFITS

_VALUES = "values"


def write_measurement(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Writes both; ``values`` are JSON. Raises OSError or SafetensorError where that fails."""
    # Copies: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, path, {_VALUES: json.dumps(values)})


def read_measurement(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns what ``write_measurement`` wrote; None where there is no such file, or another."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(json.loads(file.metadata()[_VALUES]))
    except (OSError, SafetensorError, *MISFITS):
        return None
