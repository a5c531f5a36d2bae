"""The door to tracing: a configuration whose architecture nobody declared -> a proven family.

The tracer may loop for ever, and what it builds keeps every weight alive. So it works in a process
of its own, which says as it goes what it has found and which module it is asking about; when the
time is up, that is the module to name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from effcompress.errors import CoverageError, EffcompressError, SourceError
from effcompress.groups.tracing.draft import Draft, draft_from_json, family_from
from effcompress.groups.tracing.search import Build, paste, propose
from effcompress.types import Config, Family

SECONDS = 300.0
"""Small models answer in a few seconds; most of it is starting the process."""
_ERRORS: Mapping[str, type[EffcompressError]] = {
    "CoverageError": CoverageError,
    "SourceError": SourceError,
}


def trace_family(config: Config, *, entry: str, timeout: float = SECONDS) -> Family:
    """The family of a configuration's architecture, every kind of which is proven.

    ``entry`` is a module that, run as a program, calls ``serve`` with a builder of models.

    Raises:
        CoverageError: names the module or parameter that could not be reached, in time or at all;
            ``fix`` is a declaration to start from.
        SourceError: the model cannot be built.
    """
    return family_from(trace_draft(config, entry=entry, timeout=timeout))


def trace_draft(config: Config, *, entry: str, timeout: float = SECONDS) -> Draft:
    """The same as plain data, with the reasons for what is ``left_out``."""
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
    return draft_from_json(said["draft"])


def serve(build: Build) -> None:
    """The other process: a configuration comes in, lines of JSON go out."""
    import torch

    torch.set_num_threads(1)  # small models, and the process that waits may be busy
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer

    def tell(fact: Mapping[str, Any]) -> None:
        print(json.dumps(fact), file=answers, flush=True)

    try:
        tell({"draft": propose(json.load(sys.stdin), build, tell).to_json()})
    except (CoverageError, SourceError) as error:
        kind = type(error).__name__
        tell({"error": {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix}})


def _said(output: str | bytes | None) -> dict[str, Any]:
    """The last word on every subject. A process that was stopped may have left half a line."""
    text = output.decode() if isinstance(output, bytes) else output or ""
    said: dict[str, Any] = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            said |= json.loads(line)
    return said
