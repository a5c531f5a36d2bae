"""Commands that describe recipes and plugins: ``schema`` and ``plugins``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effcompress.cli.arguments import AsJson, print_json, say
from effcompress.cli.complete import complete_plugin
from effcompress.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from effcompress.registry import Plugin

plugins = typer.Typer(help="List the plugins, or show one with its knobs.", no_args_is_help=True)


def schema(
    plugins_of: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Include the plugin files that this recipe names."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference page instead.")
    ] = False,
    injected: Annotated[
        bool, typer.Option("--injected", help="Print the page of what plugins may take instead.")
    ] = False,
    api: Annotated[
        bool, typer.Option("--api", help="Print the page of the Python API instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from effcompress.recipe import injected as injected_page
    from effcompress.recipe import json_schema, load_plugins, reference

    if plugins_of is not None:
        load_plugins(plugins_of)
    if markdown:
        say(reference(), nl=False)
        return
    if injected:
        say(injected_page(), nl=False)
        return
    if api:
        from effcompress.cli.api_page import api as api_page

        say(api_page(), nl=False)
        return
    print_json(json_schema())


@plugins.command("list")
def list_(json: AsJson = False) -> None:
    """List every plugin: kind, name and what it computes."""
    from effcompress.registry import REGISTRY

    found = REGISTRY.all()
    if json:
        print_json([_facts(plugin) for plugin in found])
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    kind, named = Column("kind", no_wrap=True), Column("name", no_wrap=True)
    table = Table(kind, named, "what it does", box=None, pad_edge=False, header_style="bold")
    for plugin in found:
        table.add_row(plugin.kind, Text(plugin.name), Text(plugin.summary.replace("``", "")))
    Console(highlight=False).print(table)


@plugins.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name, or KIND/NAME where kinds share it.",
            autocompletion=complete_plugin,
        ),
    ],
    json: AsJson = False,
) -> None:
    """Show one plugin: docstring, inputs, knobs, paper, file and line."""
    facts = _facts(_find(name))
    if json:
        print_json(facts)
        return
    knobs = {
        name: k["type"] + (", required" if k["required"] else f", default {k['default']}")
        for name, k in facts["knobs"].items()
    }
    lines = [f"{facts['kind']} {facts['name']}", ""]
    lines += [f"  {line}".rstrip() for line in facts["doc"].splitlines()]
    lines += ["", "inputs, from the engine:", *_columns(facts["inputs"])]
    lines += ["", "knobs, from the recipe:", *(_columns(knobs) or ["  none"])]
    lines += ["", f"paper  {facts['paper']}", f"file   {facts['file']}"]
    say("\n".join(lines))


def _find(name: str) -> Plugin:
    from effcompress.injectable import INPUTS
    from effcompress.registry import REGISTRY

    kind, slash, rest = name.rpartition("/")
    if slash and kind not in INPUTS:
        raise PluginError(f"no kind of plugin named '{kind}'", fix=did_you_mean(kind, INPUTS))
    if slash:
        return REGISTRY.get(kind, rest)
    everything = REGISTRY.all()
    found = [plugin for plugin in everything if plugin.name == name]
    if not found:
        known = {plugin.name for plugin in everything}
        raise PluginError(f"no plugin named '{name}'", fix=did_you_mean(name, known))
    if len(found) > 1:
        choices = " or ".join(f"{plugin.kind}/{name}" for plugin in found)
        raise PluginError(f"'{name}' names {len(found)} plugins", fix=f"Write {choices}.")
    return found[0]


def _facts(plugin: Plugin) -> dict[str, Any]:
    """A plugin as ``plugins list --json`` and ``plugins show --json`` print it."""
    from effcompress.recipe import plain, type_words

    # ``file:line``, relative to the package's parent or else to the current folder.
    file, _, line = plugin.where.rpartition(":")
    package = Path(__file__).parents[1]
    start = package.parent if Path(file).is_relative_to(package) else Path.cwd()
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "doc": inspect.getdoc(plugin.function) or "",
        "inputs": plugin.inputs,
        "knobs": {
            name: {
                "type": type_words(knob.annotation),
                "required": knob.default is knob.empty,
                "default": None if knob.default is knob.empty else plain(knob.default),
            }
            for name, knob in plugin.knobs.items()
        },
        "paper": plugin.paper,
        "file": f"{os.path.relpath(file, start)}:{line}",
    }


def _columns(rows: Mapping[str, object]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    return [f"  {name:{width}}  {said}" for name, said in rows.items()]
