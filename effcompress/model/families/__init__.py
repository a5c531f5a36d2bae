"""Declared architectures: which dimension of which parameter carries which axis.

Dimensions with the same axis name shrink together; that is all the engine knows of the coupling in
a model. ``groups/axes.py`` resolves a declaration with the tensor shapes of a loaded model or with
the sizes in a configuration, so that ``check`` and ``plan`` need no torch.
"""

from effcompress.errors import SourceError, short
from effcompress.model.families import (
    centred,
    decoders,
    experts,
    fused,
    gemma,
    hybrids,
    latent,
    layernorm,
    llama,
    shared,
    ssm,
)
from effcompress.types import Config, Family

FAMILIES = (
    *(*llama.FAMILIES, *decoders.FAMILIES, *experts.FAMILIES, *shared.FAMILIES),
    *(*latent.FAMILIES, *layernorm.FAMILIES, *centred.FAMILIES, *fused.FAMILIES),
    *(*hybrids.FAMILIES, *gemma.FAMILIES, *ssm.FAMILIES),
)


def family_of(config: Config) -> Family:
    """Returns the family declared for a configuration.

    Raises SourceError naming the ``model_type`` when no family declares it, or not built this way.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types and family.applies(family.complete(config)):
            return family
    known = sorted({t for f in FAMILIES for t in f.model_types})
    raise SourceError(
        f"architecture '{model_type}' is not declared",
        where="model",
        fix=f"Declared: {', '.join(known)}. A declaration is a list of axes in model/families.",
    )


WIDEST, DEEPEST, VOCABULARY, POSITIONS = 2**17, 256, 2**22, 2**24
MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), DEEPEST),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), POSITIONS),
    "vocab_size": VOCABULARY,
}
"""Largest values of configuration fields, others are widths: sizing takes a step for each unit."""


def require_sane(family: Family, config: Config) -> None:
    """Raises SourceError naming the first configuration field that is missing or impossible."""
    optional = [
        name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None
    ]
    for name in (*family.required, *optional):
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "is missing" if name not in config else f"is {value!r}, not a number above 0"
            raise SourceError(f"{name} {said}", where="model.shape")
        most = MOST.get(name, WIDEST)
        if value > most:
            said = f"{name} is {short(str(value))}, and no model has more than {most:,}"
            raise SourceError(said, where="model.shape", fix="Write the value of its config.json.")
    heads = family.read(config, "num_attention_heads")
    kv = config.get("num_key_value_heads") or heads
    hidden = family.read(config, "hidden_size")
    if heads % kv:
        raise SourceError(
            f"{heads} query heads cannot share {kv} KV heads evenly", where="model.shape"
        )
    for kind, multiple in family.multiples.items():
        # For the narrowest type. The model as loaded has numbers of fp32, twice as wide.
        if (width := family.units[kind](config, 0)) % (least := multiple // 2):
            said = f"{kind} {width} is no multiple of {least}, as kernels of experts want it"
            raise SourceError(said, where="model.shape")
    if not config.get("head_dim") and hidden % heads:
        raise SourceError(
            f"hidden_size {hidden} is no multiple of {heads} heads, and no head_dim is given",
            where="model.shape",
        )
