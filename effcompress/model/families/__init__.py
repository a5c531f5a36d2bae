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
    gemma3n,
    hybrids,
    latent,
    layernorm,
    llama,
    mamba,
    nemotron,
    shared,
    ssm,
)
from effcompress.registry import REGISTRY, Plugin
from effcompress.types import Config, Family

FAMILIES = (
    *(*llama.FAMILIES, *decoders.FAMILIES, *experts.FAMILIES, *shared.FAMILIES),
    *(*latent.FAMILIES, *layernorm.FAMILIES, *centred.FAMILIES, *fused.FAMILIES),
    *(*hybrids.FAMILIES, *gemma.FAMILIES, *ssm.FAMILIES),
    *(*nemotron.FAMILIES, *gemma3n.FAMILIES, *mamba.FAMILIES),
)


def family_of(config: Config) -> Family:
    """Returns the family declared for a configuration, by a plugin or here.

    Raises SourceError naming the ``model_type`` when no family declares it, or not built this way;
    PluginError as ``declared_by`` does, and for a plugin that returns something else than such a
    family.
    """
    model_type = str(config.get("model_type"))
    if (plugin := declared_by(model_type)) is not None:
        return _of_plugin(plugin)
    for family in FAMILIES:
        if model_type in family.model_types and family.applies(family.complete(config)):
            return family
    known = sorted({t for f in FAMILIES for t in f.model_types})
    raise SourceError(
        f"architecture '{model_type}' is not declared",
        where="model",
        fix=f"Declared: {', '.join(known)}. A plugin may declare another (`@family`).",
    )


def declared_by(model_type: str) -> Plugin | None:
    """Returns the plugin that declares an architecture; None if none does.

    Raises PluginError where it is declared here, too, and the plugin does not say that it replaces
    that declaration.
    """
    plugins = REGISTRY.all("family")
    found = next((plugin for plugin in plugins if plugin.name == model_type), None)
    if found is not None and not found.replaces and _built_in(model_type) is not None:
        fix = f'Write `@family("{model_type}", replaces=True)` to use this declaration instead.'
        raise found.error("is declared by effcompress, too", fix)
    return found


def is_declared(config: Config) -> bool:
    """Returns whether a plugin or this package declares a configuration's architecture."""
    try:
        return bool(family_of(config))
    except SourceError:
        return False


def find_family(model_type: object) -> Family | None:
    """Returns the first declared family of a ``model_type``; None if none declares it."""
    if (plugin := declared_by(str(model_type))) is not None:
        return _of_plugin(plugin)
    return _built_in(str(model_type))


def _built_in(model_type: str) -> Family | None:
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def _of_plugin(plugin: Plugin) -> Family:
    found = plugin.called({}, {})
    if not isinstance(found, Family):
        raise plugin.error(f"returned {type(found).__name__}", "Return a Family.")
    if plugin.name not in found.model_types:
        raise plugin.error(
            f"returned a family of {', '.join(found.model_types) or 'no model_type'}",
            f"Write `model_types=({plugin.name!r},)`.",
        )
    return found


WIDEST, DEEPEST, VOCABULARY, POSITIONS = 2**17, 256, 2**22, 2**24
MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), DEEPEST),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), POSITIONS),
    "vocab_size": VOCABULARY,
}
"""Largest values of configuration fields, others are widths: sizing takes a step for each unit."""


UNUSABLE = "Name another model, or correct that field where the shape is yours."


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
    if said := family.unusable(config):
        raise SourceError(said, where="model.shape", fix=UNUSABLE)
    named = family.aliases.get("num_attention_heads", "num_attention_heads")
    if not (heads := config.get(named)):
        return  # state spaces alone
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
