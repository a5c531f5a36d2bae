"""Multimodal models: the text model inside, which is what is pruned, and its place in the whole.
Imports neither torch nor transformers.
"""

import re
from collections.abc import Iterable, Mapping

from effcompress.model.classes import fields_of, is_known, reads_for_logits
from effcompress.model.families import find_family
from effcompress.types import Config, Fields

INNER = "text_config"
TEXT_KEYS = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(?!lm_head)": "model.",
}
"""Names of a text model's weights in multimodal ones -> its own (regular expressions)."""
TEXT_PARTS = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
"""Beginnings of its own; all others are those of other parts."""
_ROOTS = ("model.", "lm_head.")
_SAME = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
_SAME |= {"qwen3_vl_moe_text": "qwen3_moe", "glm4v_text": "glm4", "glm4v_moe_text": "glm4_moe"}
"""Text models without a causal language model of their own -> the class that computes the same of
text alone, where the three positions of a token are equal.
"""
_ALWAYS: Mapping[str, Fields] = {
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "glm4v_text": {"attention_bias": True, "partial_rotary_factor": 1.0},
}
"""What these compute without a field, where that class has one."""
_FACTORS: Fields = {"logit_scale": 1.0, "logits_scaling": 1.0, "final_logit_softcapping": None}
"""Fields by which text models change their logits at the end, and the values that change none."""
_ROPES = ("rope_parameters", "rope_scaling")
_NOT_SIZES = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "auto_map", *_ROPES),
    *("_name_or_path", "use_cache", "quantization_config"),
)
"""Fields that pruning does not change, but another class may write otherwise."""


def text_of(config: Config) -> Fields | None:
    """Returns the configuration of the text model inside a multimodal one, with the class's
    defaults of what its file leaves out; None where there is none, or its architecture is not
    declared.
    """
    if "auto_map" in config or (inner := _inner(config)) is None:
        return None
    kind = _SAME.get(str(inner.get("model_type")), str(inner.get("model_type")))
    family = find_family(kind)
    if family is None or family.layer != "model.layers.{i}":
        return None
    if not is_known(str(config.get("model_type"))):
        return None
    defaults, names = fields_of(kind) or {}, (*family.required, "num_key_value_heads", "head_dim")
    stated = {name: defaults[name] for name in names if defaults.get(name) is not None}
    how = {k: config[k] for k in ("quantization_config",) if k in config}
    tied = {"tie_word_embeddings": _tied(config, inner)}
    if kind == inner.get("model_type"):
        return {**stated, **how, **inner, **tied}
    fields = {**stated, **how, **_left_out(inner, defaults), **inner, **tied}
    always = dict(_ALWAYS.get(str(inner.get("model_type")), {}))
    part = always.pop("partial_rotary_factor", None)  # where no file states it
    ropes = {key: _one_position(fields.get(key), part) for key in _ROPES}
    return {**fields, **always, "model_type": kind, **ropes}


def _left_out(inner: Config, known: Config) -> Fields:
    """What a text model's file leaves out, for a class with the fields ``known`` and other
    defaults: those of the text model's own configuration.
    """
    own = fields_of(str(inner.get("model_type"))) or {}
    fields = {
        name: value
        for name, value in own.items()
        if name in known and (value is not None or name.endswith("_token_id"))
    }
    if "default_theta" in own:
        fields["rope_theta"] = own["default_theta"]
    if "head_dim" in known and "head_dim" not in own:
        width, heads = ({**own, **inner}[k] for k in ("hidden_size", "num_attention_heads"))
        fields["head_dim"] = width // heads if isinstance(heads, int) and heads > 0 else None
    return fields


def _inner(config: Config) -> Config | None:
    """The fields of the text model: under a key of their own or, in older files, beside those of
    the other parts.
    """
    inner, flat = config.get(INNER), f"{config.get('model_type')}_text"
    if isinstance(inner, Mapping):
        return inner
    if flat not in _SAME or "hidden_size" not in config:
        return None
    return {k: v for k, v in config.items() if not isinstance(v, Mapping)} | {
        **{key: config[key] for key in _ROPES if key in config},
        **{"model_type": flat, "architectures": None},
    }


def _tied(config: Config, inner: Config) -> bool:
    """Whether the output matrix is the embedding: the whole says so, or its class by default, or,
    in older files, the text model.
    """
    name = "tie_word_embeddings"
    default = (fields_of(str(config.get("model_type"))) or {}).get(name)
    return bool(config.get(name, default) or inner.get(name))


def _one_position(rope: object, part: object) -> object:
    """Rotary parameters for one position per token in place of three; ``part``: the fraction of a
    head that is rotated, if a class has another default than the text model.
    """
    if not isinstance(rope, Mapping):
        return rope
    plain = {key: value for key, value in rope.items() if not key.startswith("mrope")}
    renamed = {key: "default" for key in ("rope_type", "type") if plain.get(key) == "mrope"}
    return {**({} if part is None else {"partial_rotary_factor": part}), **plain, **renamed}


def left_out(outer: Config, text: Config) -> str:
    """Returns the field by which the text model changes its logits in the end, and the class of the
    whole does not; empty where they compute the same.
    """
    defaults = fields_of(str(text.get("model_type"))) or {}
    for name, neutral in _FACTORS.items():
        value = text.get(name, defaults.get(name, neutral))
        if value != neutral and not reads_for_logits(str(outer.get("model_type")), name):
            return name
    return ""


def sees_by_layer(outer: Config) -> bool:
    """Whether the other parts add to single layers of the text model, by their numbers."""
    seen = outer.get("vision_config")
    return isinstance(seen, Mapping) and bool(seen.get("deepstack_visual_indexes"))


def text_name(key: str) -> str:
    """Returns the name that a weight of a multimodal model has in the text model alone; empty for
    weights of other parts.
    """
    for pattern, own in TEXT_KEYS.items():
        if re.match(pattern, key):
            return re.sub(pattern, own, key)
    return key if key.startswith(TEXT_PARTS) else ""  # older files: no prefix


def roots_of(keys: Iterable[str]) -> dict[str, str]:
    """Returns beginning of a text model's own names -> what it is in these keys of the whole."""
    found: dict[str, str] = {}
    for key in keys:
        own = text_name(key)
        for root in _ROOTS:
            if own.startswith(root):
                found[root] = key.removesuffix(own.removeprefix(root))
    return found


def with_text(outer: Config, before: Config, after: Config) -> Fields:
    """Returns the configuration of the whole, whose text model had the fields ``before`` and now
    has those ``after``. Weights are stored in fp32.
    """
    new = {k: v for k, v in after.items() if k not in _NOT_SIZES and before.get(k, ...) != v}
    whole = {k: v for k, v in outer.items() if k != "torch_dtype"} | {"dtype": "float32"}
    if not isinstance(inner := outer.get(INNER), Mapping):
        return {**whole, **new}
    kept = {k: v for k, v in inner.items() if k != "torch_dtype"}
    return {**whole, INNER: {**kept, **new, "dtype": "float32"}}
