"""Every one-shot method at equal parameters, without any training: perplexity, time, memory.

    python benchmarks/one_shot.py CORPUS [--sizes 121M 113M 94M 456 432 zeros] [--rows flap ...]
                                  [--seeds 0 1 2]
    python benchmarks/one_shot.py CORPUS --table

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Every row is
a recipe under ``recipes/baselines`` with other text and another size, run by the command line as a
user would, once for each seed: a seed draws other calibration text, and rows that read none run
once. What several rows and sizes need to know of the dense model is measured once and counts for
each. A run that is there is not made again. What a run found is one line of
``docs/results/one_shot.csv``; lines without a seed are of an earlier version that read the first
sequences of every domain. At the end the runs of a size go through ``effcompress compare``.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from corpus import domains, lines_of, mean

from effcompress.report.comparison.facts import Facts, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "one_shot.csv"
RUNS = ROOT / "runs" / "one_shot"
RECIPES = ROOT / "recipes" / "baselines"

BY_PARAMETERS = (
    "one_shot",
    "flap",
    "llm_pruner",
    "llm_pruner_vector",
    "llm_pruner_mixed",
    "llm_pruner_channel",
    "adapt_pruner",
    "wanda_sp",
    "minitron_search",
    "darwinlm",
    "magnitude",
    "random",
)
TWO_SSP = {"121M": (1275, 30), "113M": (1138, 29), "94M": (823, 26)}
"""FFN channels and attention blocks, by the authors' rule (``recipes/baselines/two_ssp.yaml``)."""
DEPTH = {"121M": {"layer": 26}, "113M": {"layer": 24}, "94M": {"layer": 19}}
BY_SHAPE = {
    "minitron": {
        "121M": {"ffn": 1344, "hidden": 560},
        "113M": {"ffn": 1216, "hidden": 552},
        "94M": {"ffn": 896, "hidden": 536},
    },
    "shortgpt": DEPTH,
    "iterative_depth": DEPTH,
    "llm_pruner_layer": DEPTH,
    "two_ssp": {
        size: {"ffn": ffn, "attention_block": blocks} for size, (ffn, blocks) in TWO_SSP.items()
    },
}
SLICED = ("slicegpt", "slicegpt_refit")
"""Recipes that slice the residual stream: at most as many parameters as a size says, with the
embedding as output matrix, too; or, with sizes of their own, so many channels, also in two forms.
"""
WIDTHS = ("456", "432")
ZEROS = (
    "magnitude_50",
    "wanda_50",
    "sparsegpt_50",
    "magnitude_2_4",
    "wanda_2_4",
    "sparsegpt_2_4",
)
NO_TEXT = ("magnitude", "llm_pruner_layer", "magnitude_50", "magnitude_2_4")
"""Rows that read no calibration text and draw nothing: every seed finds the same."""
SIZES = ("121M", "113M", "94M", *WIDTHS, "zeros")
LAYERS, FFN = 30, 1536


def rows_of(size: str) -> dict[str, tuple[str, list[str]]]:
    """Row -> (recipe, values set otherwise)."""
    if size == "zeros":
        pattern = ["sparsify.sparsity=null", "sparsify.pattern=2:4"]
        own = {"magnitude_2_4": ("magnitude_50", pattern)}
        return {name: own.get(name, (name, [])) for name in ZEROS}
    if size in WIDTHS:
        width, split = [f"prune.target.shape.hidden={size}"], ["prune.rotate.tie=split"]
        return {
            **{name: (name, width) for name in SLICED},
            **{f"{name}_split": (name, [*width, *split]) for name in SLICED},
        }
    as_published = [f"prune.target.params={size}", "prune.reduce.compat=true"]
    shapes = {name: each[size] for name, each in BY_SHAPE.items()}
    found = {name: (name, [f"prune.target.params={size}"]) for name in BY_PARAMETERS}
    levels = [*found["darwinlm"][1], "prune.target.speedup=null", "prune.workload=null"]
    found["ziplm"] = ("ziplm", levels)
    ours = ["prune.refit=least_squares_bias", "prune.measure.refit_sequences=64"]
    found |= {f"{name}_refit": (name, [*found[name][1], *ours]) for name in ("ziplm", "darwinlm")}
    found["llm_pruner_compat"] = ("llm_pruner", as_published)
    found |= {
        name: (name, [f"prune.target.shape.{kind}={n}" for kind, n in shape.items()])
        for name, shape in shapes.items()
    }
    for name in SLICED:
        found[name] = (name, ["prune.target.shape=null", f"prune.target.params={size}"])
    gone = LAYERS - shapes["iterative_depth"]["layer"]
    found["two_ssp"][1].append(f"prune.schedule.first={FFN - TWO_SSP[size][0]}")
    found["iterative_depth"][1].append(f"prune.schedule.rounds={gone}")
    return found


def folder_of(row: str, size: str, seed: int) -> Path:
    """Where a run lies."""
    return RUNS / size / f"{row}_{seed}"


