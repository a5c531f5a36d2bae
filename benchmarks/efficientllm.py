"""The evidence: EfficientLLM-A and -B beside once-and-train baselines, equal tokens for all.

    python benchmarks/efficientllm.py CORPUS [--size 100M] [--seed 0] [--rows A B ...]
                                      [--tokens 60000] [--precision bf16]
                                      [--equal flops --reference ROW]
    python benchmarks/efficientllm.py CORPUS --table

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Every row is
a recipe of this repository with a few values set otherwise (``efficientllm_rows.py``), run by the
command line as a user would; a row that was interrupted goes on where it stopped. Results are kept
as one line each in ``docs/results/efficientllm.csv``; rows that are there are not run again.

With ``--equal flops`` every row gets as many tokens as cost what the reference row costs with
``--tokens`` (its result must be there, and the row's own with equal tokens, from which its costs
are known): training, the teacher, calibration, search and refit, all of them counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from corpus import domains
from efficientllm_rows import KEY, ROOT, ROWS, Job, NotYet, needs_first
from protocol import STEP, Experiment, Line, domains_of, mean_of, tokens_for

RESULTS = ROOT / "docs" / "results" / "efficientllm.csv"
RUNS = ROOT / "runs" / "efficientllm"


def experiment(corpus: Path) -> Experiment:
    """The rows on the corpus and its own held-out text."""
    return Experiment(ROWS, domains(corpus), RESULTS, RUNS)


def run_equal(made: Experiment, reference: str, job: Job) -> None:
    """Runs a row with the tokens that make its operations equal to the reference row's; where these
    are not known for its seed, another seed's, which differ by the widths found. Raises NotYet
    where no seed's are known.
    """
    plain = replace(job, equal="tokens")
    own, other = made.costs_of(plain), made.costs_of(replace(plain, row=reference))
    for name, line in ((job.row, own), (reference, other)):
        if line is None:
            raise NotYet(f"no operations of {name} are known: run it with equal tokens first")
    assert own is not None and other is not None
    tokens, same = tokens_for(float(other["flops"]), own), made.line_of(plain) == own
    if same and abs(tokens - int(own["trained"])) < STEP:  # the same run
        made.write(job, {key: cell for key, cell in own.items() if key not in KEY})
        return
    made.run(job, tokens)


def table(lines: list[Line]) -> None:
    """Markdown, one table per size and budget: mean and spread over seeds. Where a seed was run in
    both precisions, bf16 counts.
    """
    groups: dict[tuple[str, ...], dict[str, list[Line]]] = {}
    for line in _each_once(lines):
        key = tuple(str(line[cell]) for cell in ("size", "tokens", "equal"))
        groups.setdefault(key, defaultdict(list))[str(line["row"])].append(line)
    for (size, tokens, equal), rows in groups.items():
        first = next(iter(rows.values()))[0]
        names = domains_of(first)
        what = "tokens" if equal == "tokens" else "tokens of the reference row, equal operations"
        print(f"\n### To {size} with {int(tokens):,} {what}\n")
        print(
            "| row | parameters | mean | spread | seeds | tokens | TFLOP | "
            f"{' | '.join(names)} | minutes |"
        )
        print("|---|---|---|---|---|---|---|" + "---|" * (len(names) + 1))
        dense = " | ".join(f"{float(first[f'dense {d}']):.2f}" for d in names)
        print(
            f"| dense, untrained | 134.5M | {mean_of(first, 'dense '):.2f} | - | - | - | - | "
            f"{dense} | - |"
        )
        for row, found in sorted(rows.items(), key=lambda item: _mean(item[1])):
            print(_table_row(row, found, names))


def _table_row(row: str, lines: list[Line], names: list[str]) -> str:
    each = [mean_of(line) for line in lines]
    spread = f"{statistics.stdev(each):.2f}" if len(each) > 1 else "-"
    cells = " | ".join(f"{_over(lines, d):.2f}" for d in names)
    trained = f"{_over(lines, 'trained'):,.0f}" if _known(lines, "trained") else "-"
    flops = f"{_over(lines, 'flops') / 1e12:.1f}" if _known(lines, "flops") else "-"
    return (
        f"| {row} | {_over(lines, 'params') / 1e6:.1f}M | {statistics.mean(each):.2f} | {spread} | "
        f"{len(each)} | {trained} | {flops} | {cells} | {_over(lines, 'minutes'):.0f} |"
    )


def _known(lines: list[Line], cell: str) -> bool:
    """Lines of earlier versions do not say all."""
    return all(line.get(cell) for line in lines)


def _over(lines: list[Line], cell: str) -> float:
    return statistics.mean(float(line[cell]) for line in lines)


def _each_once(lines: list[Line]) -> list[Line]:
    found: dict[tuple[Any, ...], Line] = {}
    for line in sorted(lines, key=lambda line: str(line["precision"])):
        found.setdefault(tuple(line[key] for key in KEY if key != "precision"), line)
    return [line for line in lines if line in found.values()]


def _mean(lines: list[Line]) -> float:
    return statistics.mean(mean_of(line) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--size", choices=["100M", "68M"], default="100M")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    listed = f"default: all; they are {', '.join(ROWS)}"
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=listed
    )
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--equal", choices=["tokens", "flops"], default="tokens")
    parser.add_argument(
        "--reference",
        choices=list(ROWS),
        metavar="ROW",
        default="LLM-Pruner once",
        help="with --equal flops: the row whose operations the others get",
    )
    parser.add_argument("--table", action="store_true", help="print the tables; run nothing")
    options = parser.parse_args()
    made = experiment(options.corpus)
    if options.table:
        table(made.lines())
        return
    jobs = [
        Job(row, options.size, options.tokens, seed, options.precision, options.equal)
        for seed in options.seed
        for row in needs_first(options.rows)
    ]
    equal = partial(run_equal, made, options.reference) if options.equal == "flops" else None
    made.run_all(jobs, options.at_once, equal)


if __name__ == "__main__":
    main()
