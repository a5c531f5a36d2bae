"""Configuration keys of transformers 4 beside those of 5.

Version 5 writes ``rope_parameters`` and ``dtype`` only. Version 4, which servers and converters
still use, ignores both: it computes with a rotary base of 10000 and no scaling, without a word.
Version 5 reads the older keys, too, and prefers them, so
they are written only where the configuration that it then reads is the same.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from effcompress.model.integrity import read_json, tagged
from effcompress.types import Config, Fields

_RENAMED = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
_BASE = {"gpt_neox": "rotary_emb_base"}
_FRACTION = {"gpt_neox": "rotary_pct"}
"""Model types whose keys have other names than ``rope_theta`` and ``partial_rotary_factor``."""
_STRICT = ("phi3", "olmo", "olmo2")
"""Model types whose class of version 4 takes a scaling's ``type`` and numbers, and no other key."""
_APART = "original_max_position_embeddings"


def add_older_keys(folder: Path, config_class: type, inner: str | None = None) -> None:
    """Completes config.json of a folder in place; ``config_class`` is its class in transformers,
    ``inner`` the key of the text model's configuration in that of a multimodal model.
    """
    path = folder / "config.json"
    config = read_json(path)
    part = config if inner is None else config[inner]
    said = {**part, **_stated(part)}
    both = {**said, **older_keys(said)}
    if inner is not None:
        said, both = {**config, inner: said}, {**config, inner: both}
    try:
        same = _read(config_class, both, inner) == _read(config_class, said, inner)
    except Exception:  # noqa: BLE001 (classes refuse older keys in many ways: Gemma 4 with KeyError)
        same = False
    if same:
        text = json.dumps(tagged(both), indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")


def _stated(config: Config) -> Fields:
    """What version 4 would compute otherwise if it is left to be computed: of long rotary factors
    that by which attention is multiplied. Version 5 takes a stated ``factor`` for it, version 4 the
    ratio of positions.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type") != "longrope":
        return {}
    factor, first = rope.get("factor"), rope.get(_APART)
    if "attention_factor" in rope or str(config["model_type"]) in _STRICT:
        return {}
    if factor is None or first is None:
        return {}
    scale = math.sqrt(1 + math.log(factor) / math.log(first)) if factor > 1 else 1.0
    return {"rope_parameters": {**rope, "attention_factor": scale}}


def older_keys(config: Config) -> Fields:
    """Returns what version 4 reads where version 5 reads ``rope_parameters``, ``dtype`` and
    ``num_local_experts``.

    With parameters for each type of layer (Gemma 3), those of full attention are the model's, and
    the base of sliding attention has a key of its own.
    """
    named = {new: old for new, old in _RENAMED.items() if new in config}
    found: Fields = {old: config[new] for new, old in named.items()}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    kind = str(config["model_type"])
    layered = {name: value for name, value in rope.items() if isinstance(value, dict)}
    main = layered.get("full_attention", rope) if layered else rope
    if "rope_theta" not in main:  # of each type of layers, and of none that is the model's
        return found
    if "sliding_attention" in layered:
        found["rope_local_base_freq"] = layered["sliding_attention"].get("rope_theta")
    scaling = dict(main)
    found[_BASE.get(kind, "rope_theta")] = scaling.pop("rope_theta")
    fraction = scaling.pop("partial_rotary_factor", None)
    if fraction is not None:
        found[_FRACTION.get(kind, "partial_rotary_factor")] = fraction
    said = scaling.pop("type", "default")
    if scaling.setdefault("rope_type", said) == "longrope" and _APART in scaling:
        found[_APART] = scaling[_APART]  # version 4 looks for it there alone
    plain = scaling["rope_type"] == "default" and "mrope_section" not in scaling
    if kind in _STRICT:
        scaling["type"] = scaling.pop("rope_type")
        scaling.pop(_APART, None)
    return {**found, "rope_scaling": None if plain else scaling}


def _read(config_class: Any, config: Config, inner: str | None = None) -> Fields:
    """Returns the configuration that transformers makes of a file's content, without the keys that
    it only carries along.
    """
    made = config_class.from_dict(json.loads(json.dumps(config))).to_dict()
    part = made if inner is None else made[inner]
    (part.get("rope_parameters") or {}).pop("type", None)  # beside `rope_type`, which is read
    carried = older_keys(config if inner is None else config[inner]).keys() - {"rope_scaling"}
    for name in carried & part.keys():
        del part[name]
    return made
