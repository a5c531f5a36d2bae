"""Resolves a configuration into its family and its axis map, for stock and pruned models alike.

A family is declared, in ``model/families`` or by a plugin, or traced. Tracing runs this module as a
program in a process of its own, because it builds a model and may hang or run out of memory; so
does the proof of what a plugin declares.
"""

import functools
import json
from dataclasses import dataclass

from effcompress import groups
from effcompress.errors import SourceError
from effcompress.model.classes import is_known
from effcompress.model.families import declared_by, family_of, require_sane
from effcompress.model.families.rotated import rotated
from effcompress.model.lineage import STREAM, depth_of, parent_of, shapes_of
from effcompress.registry import REGISTRY
from effcompress.types import AxisMap, Config, Family

SECONDS = 300.0
"""Time limit of a trace. Most models take seconds, most of them to start the process."""

_ENTRY = "effcompress.network.axis_map"


@dataclass(frozen=True)
class ResolvedModel:
    """``config``: the one the axes were resolved with; for a pruned model its parent's."""

    config: Config
    axes: AxisMap


def resolve_model(config: Config) -> ResolvedModel:
    """Returns the axes of a configuration without importing torch (unless it must be traced).

    Raises:
        SourceError: the architecture is unknown, or a field has a value without a meaning.
        CoverageError: stored shapes contradict the declaration, or tracing fails.
    """
    family = family_for(parent_of(config))
    plain = family.complete(parent_of(config))
    require_sane(family, plain)
    shapes, depth = shapes_of(config), depth_of(family, config)
    if shapes is None:
        return ResolvedModel(plain, groups.from_config(family, plain))
    return ResolvedModel(plain, groups.from_shapes(family, plain, shapes, depth))


def family_for(config: Config, *, timeout: float = SECONDS) -> Family:
    """Returns the family of a configuration; traces an architecture that is not declared, once per
    configuration and process.

    Raises:
        CoverageError: as ``groups.tracing.trace.trace_family`` does.
        PluginError: a plugin declares it wrongly, or though it is declared here.
        SourceError: transformers has no such architecture, or the model cannot be built.
    """
    if config.get(STREAM):
        return rotated(family_for({**config, STREAM: None}, timeout=timeout), config)
    text = json.dumps(dict(config), sort_keys=True, default=str)
    if (plugin := declared_by(str(config.get("model_type")))) is not None:
        family = family_of(config)
        _require_proven(text, plugin.name, plugin.where, timeout)
        return family
    try:
        return family_of(config)
    except SourceError as error:
        if not is_known(str(config.get("model_type"))):
            raise _unknown(config, error.fix) from None
        return _traced(text, timeout)


def _unknown(config: Config, known: str | None) -> SourceError:
    """What is said of an architecture that transformers does not have."""
    kind, brought = config.get("model_type"), "auto_map" in config
    return SourceError(
        f"architecture '{kind}' is not declared, and transformers has none of that name"
        + (": its code comes with the model (auto_map), and is not traced" if brought else ""),
        where="model",
        fix="Name a model whose class transformers has, or install a newer one that has it."
        if brought
        else known,
    )


def declaration_of(config: Config, *, timeout: float = SECONDS) -> str:
    """Returns the text of a plugin file that declares a configuration's architecture, as far as
    tracing finds it out. Raises as ``family_for`` where nothing can be written.
    """
    from effcompress.groups.tracing.trace import declaration_of

    return declaration_of(config, entry=_ENTRY, timeout=timeout)


@functools.cache
def _require_proven(config: str, name: str, where: str, timeout: float) -> None:
    """``where``: file and line of the plugin, so that another one of that name is proven, too."""
    from effcompress.groups.tracing.trace import require_proven

    plugin = REGISTRY.get("family", name)
    require_proven(plugin, json.loads(config), entry=_ENTRY, timeout=timeout)


@functools.cache
def _traced(config: str, timeout: float) -> Family:
    # Imported here, because it imports torch and `check` of a declared family must not.
    from effcompress.groups.tracing.trace import trace_family

    return trace_family(json.loads(config), entry=_ENTRY, timeout=timeout)


if __name__ == "__main__":
    from effcompress.groups.tracing.trace import serve
    from effcompress.model.modeling_pruned import silent
    from effcompress.model.small import build

    serve(build, silent)
