"""Entry to tracing: the configuration of an undeclared architecture -> a proven family.

torch-pruning may loop forever, and its graph keeps every weight alive. So it runs in a subprocess
that reports its findings, and the module it is querying, as lines of JSON; on a timeout, the error
names that module.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from effcompress.errors import CoverageError, EffcompressError, SourceError
from effcompress.groups.tracing.draft import draft_from_json, family_from
from effcompress.groups.tracing.search import Build, Report, paste, propose
from effcompress.types import Config, Family

_ERRORS: Mapping[str, type[EffcompressError]] = {
    "CoverageError": CoverageError,
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
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", entry],
            input=json.dumps(dict(config)),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired as late:
        said = _said(late.stdout)
        raise CoverageError(
            f"tracing '{config.get('model_type')}' gave no answer in {timeout:g} s",
            where=said.get("at") or "model",
            fix=paste(said["declaration"]) if "declaration" in said else None,
        ) from late
    said = _said(done.stdout)
    start = paste(said["declaration"]) if "declaration" in said else None
    if error := said.get("error"):
        kind = _ERRORS[error["kind"]]
        raise kind(error["what"], where=error["where"], fix=error["fix"] or start)
    if "draft" not in said:
        last = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise CoverageError(
            f"tracing '{config.get('model_type')}' ended without an answer: {last}",
            where=said.get("at") or "model",
            fix=start,
        )
    return family_from(draft_from_json(said["draft"]))


def serve(build: Build) -> None:
    """Runs in the subprocess: reads a configuration from stdin, writes lines of JSON to stdout."""
    import torch

    torch.set_num_threads(1)  # the models are small, and the parent may be busy
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def tell(fact: Report) -> None:
        print(json.dumps(fact), file=answers, flush=True)

    try:
        tell({"draft": propose(json.load(sys.stdin), build, tell).to_json()})
    except (CoverageError, SourceError) as error:
        kind = type(error).__name__
        tell({"error": {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix}})


def _said(output: str | bytes | None) -> Report:
    """Merges the lines, later ones over earlier ones. A killed process may leave half a line."""
    text = output.decode() if isinstance(output, bytes) else output or ""
    said: Report = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            said |= json.loads(line)
    return said
