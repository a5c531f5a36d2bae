"""Holds values of a configuration against what transformers' classes say of their fields, without
importing these classes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from effcompress.errors import SourceError, did_you_mean
from effcompress.model.classes import (
    activations,
    attentions,
    looks_up_activation,
    mentions,
    rotary_kinds,
    types_of,
)
from effcompress.types import Config

_NAMES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    **{"None": None, "Any": Any, "Literal": Literal},
    **{"RopeParameters": dict, "PreTrainedConfig": dict},
}
"""Names in the types of fields; nothing is held against a type with another name."""
_WORDS = {
    **{"int": "a whole number", "float": "a number with a point", "bool": "true or false"},
    **{"str": "a text", "list": "a list", "tuple": "a list", "None": "null"},
    **dict.fromkeys(("dict", "RopeParameters", "PreTrainedConfig"), "a mapping"),
}
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_STORED = (
    *("auto", "float", "double", "half", "int8", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
"""Other types that a configuration may state; weights are read into fp32."""
_BY_DEFAULT = {"rope_theta", "rope_type", "original_max_position_embeddings"}
"""Keys of rotary positions that transformers fills in."""
Refusal = tuple[str, str]
"""What is wrong with a value, and what to write instead."""


def require_values(shape: Config, model_type: str) -> None:
    """Raises SourceError naming the first value of ``model.shape`` that the class of this model
    type does not take, or that nothing can be computed with.
    """
    for field, value in shape.items():
        said = _misfit(field, value, model_type) or _uncomputable(field, value, model_type)
        if value is not None and field in _ASKED:
            said = said or _ASKED[field](value)
        if said:
            raise SourceError(said[0], where=f"model.shape.{field}", fix=said[1])


def require_computable(config: Config, where: str) -> None:
    """Raises SourceError for a value of a ``config.json`` whose type its class does not take, or
    that nothing can be computed with.
    """
    model_type = str(config.get("model_type"))
    for field, value in config.items():
        said = _misfit(field, value, model_type) or _uncomputable(field, value, model_type)
        if said := said or _unreadable(field, value, model_type):
            raise SourceError(f"{field}: {said[0]}", where=where, fix=said[1])


def _misfit(field: str, value: Any, model_type: str) -> Refusal | None:
    stated = types_of(model_type).get(field)
    if stated is None:
        return None
    try:
        # The text is that of transformers' own file.
        wanted = eval(stated.type, {"__builtins__": {}}, _NAMES)
    except (NameError, TypeError, SyntaxError):
        return None
    from huggingface_hub.dataclasses import type_validator

    try:
        type_validator(field, value, wanted)
    except TypeError:
        kinds = [part.partition("[")[0] for part in stated.type.split(" | ")]
        words = " or ".join(dict.fromkeys(_WORDS.get(kind, kind) for kind in kinds))
        whole = type(value) is int and "float" in kinds
        return f"{value!r} is not {words}", f"write {value}.0" if whole else f"write {words}"
    low, high = stated.least, stated.most
    if _number(value) and (
        (low is not None and value < low) or (high is not None and value > high)
    ):
        bounds = (
            f"from {low}" if low is not None else "",
            f"to {high}" if high is not None else "",
        )
        return f"{value} is out of range", f"write a number {' '.join(filter(None, bounds))}"
    return None


def _uncomputable(field: str, value: Any, model_type: str) -> Refusal | None:
    """A value of the right type with which the class of this model type does not compute."""
    if value is None:
        return None
    if field.endswith(("dropout", "_pdrop")):
        return _dropout(value)
    if field == "rope_theta":
        return _positive(value)
    if field.endswith(("_eps", "_epsilon")) and _number(value) and not 0 <= value < math.inf:
        return f"{value!r} is no epsilon of a norm", "write a small number above 0, e.g. 1e-5"
    if isinstance(value, str) and looks_up_activation(model_type, field):
        known = activations()
        what = f"transformers have no activation '{value}'"
        return None if value in known else (what, did_you_mean(value, known))
    return None


def _unreadable(field: str, value: Any, model_type: str) -> Refusal | None:
    """A value of a ``config.json`` with which transformers itself fails. Keys of earlier versions,
    and kinds of rotary positions that the class translates, are readable.
    """
    if field in ("dtype", "torch_dtype") and isinstance(value, str):
        known = value.removeprefix("torch.") in (*_DTYPES, *_STORED)
        what = f"torch has no type of numbers '{value}'"
        return None if known else (what, did_you_mean(value, _DTYPES))
    if field not in ("rope_scaling", "rope_parameters") or value is None:
        return None
    if not isinstance(value, Mapping):
        return _rotary(value)
    for one in [v for v in value.values() if isinstance(v, Mapping)] or [value]:
        kind, kinds = one.get("rope_type", one.get("type", "default")), rotary_kinds()
        if kind not in kinds and not mentions(model_type, f'"{kind}"'):
            what = f"transformers have no rotary positions '{kind}' for {model_type}"
            return what, did_you_mean(str(kind), kinds)
        for key in ("rope_theta", "factor"):
            if one.get(key) is not None and (said := _positive(one[key])):
                return f"{key}: {said[0]}", said[1]
    return None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dropout(value: Any) -> Refusal | None:
    if _number(value) and 0 <= value < 1:
        return None
    return f"{value!r} is no probability", "write a number from 0 to below 1"


def _attention(value: Any) -> Refusal | None:
    known = attentions()
    if value in known or (isinstance(value, str) and "/" in value):  # or a kernel of the hub
        return None
    what = f"transformers have no implementation of attention '{value}'"
    return what, did_you_mean(str(value), known)


def _dtype(value: Any) -> Refusal | None:
    if str(value).removeprefix("torch.") in _DTYPES:
        return None
    return f"'{value}' is no type of numbers to prune in", f"write one of {', '.join(_DTYPES)}"


def _quantised(_value: Any) -> Refusal:
    return "a model that is pruned has plain numbers", "take the key out"


def _labels(value: Any) -> Refusal | None:
    if type(value) is int and value >= 0:
        return None
    return f"{value!r} is no number of labels", "take the key out"


def _label_names(value: Any) -> Refusal | None:
    return None if isinstance(value, Mapping) else (f"{value!r} is no mapping", "take the key out")


def _fraction(value: Any) -> Refusal | None:
    if _number(value) and 0 < value <= 1:
        return None
    return f"{value!r} is no fraction of a head", "write a number above 0, at most 1"


def _positive(value: Any) -> Refusal | None:
    if _number(value) and 0 < value < math.inf:
        return None
    return f"{value!r} is not a number above 0", "write a number above 0"


def _rotary(value: Any) -> Refusal | None:
    if not isinstance(value, Mapping):
        return f"{value!r} is no mapping", "write {rope_type: default, rope_theta: 10000.0}, say"
    if inner := [one for one in value.values() if isinstance(one, Mapping)]:
        return next(filter(None, map(_rotary, inner)), None)  # one for each type of layer
    kind, kinds = value.get("rope_type", value.get("type", "default")), rotary_kinds()
    if not isinstance(kind, str) or kind not in kinds:
        what = f"transformers have no rotary positions '{kind}'"
        return what, did_you_mean(str(kind), kinds)
    if missing := sorted(kinds[kind] - value.keys() - _BY_DEFAULT):
        return f"rotary positions '{kind}' need {', '.join(missing)}", "add what is missing"
    for key in ("rope_theta", "factor"):
        if key in value and (said := _positive(value[key])):
            return f"{key}: {said[0]}", said[1]
    return None


_ASKED: dict[str, Callable[[Any], Refusal | None]] = {
    **dict.fromkeys(("dtype", "torch_dtype"), _dtype),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _rotary),
    "attn_implementation": _attention,
    "quantization_config": _quantised,
    "num_labels": _labels,
    "id2label": _label_names,
    "partial_rotary_factor": _fraction,
}
"""Field -> what is held against a value that a recipe asks for. Files of earlier versions have
others, which classes translate.
"""
