"""Entry to tracing: the configuration of an undeclared architecture -> a proven family.

torch-pruning may loop forever, and its graph keeps every weight alive. So it runs in a subprocess
that reports its findings, and the module it is querying, as lines of JSON; on a timeout, the error
names that module.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import CoverageError, EffcompressError, PluginError, SourceError, first_line
from effcompress.groups.tracing.declared import prove_declared
from effcompress.groups.tracing.depth import Silent
from effcompress.groups.tracing.draft import Draft, draft_from_json, family_from
from effcompress.groups.tracing.probe import Build, Failure, Report, Tell
from effcompress.groups.tracing.search import paste, propose
from effcompress.groups.tracing.verify import Unproven
from effcompress.registry import REGISTRY, Plugin
from effcompress.types import Config, Family

_ERRORS: Mapping[str, type[EffcompressError]] = {
    "CoverageError": CoverageError,
    "PluginError": PluginError,
    "SourceError": SourceError,
}


def trace_family(config: Config, *, entry: str, timeout: float) -> Family:
    """Traces a configuration's architecture and proves every axis kind of the family.

    ``entry`` is a module that, run as a program, calls ``serve`` with a builder of models.

    Raises:
        CoverageError: names the module or parameter that could not be traced, or not in time;
            ``fix`` is a declaration to start from.
        SourceError: the model cannot be built.
    """
    said = _asked({"config": dict(config)}, config, entry, timeout)
    return family_from(draft_from_json(said.get("draft", "")))


def require_proven(plugin: Plugin, config: Config, *, entry: str, timeout: float) -> None:
    """Proves the family that a plugin declares, for one configuration, in a process of its own
    (``declared.prove_declared``). ``entry``: as of ``trace_family``.

    Raises:
        PluginError: names what the declaration gets wrong, with file and line.
        CoverageError: there was no answer in time.
        SourceError: the model cannot be built.
    """
    file = plugin.where.rpartition(":")[0]
    _asked({"config": dict(config), "file": file, "name": plugin.name}, config, entry, timeout)


def declaration_of(config: Config, *, entry: str, timeout: float) -> str:
    """Returns the text of a plugin file that declares a configuration's architecture as far as
    tracing finds it out. Raises as ``trace_family`` does where nothing can be written.
    """
    said = _report({"config": dict(config)}, config, entry, timeout)
    return said.get("declaration") or _require_answer(said).get("declaration", "")


def _asked(question: Mapping[str, Any], config: Config, entry: str, timeout: float) -> Report:
    return _require_answer(_report(question, config, entry, timeout))


def _report(question: Mapping[str, Any], config: Config, entry: str, timeout: float) -> Report:
    """What the process said; that it did not come to an end is an ``error``, too."""
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", entry],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired as late:
        said, what = _said(late.stdout), f"gave no answer in {timeout:g} s"
    else:
        said = _said(done.stdout)
        last = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        what = f"ended without an answer: {last}"
    if not said.keys() & {"error", "draft", "proven"}:
        what = f"tracing '{config.get('model_type')}' {what}"
        where = said.get("at") or "model"
        said["error"] = {"kind": "CoverageError", "what": what, "where": where, "fix": None}
    return said


def _require_answer(said: Report) -> Report:
    """Raises the error of a report, if there is one."""
    if error := said.get("error"):
        start = paste(said["declaration"]) if "declaration" in said else None
        raise _ERRORS[error["kind"]](error["what"], where=error["where"], fix=error["fix"] or start)
    return said


def serve(build: Build, silent: Silent) -> None:
    """Runs in the subprocess: reads a question from stdin, writes lines of JSON to stdout. The
    question is a configuration to be traced, or one with a plugin whose family is to be proven.
    """
    import torch

    torch.set_num_threads(1)  # the models are small, and the parent may be busy
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def tell(fact: Report) -> None:
        print(json.dumps(fact), file=answers, flush=True)

    answer(json.load(sys.stdin), build, silent, tell)


def answer(question: Mapping[str, Any], build: Build, silent: Silent, tell: Tell) -> None:
    """Answers a question with reports; errors are among them, those of a model's own code, too."""
    config = question["config"]
    try:
        if "file" in question:
            plugin = _plugin(Path(question["file"]), question["name"])
            prove_declared(plugin, plugin.called({}, {}), config, build, silent)
            tell({"proven": True})
        else:
            tell({"draft": _proposed(config, build, silent, tell).to_json()})
    except (CoverageError, SourceError, PluginError) as error:
        kind = type(error).__name__
        tell({"error": {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix}})
    except Exception as error:  # noqa: BLE001 (code of any class of the library)
        what = f"tracing '{config.get('model_type')}' {_failed(error)}"
        failure: Failure = {"kind": "CoverageError", "what": what, "where": "model", "fix": None}
        tell({"error": failure})


def _failed(error: Exception) -> str:
    """What failed in whose file: an error without words of ours names the line that raised it."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    said = first_line(error)
    place = f"{Path(frame.f_code.co_filename).name}:{line}"
    return f"fails in {place}: {type(error).__name__}: {said}"


def _proposed(config: Config, build: Build, silent: Silent, tell: Tell) -> Draft:
    try:
        return propose(config, build, silent, tell)
    except Unproven as error:  # e.g. a class whose attention mask overflows in fp64
        what = f"a small model of this architecture cannot be tested in fp64: {error}"
        fix = "Declare the family in a plugin file."
        raise SourceError(what, where="model", fix=fix) from error


def _plugin(file: Path, name: str) -> Plugin:
    """The plugin, from its file unless an installed package brings it."""
    if all(plugin.name != name for plugin in REGISTRY.all("family")):
        REGISTRY.load_file(file)
    return REGISTRY.get("family", name)


def _said(output: str | bytes | None) -> Report:
    """Merges the lines, later ones over earlier ones. A killed process may leave half a line."""
    text = output.decode() if isinstance(output, bytes) else output or ""
    said: Report = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            said |= json.loads(line)
    return said
