"""Architectures as data: which side of which parameter carries which axis.

The whole coupling of a model is one sentence: two sides with the same axis name shrink together.
A family lists its parameters once; sizes of a loaded model are read from its tensors
(``groups/axes.py``), and sizes of a model that is not loaded from its configuration, by the same
table, so that a recipe can be priced without importing torch.
"""

from __future__ import annotations

from effcompress.errors import SourceError
from effcompress.model.families.experts import MIXTRAL, QWEN3_MOE
from effcompress.model.families.layernorm import GPT2, NEOX, OPT
from effcompress.model.families.llama import (
    GEMMA2,
    GEMMA3,
    LLAMA,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
)
from effcompress.types import Config, Family

FAMILIES = (
    LLAMA,
    QWEN2,
    QWEN3,
    SMOLLM3,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    MIXTRAL,
    QWEN3_MOE,
    NEOX,
    OPT,
    GPT2,
)


def family_of(config: Config) -> Family:
    """The declared family of a configuration.

    Raises SourceError naming the ``model_type`` when no family declares it.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = sorted(t for f in FAMILIES for t in f.model_types)
    raise SourceError(
        f"architecture '{model_type}' is not declared",
        where="model",
        fix=f"Declared: {', '.join(known)}. A declaration is a list of axes in model/families.",
    )


def require_sane(family: Family, config: Config) -> None:
    """Raises SourceError naming the first field of a configuration that cannot be meant."""
    optional = [
        name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None
    ]
    for name in (*family.required, *optional):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "is missing" if name not in config else f"is {value!r}, not a number above 0"
            raise SourceError(f"{name} {said}", where="model.shape")
    heads = family.read(config, "num_attention_heads")
    kv = config.get("num_key_value_heads") or heads
    hidden = family.read(config, "hidden_size")
    if heads % kv:
        raise SourceError(
            f"{heads} query heads cannot share {kv} KV heads evenly", where="model.shape"
        )
    if not config.get("head_dim") and hidden % heads:
        raise SourceError(
            f"hidden_size {hidden} is no multiple of {heads} heads, and no head_dim is given",
            where="model.shape",
        )
