"""From scratch: the architecture of a source, with weights that are drawn anew. Imports no torch.

A pruned folder is not quite the architecture it was found as. The repairs of norms changed their
epsilon (``removal/norms.py``), and zeros in a padded folder would come to life. What a new model of
the same shape needs instead is recorded when a folder is written, under ``from_scratch`` in its
config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.integrity import header_of
from effcompress.model.lineage import is_pruned, parent_of
from effcompress.model.small import NAMES
from effcompress.types import Config

SCRATCH = "from_scratch"
"""Key of a configuration: fields that are other ones in a model with new weights."""

# What a file says of its weights, which are not used.
_OF_WEIGHTS = ("quantization_config", "dtype", "torch_dtype", "transformers_version")
# What an exact folder's own class needs and this package does not: it has the same class.
_OF_CLASS = ("auto_map", "pruned_per_layer_config", *_OF_WEIGHTS)
_EPSILON = re.compile(r"norm_eps(ilon)?")


def healthy_epsilon(config: Config, field: str) -> Any:
    """The epsilon that ``field`` had before any pruning, as far as the configuration knows."""
    return (config.get(SCRATCH) or {}).get(field, config.get(field))


def differing(wanted: Config, written: Config) -> dict[str, Any]:
    """What must be recorded in a folder with the configuration ``written``, so that ``wanted`` can
    be built from it: the fields in which they differ.
    """
    return {
        field: value
        for field, value in wanted.items()
        if field[0] != "_"
        and field not in (SCRATCH, *_OF_CLASS)
        and (field not in written or written[field] != value)
    }


def fresh_config(real: Config, shape: Config, name: str) -> dict[str, Any]:
    """The configuration of a new model: that of the source called ``name``, overridden by
    ``shape``. Shapes that a pruned folder stores per parameter stay.

    Raises:
        SourceError: ``shape`` speaks of another architecture, or of sizes that cannot be had; or
            the source does not say what its epsilon was before it was pruned.
    """
    config = {k: v for k, v in real.items() if k != SCRATCH and k not in _OF_WEIGHTS}
    config |= real.get(SCRATCH) or {}
    parent = parent_of(config)
    if shape.get("model_type") not in (None, parent.get("model_type")):
        raise SourceError(
            f"`shape` says {shape['model_type']}, {name} is a {parent.get('model_type')}",
            where="model.shape.model_type",
            fix="leave it out; another architecture needs a whole `shape` and no source",
        )
    said = {field: value for field, value in shape.items() if field != "model_type"}
    if is_pruned(config):
        _require_no_sizes(said, parent, name)
        config["pruned"] = {**config["pruned"], "epsilons": {}}
    else:
        config.pop("architectures", None)
        config = _cut_lists(config, said, name)
    config = _overridden(config, said, name)
    _require_healthy(config, said, name)
    return config


def require_true_shapes(folder: Path, real: Config) -> None:
    """Raises SourceError if the folder is padded and does not say what is padding: a matrix ends in
    a row of zeros, which no training leaves. A folder without weights says nothing.
    """
    if "pruned" in (real.get(SCRATCH) or {}) or is_pruned(real):
        return
    for file in sorted(folder.glob("*.safetensors")):
        if name := _ends_in_zeros(file, real):
            raise SourceError(
                f"this folder is padded: {name} ends in zeros, which would come to life, and "
                "config.json does not say what is padding",
                where=f"model: {folder.name}",
                fix="name the same model as another form: effcompress export RUN --as exact",
            )


def _ends_in_zeros(file: Path, config: Config) -> str | None:
    vocab = config.get("vocab_size")
    try:
        start, header = header_of(file)
    except ValueError:
        return None  # what cannot be read is not used either
    with file.open("rb") as stream:
        for name, entry in header.items():
            shape, (first, end) = entry["shape"], entry["data_offsets"]
            # Rows of tokens and positions that never occurred may well be zero.
            if len(shape) < 2 or not shape[0] or shape[0] == vocab or "embed" in name:
                continue
            row = (end - first) // shape[0]
            stream.seek(start + end - row)
            if not any(stream.read(row)):
                return name
    return None


def _require_no_sizes(said: Config, parent: Config, name: str) -> None:
    for field, value in said.items():
        had = parent.get(field)
        free = isinstance(value, float | str | Mapping) or isinstance(had, float)
        if not (free or had == value or field.startswith("rope_") or field.endswith("_token_id")):
            raise SourceError(
                f"`shape` says {field}: {value}, but every parameter of {name} has a shape of its "
                "own, which stays",
                where=f"model.shape.{field}",
                fix="leave it out, or take a folder whose layers are all alike as the source",
            )


def _cut_lists(config: dict[str, Any], said: Config, name: str) -> dict[str, Any]:
    """With fewer layers, the first entries of fields that have one for each layer."""
    field = next((n for n in NAMES["num_hidden_layers"] if n in config), "num_hidden_layers")
    had, has = config.get(field), said.get(field)
    if not isinstance(had, int) or not isinstance(has, int) or has == had:
        return config
    lists = [k for k, v in config.items() if isinstance(v, list) and len(v) == had > 1]
    for key in lists:
        if key not in said and has > had:
            raise SourceError(
                f"{key} of {name} speaks of {had} layers, `shape` wants {has}",
                where="model.shape.num_hidden_layers",
                fix=f"write `{key}` under shape, with {has} entries",
            )
    return {k: v[:has] if k in lists else v for k, v in config.items()}


def _overridden(config: dict[str, Any], said: Config, name: str) -> dict[str, Any]:
    found = dict(config)
    for field, value in said.items():
        for names in NAMES.values():
            own = next((n for n in names if n in config), field)
            if field in names and field not in config and own != field:
                raise SourceError(
                    f"{name} calls {field} '{own}'",
                    where=f"model.shape.{field}",
                    fix=f"write `{own}`",
                )
        # Older spellings stand at the top; newer configurations keep them together.
        together = found.get("rope_parameters")
        if isinstance(together, Mapping) and field in together:
            found["rope_parameters"] = {**together, field: value}
        else:
            found[field] = value
    return found


def _require_healthy(config: Config, said: Config, name: str) -> None:
    for field, value in config.items():
        if field in said or not _EPSILON.search(field) or not isinstance(value, float):
            continue
        power = 10.0 ** math.floor(math.log10(value) + 1e-6) if value > 0 else value
        # People choose powers of ten; a gguf file holds them as 32-bit numbers.
        if not math.isclose(value, power, rel_tol=1e-6):
            raise SourceError(
                f"{field} of {name} is {value:.6g}, as repairs of pruned norms leave it, and a new "
                "model needs the one before",
                where=f"model.shape.{field}",
                fix=f"write it under shape, e.g. {field}: {power:.0e}",
            )
