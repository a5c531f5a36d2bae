"""Proves a family that a plugin declares, as tracing proves what it proposes: on small random
models, and its sizes on one as large as it was asked for, without weights.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch

from effcompress.errors import CoverageError, PluginError, did_you_mean
from effcompress.groups.axes import from_config
from effcompress.groups.tracing.depth import Silent, Subject, caches, require_depth
from effcompress.groups.tracing.probe import Build, Probe, probe, tokens_for
from effcompress.groups.tracing.verify import Unproven, Untested, cover, prove, rebuild
from effcompress.registry import Plugin
from effcompress.types import DEPTH, Config, Family, axis_kind


def prove_declared(
    plugin: Plugin, family: Family, config: Config, build: Build, silent: Silent
) -> None:
    """Proves every axis kind of a declared family that is not in ``fixed``, and its depth.

    Raises PluginError, with the declaration's file and line, for a parameter or dimension that it
    misses, a size that it computes wrongly, and a kind for which masking and removing differ;
    SourceError when the model cannot be built.
    """
    _require_sizes_of_all(plugin, family)
    small, other, given = (probe(build, config, size) for size in ("small", "other", "given"))
    for one in (given, small, other):
        _require_cover(plugin, family, one)
    _require_sizes(plugin, family, config, given)
    ids_BT = tokens_for(small)
    exact = copy.deepcopy(small.module).double()

    def made(sized: Config) -> torch.nn.Module:
        return build(sized, "given")

    for kind in _kinds(family):
        subject = family, small.config, exact, kind, ids_BT
        try:
            prove(*subject)
            rebuild(*subject, made)
        except Untested:
            continue
        except (Unproven, CoverageError, LookupError, TypeError) as error:
            fix = f"Mend the axes of '{kind}', or list it in `fixed`: then it is never cut."
            raise plugin.error(f"is not proven for '{kind}': {_words(error)}", fix) from error
    try:
        of = family, small.config, exact, small.anatomy.looks, ids_BT, made, silent
        require_depth(Subject(*of, caches(exact, ids_BT)))
    except (Unproven, CoverageError, LookupError, TypeError) as error:
        fix = "Mend `sublayers` or `staying`, or say in `no_depth` why layers stay."
        raise plugin.error(f"is not proven for depth: {_words(error)}", fix) from error


def _kinds(family: Family) -> Iterator[str]:
    names = (axis_kind(name) for axis in family.axes for name in axis.name.split("/"))
    return (kind for kind in dict.fromkeys(names) if kind not in (*family.fixed, *DEPTH))


def _require_sizes_of_all(plugin: Plugin, family: Family) -> None:
    """Raises PluginError for an axis or a length without a function that computes it."""
    for axis in family.axes:
        for kind in map(axis_kind, axis.name.split("/")):
            if kind not in family.units:
                said = f"has the axis '{axis.name}', and no `units` of '{kind}'"
                raise plugin.error(said, did_you_mean(kind, family.units))
        if axis.positions_per_unit not in family.positions_per_unit:
            said = f"has no `positions_per_unit` of '{axis.positions_per_unit}'"
            raise plugin.error(
                said, did_you_mean(axis.positions_per_unit, family.positions_per_unit)
            )


def _require_cover(plugin: Plugin, family: Family, one: Probe) -> None:
    try:
        cover(family, one.config, one.module)
    except CoverageError as error:
        raise _at(plugin, family, error) from error
    except LookupError as error:
        raise _field(plugin, error) from error


def _require_sizes(plugin: Plugin, family: Family, config: Config, given: Probe) -> None:
    """Raises PluginError where the sizes that the family computes from a configuration are not
    those of the model that transformers builds of it.
    """
    try:
        shapes = from_config(family, config).shapes
    except LookupError as error:
        raise _field(plugin, error) from error
    for name, p in given.module.named_parameters():
        if shapes.get(name) != tuple(p.shape):
            said = f"computes {shapes.get(name, 'nothing')} for {name}, which is {tuple(p.shape)}"
            raise plugin.error(said, "Correct `units` or `positions_per_unit`.")


def _at(plugin: Plugin, family: Family, error: CoverageError) -> PluginError:
    """The error, at the line of the plugin's file that speaks of the parameter, if one does."""
    pattern = error.where or ""
    before, _, _ = family.layer.partition("{i}")
    number, dot, inside = pattern.removeprefix(before).partition(".")
    if pattern.startswith(before) and number.isdigit():
        pattern = f"{family.layer}{dot}{inside}"
    file, _, first = plugin.where.rpartition(":")
    text = Path(file).read_text(encoding="utf-8").splitlines()
    lines = [n for n, line in enumerate(text, 1) if f'"{pattern}"' in line]
    where = f"{file}:{lines[0] if lines else first}"
    return PluginError(f"family '{plugin.name}': {error.where}: {error.what}", where=where)


def _field(plugin: Plugin, error: LookupError) -> PluginError:
    said = f"reads {error}, which the configuration or the model does not have"
    return plugin.error(said, "A field that a config.json may leave out stands in `defaults`.")


def _words(error: Exception) -> str:
    if isinstance(error, CoverageError):
        return f"{error.where}: {error.what}" if error.where else error.what
    return str(error) if isinstance(error, Unproven) else f"{type(error).__name__}: {error}"
