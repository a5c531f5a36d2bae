"""Plugins: plain functions whose signature is their contract.

Positional parameters are injected by the engine, keyword-only parameters are recipe knobs. The
signature is read once, when the decorator runs: an input nobody can inject is an error there and
then, and the knobs become a JSON Schema (``recipe/json_schema.py``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effcompress.errors import PluginError, did_you_mean
from effcompress.injectable import BACKWARD, FORWARD, INPUTS

ENTRY_POINTS = "effcompress.plugins"

BUILTIN_MODULES = (
    "effcompress.saliency.criteria",
    "effcompress.saliency.activations",
    "effcompress.measure.hessian",
    "effcompress.groups.spaces",
    "effcompress.selection.schedules",
    "effcompress.selection.selectors",
    "effcompress.removal.repair",
    "effcompress.removal.refit",
    "effcompress.sparsity.magnitude",
    "effcompress.sparsity.wanda",
    "effcompress.sparsity.sparsegpt",
)


@dataclass(frozen=True)
class Knob:
    """A keyword-only parameter: its annotation, default (``inspect.Parameter.empty``: required)."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Plugin:
    """A registered function with what its signature says."""

    kind: str
    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    knobs: Mapping[str, Knob]
    paper: str
    where: str

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


@dataclass(frozen=True)
class Bound:
    """A plugin with the knobs a recipe gave it: call it with the injected inputs it ``needs``."""

    plugin: Plugin
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.plugin.name

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be injected."""
        return self.plugin.needs

    def __call__(self, **available: Any) -> Any:
        return self.plugin.function(*(available[n] for n in self.needs), **self.knobs)


class Registry:
    """Kind and name -> plugin. One instance, ``REGISTRY``; tests make their own."""

    def __init__(self) -> None:
        self._plugins: dict[str, dict[str, Plugin]] = {kind: {} for kind in INPUTS}
        self._loaded: set[str] = set()

    def add(self, kind: str, name: str, function: Callable[..., Any], paper: str) -> Plugin:
        """Read the signature and keep the function.

        Raises PluginError: an input that cannot be injected, a missing type of a knob, or a name
        that another function has.
        """
        where = _where(function)
        needs, knobs = _contract(kind, name, function, where)
        old = self._plugins[kind].get(name)
        # A module that is imported again (a reload) brings the same function from the same line.
        if old is not None and old.where != where:
            raise PluginError(
                f"{kind} '{name}' exists already, from {old.where}",
                where=where,
                fix="Give one of the two another name.",
            )
        plugin = Plugin(kind, name, function, needs, knobs, paper, where)
        self._plugins[kind][name] = plugin
        return plugin

    def get(self, kind: str, name: str) -> Plugin:
        """Raises PluginError naming the nearest known plugin."""
        self.load_builtins()
        if name not in self._plugins[kind]:
            raise PluginError(
                f"no {kind} named '{name}'", fix=did_you_mean(name, self._plugins[kind])
            )
        return self._plugins[kind][name]

    def all(self, kind: str | None = None) -> list[Plugin]:
        """Every plugin (of one kind), by kind and name."""
        self.load_builtins()
        kinds = [kind] if kind else list(self._plugins)
        return [self._plugins[k][n] for k in kinds for n in sorted(self._plugins[k])]

    def load_builtins(self) -> None:
        """Import the built-in modules and what installed packages register."""
        if self is not REGISTRY or "builtins" in self._loaded:
            return
        self._loaded.add("builtins")
        for module in BUILTIN_MODULES:
            importlib.import_module(module)
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            _import_or_say(lambda e=entry: e.load(), f"entry point {entry.name} = {entry.value}")

    def load_file(self, path: Path) -> None:
        """Run one plugin file. Raises PluginError with the file's line when it fails to import."""
        path = path.resolve()
        if str(path) in self._loaded:
            return
        spec = importlib.util.spec_from_file_location(f"effcompress_plugin_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise PluginError("not a Python file", where=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loader = spec.loader
        _import_or_say(lambda: loader.exec_module(module), str(path))
        self._loaded.add(str(path))


REGISTRY = Registry()

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _decorator(kind: str) -> Callable[..., Decorator]:
    def named(name: str, *, paper: str = "new") -> Decorator:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            REGISTRY.add(kind, name, function, paper)
            return function

        return register

    named.__name__ = kind
    named.__doc__ = f"Register a function as the {kind} ``name``; ``paper`` is its source."
    return named


criterion = _decorator("criterion")
hessian = _decorator("hessian")
space = _decorator("space")
schedule = _decorator("schedule")
selector = _decorator("selector")
repair = _decorator("repair")
refit = _decorator("refit")
sparsifier = _decorator("sparsifier")


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _contract(
    kind: str, name: str, function: Callable[..., Any], where: str
) -> tuple[tuple[str, ...], dict[str, Knob]]:
    needs: list[str] = []
    knobs: dict[str, Knob] = {}
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            annotation = _evaluate(
                p.annotation, function, f"{kind} '{name}': knob '{p.name}'", where
            )
            knobs[p.name] = Knob(p.name, annotation, p.default)
        elif p.kind is p.POSITIONAL_OR_KEYWORD and p.name in INPUTS[kind]:
            needs.append(p.name)
        else:
            raise PluginError(
                f"{kind} '{name}': cannot inject '{p.name}'",
                where=where,
                fix=f"{did_you_mean(p.name, INPUTS[kind])} Put a recipe knob after '*'.",
            )
    if "mask_grad" in needs and len(needs) > 1:
        raise PluginError(
            f"{kind} '{name}': mask_grad is per mini-group, {needs[0]} per weight",
            where=where,
            fix="Take mask_grad alone.",
        )
    forward, backward = FORWARD.intersection(needs), BACKWARD.intersection(needs)
    if kind == "criterion" and forward and backward:
        raise PluginError(
            f"{kind} '{name}': {min(forward)} is measured layer by layer, {min(backward)} is not",
            where=where,
            fix="Take one of the two.",
        )
    return tuple(needs), knobs


def _evaluate(annotation: Any, function: Callable[..., Any], what: str, where: str) -> Any:
    if annotation is inspect.Parameter.empty:
        raise PluginError(
            f"{what} has no type", where=where, fix="Write e.g. `alpha: float = 0.5`."
        )
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**vars(typing), **function.__globals__})
    except NameError as error:
        raise PluginError(f"{what} has an unknown type: {error}", where=where) from error


def _import_or_say(load: Callable[[], Any], origin: str) -> None:
    try:
        load()
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        where = origin
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        else:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == origin]
            where = f"{origin}:{frames[-1].lineno}" if frames else origin
        raise PluginError(
            f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0],
            where=where,
            fix="Mend the file, or take it out of the recipe's `plugins:`.",
        ) from error
