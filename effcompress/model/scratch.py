"""Training from scratch: ``random: true`` beside a source takes its architecture without its
weights. Imports neither torch nor transformers.

Exports into a stock class write ``RECORD`` beside config.json, with what that file cannot state:
the shapes before padding, and the norms' epsilon for gains of 1 (a pruned model's own epsilon
compensates for removed channels).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.families import find_family
from effcompress.model.lineage import is_pruned
from effcompress.types import Config, Fields

RECORD = "effcompress-architecture.json"
"""File of an exported folder with the configuration for training from scratch."""
_WEIGHTS_OWN = ("quantization_config",)


def record(config: Config) -> str:
    """Returns the text of ``RECORD``."""
    return json.dumps(config, indent=2) + "\n"


def rope_of(config: Config) -> Fields:
    """Fields that older configurations have at the top level, newer ones in `rope_parameters`."""
    stated = config.get("rope_parameters")
    rope = stated if isinstance(stated, Mapping) else {}
    return {key: rope[key] for key in ("rope_theta", "rope_type") if key in rope}


def architecture(config: Config, shape: Config, name: str) -> Fields:
    """Returns the configuration of the model to initialise: the source's, with the fields of
    ``shape`` replaced. ``name`` is the source in words.

    Raises:
        SourceError: a field of ``shape`` cannot be laid over this configuration.
    """
    plain = {key: value for key, value in config.items() if key not in _WEIGHTS_OWN}
    own = {_alias(config, key): value for key, value in shape.items()}
    rope = rope_of(plain)
    held = {**plain, **rope}
    changed = {k: value for k, value in own.items() if k not in held or held[k] != value}
    if is_pruned(plain):
        for field in changed:
            raise SourceError(
                f"{name} records the shape of every parameter, and `shape` cannot scale those",
                where=f"model.shape.{field}",
                fix=f"remove `{field}`, or take a source whose layers are all alike",
            )
        return {**plain, "pruned": {**plain["pruned"], "epsilons": {}}}
    if "model_type" in changed:
        raise SourceError(
            f"{name} is a {plain.get('model_type')}, and `shape` cannot make it another class",
            where="model.shape.model_type",
            fix="write the whole configuration under `shape`, without a source, to start from it",
        )
    result: Fields = {**plain, **_per_layer(plain, changed, name), **changed}
    for field in rope.keys() & changed.keys():
        result["rope_parameters"] = {**result["rope_parameters"], field: result.pop(field)}
    return result


def _alias(config: Config, field: str) -> str:
    """The architecture's own name of a field (``hidden_size`` is ``n_embd`` in GPT-2)."""
    family = find_family(config.get("model_type"))
    return family.aliases.get(field, field) if family else field


def _per_layer(config: Config, changed: Config, name: str) -> dict[str, list[Any]]:
    """Shortens lists with one entry per layer when ``shape`` asks for fewer layers."""
    field = _alias(config, "num_hidden_layers")
    before, after = config.get(field), changed.get(field)
    if before is None or after is None:
        return {}
    found: dict[str, list[Any]] = {}
    for key, value in config.items():
        if not isinstance(value, list) or len(value) != before or key in changed:
            continue
        if after > before:
            raise SourceError(
                f"{name} has {before} entries in {key}, one per layer, for {after} layers",
                where=f"model.shape.{field}",
                fix=f"write `{key}` under `shape` as well",
            )
        found[key] = value[:after]
    return found


def require_unpadded(folder: Path, vocab: int) -> None:
    """Raises SourceError if a weight has rows or columns of zeros and no ``RECORD`` states the
    shapes before padding: with random weights, the padding would become trainable. Matrices with a
    ``vocab`` dimension are skipped, since unused tokens may have zero rows.
    """
    from safetensors import safe_open

    if (folder / RECORD).is_file():
        return
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping, it has no __iter__
                weight = tensors.get_tensor(name)
                if weight.dim() < 2 or vocab in weight.shape:
                    continue
                used = weight.ne(0)
                if not (used.flatten(1).any(1).all() and used.any(0).all()):
                    raise SourceError(
                        f"'{name}' has rows or columns of zeros, as folders padded with zeros do; "
                        "trained from scratch they would come alive, and this folder does not say "
                        "how wide the layers were",
                        where=f"model.folder: {folder}",
                        fix="export the run again (`effcompress export RUN --as exact`) and name "
                        "that folder",
                    )
