"""Every one-shot method at equal parameters, without any training: perplexity, time, memory.

    python benchmarks/one_shot.py CORPUS [--sizes 121M 113M 94M zeros] [--rows flap ...]
    python benchmarks/one_shot.py CORPUS --table

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Every row is
a recipe under ``recipes/baselines`` with other text and another size, run by the command line as a
user would; a row that is there is not run again. What a run found is one line of
``docs/results/one_shot.csv``. At the end the runs of a size go through ``effcompress compare``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from corpus import domains

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
    "magnitude",
    "random",
)
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
}
ZEROS = (
    "magnitude_50",
    "wanda_50",
    "sparsegpt_50",
    "magnitude_2_4",
    "wanda_2_4",
    "sparsegpt_2_4",
)
SIZES = ("121M", "113M", "94M", "zeros")
LAYERS = 30


def rows_of(size: str) -> dict[str, tuple[str, list[str]]]:
    """Row -> (recipe, values set otherwise)."""
    if size == "zeros":
        pattern = ["sparsify.sparsity=null", "sparsify.pattern=2:4"]
        own = {"magnitude_2_4": ("magnitude_50", pattern)}
        return {name: own.get(name, (name, [])) for name in ZEROS}
    shapes = {name: each[size] for name, each in BY_SHAPE.items()}
    found = {name: (name, [f"prune.target.params={size}"]) for name in BY_PARAMETERS}
    found |= {
        name: (name, [f"prune.target.shape.{kind}={n}" for kind, n in shape.items()])
        for name, shape in shapes.items()
    }
    gone = LAYERS - shapes["iterative_depth"]["layer"]
    found["iterative_depth"][1].append(f"prune.schedule.rounds={gone}")
    return found


def command(row: str, size: str, corpus: Path) -> list[str]:
    """The command line of a row; what it prints is what a user would type."""
    name, sets = rows_of(size)[row]
    every = [f"name={row}", f"data.domains={json.dumps(domains(corpus))}", *sets]
    parts = [sys.executable, "-m", "effcompress", "run", str(RECIPES / f"{name}.yaml")]
    parts += ["--output", str(RUNS / size / row)]
    parts += [part for value in every for part in ("--set", value)]
    return [*parts, "--resume"] if (RUNS / size / row).exists() else parts


def run(row: str, size: str, corpus: Path) -> None:
    """Run one row to its end and write its line."""
    folder = RUNS / size / row
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as out:
        done = subprocess.run(command(row, size, corpus), stdout=out, stderr=out)
    attempt = read(folder, seed=0, shown=row)
    if done.returncode or not attempt.done or attempt.facts is None:
        print(f"{row} ({size}): failed, see {folder.with_suffix('.log')}", flush=True)
        return
    line = {"size": size, "row": row, **line_of(attempt.facts)}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(line))
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(f"{row} ({size}): {line['mean']}", flush=True)


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


def mean(perplexities: Mapping[str, float]) -> float:
    """Geometric: each domain counts alike."""
    return math.exp(statistics.mean(math.log(value) for value in perplexities.values()))


def lines() -> list[dict[str, str]]:
    """All lines so far."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def table() -> None:
    """Markdown, one table per size."""
    sizes: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in lines():
        sizes[line["size"]].append(line)
    for size, found in sizes.items():
        names = [name for name in found[0] if f"dense {name}" in found[0]]
        print(f"\n### {'To ' + size if size != 'zeros' else 'Zeros, all parameters stay'}\n")
        print(f"| method | parameters | zeroed | mean | {' | '.join(names)} | pruning | peak |")
        print("|---|---|---|---|" + "---|" * (len(names) + 2))
        dense = {name: float(found[0][f"dense {name}"]) for name in names}
        cells = " | ".join(f"{value:.2f}" for value in dense.values())
        print(f"| dense | 134.5M | - | {mean(dense):.2f} | {cells} | - | - |")
        for line in sorted(found, key=lambda line: float(line["mean"])):
            values = " | ".join(f"{float(line[name]):.2f}" for name in names)
            zeroed = f"{int(line['zeroed']) / 1e6:.1f}M" if int(line["zeroed"]) else "-"
            memory = f"{int(line['prune_memory']) / 1e9:.2f} GB" if line["prune_memory"] else "-"
            print(
                f"| {line['row']} | {int(line['params']) / 1e6:.1f}M | {zeroed} | "
                f"{float(line['mean']):.2f} | {values} | {float(line['prune_seconds']):.0f} s | "
                f"{memory} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rows", nargs="+", help="default: all of a size")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--table", action="store_true", help="print the tables; run nothing")
    options = parser.parse_args()
    if options.table:
        table()
        return
    there = {(line["size"], line["row"]) for line in lines()}
    jobs = [
        (row, size, options.corpus)
        for size in options.sizes
        for row in rows_of(size)
        if (size, row) not in there and row in (options.rows or [row])
    ]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    for size in options.sizes:
        compare(size)


def compare(size: str) -> None:
    """One page of all finished runs of a size."""
    finished = [line["row"] for line in lines() if line["size"] == size]
    folders = [str(RUNS / size / row) for row in finished if (RUNS / size / row).exists()]
    if len(folders) > 1:
        page = ["--output", str(RUNS / f"{size}_compared")]
        subprocess.run([sys.executable, "-m", "effcompress", "compare", *folders, *page])


if __name__ == "__main__":
    main()
