"""Runs the rows of an experiment: one command line per run, one line of a CSV file per result.

A run that was interrupted goes on where it stopped; a run whose line is there is not made again.
"""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import lines_of, mean
from efficientllm_rows import KEY, Job, NotYet, Row, recipe_of, values

Line = dict[str, Any]
STEP = 512
"""Tokens of an optimizer step of the protocol: two sequences of 256."""


@dataclass(frozen=True)
class Experiment:
    """Rows by name, their text (``data.domains``), and where results and runs lie."""

    rows: Mapping[str, Row]
    domains: Mapping[str, Any]
    results: Path
    runs: Path
    also: tuple[str, ...] = ()
    """Values of ``--set`` for every run, e.g. what is evaluated besides."""
    needed: tuple[str, ...] = ()
    """Cells without which a line is not taken for the result of a run."""

    def folder_of(self, job: Job) -> Path:
        """Where a row's run lies."""
        name = "".join(c if c.isalnum() else "_" for c in job.row)
        equal = "" if job.equal == "tokens" else f"_{job.equal}"
        return self.runs / f"{job.size}_{job.tokens}_{name}_{job.seed}_{job.precision}{equal}"

    def command(self, job: Job, tokens: int | None = None) -> list[str]:
        """The command line of a row, as a user would type it; ``tokens``: other than the job's."""
        row, out = self.rows[job.row], self.folder_of(job)
        text = f"data.domains={json.dumps(self.domains)}"
        every = [text, *values(row, job, tokens or job.tokens, self.folder_of), *self.also]
        parts = [sys.executable, "-m", "effcompress", "run", str(recipe_of(row, job.size))]
        parts += ["--output", str(out)]
        parts += [part for value in every for part in ("--set", value)]
        return [*parts, "--resume"] if (out / "checkpoints").exists() else parts

    def lines(self) -> list[Line]:
        """All results so far, of each run the newest; cells that earlier versions did not write are
        empty.
        """
        found: dict[tuple[str, ...], Line] = {}
        for line in lines_of(self.results):
            full = {key: cell or "" for key, cell in line.items()}
            full["equal"] = full.get("equal") or "tokens"
            found[tuple(full[key] for key in KEY)] = full
        return [*found.values()]

    def line_of(self, job: Job) -> Line | None:
        """The result of a run, if it is there."""
        same = (line for line in self.lines() if {k: line[k] for k in KEY} == job.line())
        return next((x for x in same if all(x.get(cell) for cell in self.needed)), None)

    def costs_of(self, job: Job) -> Line | None:
        """The result of a run with its operations; of another seed where its own has none."""
        key = {**job.line(), "seed": None}
        each = [x for x in self.lines() if {**{k: x[k] for k in KEY}, "seed": None} == key]
        known = [line for line in each if line.get("flops")]
        own = (line for line in known if line["seed"] == str(job.seed))
        return next(own, known[0] if known else None)

    def run(self, job: Job, tokens: int | None = None) -> Line | None:
        """Runs one row to its end and writes its line; None where it failed."""
        folder, what = self.folder_of(job), f"{job.row} (seed {job.seed}, {job.size})"
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        if not finished(folder):
            with log.open("a") as out:
                done = subprocess.run(self.command(job, tokens), stdout=out, stderr=out)
            if done.returncode:
                print(f"{what}: failed, see {log}", flush=True)
                return None
        return self.write(job, result(folder))

    def write(self, job: Job, found: Mapping[str, Any]) -> Line:
        """Appends the line of a run to the results, and deletes its checkpoints."""
        line: Line = {**job.line(), **found}
        self.runs.mkdir(parents=True, exist_ok=True)
        with (self.runs / "results.lock").open("a") as lock:  # others may write theirs
            fcntl.flock(lock, fcntl.LOCK_EX)
            append(self.results, line)
        shutil.rmtree(self.folder_of(job) / "checkpoints", ignore_errors=True)
        print(f"{job.row} (seed {job.seed}, {job.size}): {mean_of(line):.2f}", flush=True)
        return line

    def run_all(
        self, jobs: Iterable[Job], at_once: int = 1, each: Callable[[Job], Any] | None = None
    ) -> None:
        """Runs the jobs that have no line yet, so many side by side."""
        missing = [job for job in jobs if self.line_of(job) is None]

        def turn(job: Job) -> None:
            try:
                (each or self.run)(job)
            except NotYet as error:
                print(f"{job.row} (seed {job.seed}, {job.size}): {error}", flush=True)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(turn, missing))


def finished(folder: Path) -> bool:
    """Whether the run in a folder has succeeded."""
    events = _events(folder) if (folder / "metrics.jsonl").exists() else []
    return any(e["event"] == "end" and e["status"] == "success" for e in events)


def append(results: Path, line: Mapping[str, Any]) -> None:
    """Appends a line to a CSV file; columns that it does not have yet are added to its header."""
    earlier = lines_of(results)
    columns = [*(earlier[0] if earlier else {})]
    new = [key for key in line if key not in columns]
    if earlier and not new:
        with results.open("a", newline="") as out:
            csv.DictWriter(out, columns, lineterminator="\r\n").writerow(dict(line))
        return
    with results.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*columns, *new], restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows([*earlier, dict(line)])


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result(folder: Path) -> Line:
    """What a run found and what it took: perplexity per domain, before and after; operations, of
    its training steps and (``flops_besides``) of everything beside them.
    """
    events = _events(folder)
    after, before = (
        next(e for e in events if e["event"] == "evaluation" and e["when"] == when)
        for when in ("after", "before")
    )
    end = next(e for e in events if e["event"] == "end")
    steps = [e for e in events if e["event"] == "step"]
    found = {d: v["perplexity"] for d, v in after["domains"].items()}
    dense = {f"dense {d}": v["perplexity"] for d, v in before["domains"].items()}
    besides = sum(e.get("flops") or 0.0 for e in events if e["event"] != "step")
    return {
        "params": end["params"],
        "minutes": round(end["seconds"] / 60, 1),
        "steps_per_second": round(len(steps) / max(1e-9, steps[-1]["seconds"]), 3),
        **{name: round(value, 3) for name, value in {**found, **dense}.items()},
        "trained": steps[-1]["tokens"],
        "flops": sum(e["flops"] for e in steps) + besides,
        "flops_besides": besides,
        **_alike(after["domains"].values()),
    }


def _alike(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the domains, where the result was compared with the source model."""
    compared = [score for score in scores if "agreement" in score]
    keys = ("agreement", "divergence") if compared else ()
    return {key: round(statistics.mean(s[key] for s in compared), 5) for key in keys}


def tokens_for(flops: float, line: Mapping[str, Any]) -> int:
    """Tokens, whole steps, with which the row of ``line`` would cost so many operations: what it
    does beside its steps stays, its steps scale with the tokens. At least one step.
    """
    besides, trained = float(line["flops_besides"]), int(line["trained"])
    each = (float(line["flops"]) - besides) / trained
    return max(STEP, round((flops - besides) / each / STEP) * STEP)


def domains_of(line: Mapping[str, Any]) -> list[str]:
    """Names of the domains in a line."""
    return [k for k in line if f"dense {k}" in line]


def mean_of(line: Mapping[str, Any], prefix: str = "") -> float:
    """Geometric mean of the domains' perplexities."""
    return mean({d: float(line[f"{prefix}{d}"]) for d in domains_of(line)})
