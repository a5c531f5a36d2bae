"""Quality over measured milliseconds: selection by size, by time and by evolution; no training.

    python benchmarks/latency.py CORPUS [--phases prefill decode] [--rows ziplm ...]
                                 [--asked 1.5 94M ...] [--threads 1]
    python benchmarks/latency.py CORPUS --table

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Rows that are
selected by size come to 121M, 113M and 94M parameters, those selected by time to 1.25, 1.5 and 2
times the dense model's speed in the phase. Every run is a recipe under ``recipes/baselines``, run
by the command line as a user would; a run that is there is not made again (those of
``benchmarks/one_shot.py`` are used). Then every exported folder is timed by turns with the dense
model, both phases, with the batch and the length below. What was found is one line of
``docs/results/latency.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import one_shot
from corpus import domains, lines_of, mean

from effcompress import load_recipe
from effcompress.model.load import load
from effcompress.report.gather import gather
from effcompress.runner.latency import compared
from effcompress.spec import ModelSpec, WorkloadSpec

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "latency.csv"
RUNS = ROOT / "runs" / "latency"
RECIPES = ROOT / "recipes" / "baselines"
PHASES = ("prefill", "decode")
BY_SIZE = ("one_shot", "flap", "minitron")
BY_TIME = ("ziplm", "darwinlm")
SIZES = ("121M", "113M", "94M")
SPEEDS = (1.25, 1.5, 2.0)
BATCH, LENGTH = 1, 512


@dataclass(frozen=True)
class Job:
    """One run: a row, what it is asked for, and, where that is a time, of which phase."""

    row: str
    asked: str
    phase: str = ""

    @property
    def folder(self) -> Path:
        """Where it lies; those by size are the one-shot benchmark's."""
        if not self.phase:
            return one_shot.folder_of(self.row, self.asked, 0)
        return RUNS / self.phase / f"{self.row}_{self.asked}"

    @property
    def log(self) -> Path:
        """What the run prints (the folder's name has a point, so it has no suffix to replace)."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def command(self, corpus: Path, threads: int) -> list[str]:
        """The command line; what it prints is what a user would type."""
        if not self.phase:
            return one_shot.command(self.row, self.asked, 0, corpus)
        load = {"phase": self.phase, "batch": BATCH, "length": LENGTH, "threads": threads}
        target = json.dumps({"speedup": float(self.asked), "params": None})
        sets = [f"name={self.row}", f"data.domains={json.dumps(domains(corpus))}"]
        sets += [f"prune.target={target}", f"prune.workload={json.dumps(load)}"]
        parts = [sys.executable, "-m", "effcompress", "run", str(RECIPES / f"{self.row}.yaml")]
        parts += ["--output", str(self.folder), *(x for s in sets for x in ("--set", s))]
        return [*parts, "--resume"] if self.folder.exists() else parts


def jobs(phases: list[str]) -> Iterator[Job]:
    """All rows of these phases."""
    yield from (Job(row, size) for row in BY_SIZE for size in SIZES)
    for phase in phases:
        yield from (Job(row, f"{speed:g}", phase) for row in BY_TIME for speed in SPEEDS)


def line_of(job: Job, phase: str, dense: Any, threads: int) -> dict[str, Any]:
    """Times the exported folder beside the dense model, and reads the rest from the record."""
    record = gather(job.folder)
    assert record.before is not None and record.after is not None
    module = load(ModelSpec(folder=job.folder)).module.eval()
    how: Any = {"phase": phase, "batch": BATCH, "length": LENGTH, "threads": threads}
    seen = compared(dense, module, WorkloadSpec(**how, rounds=9))
    scores = {name: one.perplexity for name, one in record.after.domains.items()}
    before = {name: one.perplexity for name, one in record.before.domains.items()}
    made = record.latency
    return {
        "phase": phase,
        "row": job.row,
        "asked": job.asked,
        "for": job.phase or "size",
        "params": record.params_after,
        "milliseconds": round(seen.pruned.median * 1e3, 2),
        "low": round(seen.pruned.low * 1e3, 2),
        "high": round(seen.pruned.high * 1e3, 2),
        "dense_ms": round(seen.dense.median * 1e3, 2),
        "speed_up": round(seen.speed_up.median, 3),
        "predicted_ms": round(made.predicted * 1e3, 2) if made else "",
        "run_speed_up": round(made.speed_up, 3) if made else "",
        "mean": round(mean(scores), 3),
        "dense_mean": round(mean(before), 3),
        "seconds": round(sum(cost.seconds or 0.0 for cost in record.costs), 1),
        "threads": threads,
    }


def write(line: dict[str, Any]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(line), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


def run(job: Job, corpus: Path, threads: int) -> bool:
    """Makes a run unless it is there; returns whether it ended well."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if not (job.folder / "config.json").exists():
        with job.log.open("a") as out:
            subprocess.run(job.command(corpus, threads), stdout=out, stderr=out)
    done = (job.folder / "config.json").exists()
    if not done:
        print(f"{job.row} {job.asked}: failed, see {job.log}", flush=True)
    return done


def table() -> None:
    """Markdown, one table per phase, by speed beside the dense model, the fastest last."""
    for phase in PHASES:
        found = [line for line in lines_of(RESULTS) if line["phase"] == phase]
        found = [line for line in found if line["for"] in ("size", phase)]
        if not found:
            continue
        load = f"batch {BATCH}, {LENGTH} tokens"
        print(f"\n### {phase.capitalize()}, {load}\n")
        print("| method | asked | ms | range | x dense speed | parameters | mean | x dense | run |")
        print("|---|---|---|---|---|---|---|---|---|")
        ms, mean = found[-1]["dense_ms"], found[-1]["dense_mean"]
        print(f"| dense | - | {ms} | - | 1.00 | 134.5M | {mean} | 1.00 | - |")
        for line in sorted(found, key=lambda line: float(line["speed_up"])):
            print(_table_row(line))


def _table_row(line: dict[str, str]) -> str:
    asked = line["asked"] if line["for"] == "size" else f"x{line['asked']}"
    cells = (
        *(line["row"], asked, line["milliseconds"], f"{line['low']}-{line['high']}"),
        *(line["speed_up"], f"{int(line['params']) / 1e6:.1f}M", line["mean"]),
        f"{float(line['mean']) / float(line['dense_mean']):.2f}",
        f"{float(line['seconds']):.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--rows", nargs="+", choices=(*BY_SIZE, *BY_TIME))
    every = [*SIZES, *(f"{speed:g}" for speed in SPEEDS)]
    parser.add_argument("--asked", nargs="+", choices=every, default=every)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables; run nothing")
    options = parser.parse_args()
    if options.table:
        table()
        return
    rows = options.rows or [*BY_SIZE, *BY_TIME]
    wanted = [j for j in jobs(options.phases) if j.row in rows and j.asked in options.asked]
    done = [job for job in wanted if run(job, options.corpus, options.threads)]
    spec = load_recipe(RECIPES / "one_shot.yaml").recipe.model
    dense = load(spec).module.eval()
    there = {(x["phase"], x["row"], x["asked"], x["for"]) for x in lines_of(RESULTS)}
    for phase in options.phases:
        for job in done:
            key = (phase, job.row, job.asked, job.phase or "size")
            if key not in there and job.phase in ("", phase):
                line = line_of(job, phase, dense, options.threads)
                write(line)
                print(f"{key}: {line['milliseconds']} ms, {line['mean']}", flush=True)


if __name__ == "__main__":
    main()