def command(row: str, size: str, seed: int, corpus: Path) -> list[str]:
    """The command line of a row; what it prints is what a user would type."""
    name, sets = rows_of(size)[row]
    folder = folder_of(row, size, seed)
    every = [f"name={row}", f"seed={seed}", f"data.domains={json.dumps(domains(corpus))}", *sets]
    parts = [sys.executable, "-m", "effcompress", "run", str(RECIPES / f"{name}.yaml")]
    parts += ["--output", str(folder), "--measurements", str(RUNS / "measurements")]
    parts += [part for value in every for part in ("--set", value)]
    return [*parts, "--resume"] if folder.exists() else parts


def run(row: str, size: str, seed: int, corpus: Path) -> None:
    """Run one row with one seed to its end and write its line."""
    folder = folder_of(row, size, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as out:
        done = subprocess.run(command(row, size, seed, corpus), stdout=out, stderr=out)
    attempt = read(folder, seed=seed, shown=row)
    if done.returncode or not attempt.done or attempt.facts is None:
        print(f"{row} ({size}, seed {seed}): failed, see {folder.with_suffix('.log')}", flush=True)
        return
    line = {"size": size, "row": row, "seed": seed, **line_of(attempt.facts)}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(line), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    print(f"{row} ({size}, seed {seed}): {line['mean']}", flush=True)


def line_of(facts: Facts) -> dict[str, Any]:
    """What the table shows of a run."""
    assert facts.after is not None and facts.before is not None
    dense = {f"dense {name}": value for name, value in facts.before.items()}
    values = {"mean": mean(facts.after), **facts.after, **dense}
    return {
        "params": facts.params,
        "zeroed": facts.zeroed,
        "prune_seconds": round(facts.prune_seconds or 0, 1),
        "prune_memory": facts.prune_memory or "",
        "threads": (facts.environment or {}).get("threads", ""),
        **{name: round(value, 3) for name, value in values.items()},
    }


def table() -> None:
    """Markdown, one table per size: means over the seeds, geometric for perplexities."""
    sizes: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in lines_of(RESULTS):
        sizes[line["size"]].append(line)
    for size in SIZES:
        found = sizes[size]
        if not found:
            continue
        names = [name for name in found[0] if f"dense {name}" in found[0]]
        dense = {name: float(found[0][f"dense {name}"]) for name in names}
        titles = {"zeros": "Zeros, all parameters stay"}
        titles |= {width: f"{width} channels of the residual stream" for width in WIDTHS}
        print(f"\n### {titles.get(size, f'To {size}')}\n")
        print(f"| method | parameters | mean | x dense | draws | {' | '.join(names)} | pruning |")
        print("|---|---|---|---|---|" + "---|" * (len(names) + 1))
        cells = " | ".join(f"{value:.2f}" for value in dense.values())
        print(f"| dense | 134.5M | {mean(dense):.2f} | 1.00 | - | {cells} | - |")
        for row in sorted(_each_row(found), key=lambda row: _over(row, "mean")):
            print(_table_row(row, names, mean(dense)))


def _each_row(found: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Lines of each row: those of seeds, or, where there are none yet, the earlier version's."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in found:
        rows[line["row"]].append(line)
    return [[x for x in row if x["seed"]] or row for row in rows.values()]


def _table_row(row: list[dict[str, str]], names: list[str], dense: float) -> str:
    drawn = [float(line["mean"]) for line in row]
    draws = f"{len(drawn)}: {min(drawn):.2f} to {max(drawn):.2f}" if len(drawn) > 1 else "1"
    draws = "no text" if row[0]["row"] in NO_TEXT else draws
    draws = draws if row[0]["seed"] else "earlier version"
    cells = " | ".join(f"{_over(row, name):.2f}" for name in names)
    seconds = statistics.median(float(line["prune_seconds"]) for line in row)
    return (
        f"| {row[0]['row']} | {int(row[0]['params']) / 1e6:.1f}M | {_over(row, 'mean'):.2f} | "
        f"{_over(row, 'mean') / dense:.2f} | {draws} | {cells} | {seconds:.0f} s |"
    )


def _over(row: list[dict[str, str]], name: str) -> float:
    """Geometric mean of a column over the seeds."""
    return mean({line["seed"]: float(line[name]) for line in row})


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rows", nargs="+", help="default: all of a size")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--table", action="store_true", help="print the tables; run nothing")
    options = parser.parse_args()
    if options.table:
        table()
        return
    there = {(line["size"], line["row"], line["seed"]) for line in lines_of(RESULTS)}
    jobs = [
        (row, size, seed, options.corpus)
        for seed in options.seeds
        for size in options.sizes
        for row in rows_of(size)
        if (size, row, str(seed)) not in there and row in (options.rows or [row])
        if seed == options.seeds[0] or row not in NO_TEXT
    ]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    for size in options.sizes:
        compare(size)


def compare(size: str) -> None:
    """One page of all finished runs of a size."""
    finished = [line for line in lines_of(RESULTS) if line["size"] == size and line["seed"]]
    every = [folder_of(line["row"], size, int(line["seed"])) for line in finished]
    folders = [str(folder) for folder in every if folder.exists()]
    if len(folders) > 1:
        page = ["--output", str(RUNS / f"{size}_compared")]
        subprocess.run([sys.executable, "-m", "effcompress", "compare", *folders, *page])


if __name__ == "__main__":
    main()
