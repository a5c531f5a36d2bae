"""Methods, each trained a little afterwards, and ways to do so: one page of `effcompress compare`.

    python benchmarks/recovery.py CORPUS [--tokens 20480] [--rows flap_lora ...]

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Every row is
a recipe under ``recipes/baselines`` at 113M parameters with ``recover:``, run by the command line
as a user would; one that was interrupted goes on. The page is ``runs/recovery_compared``, and its
table, ``comparison.md``, is what docs/results/recovery.md shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from corpus import domains

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "recovery"
ROWS = {
    "one_shot": ("one_shot", "full"),
    "flap": ("flap", "full"),
    "flap_distill": ("flap", "distill"),
    "flap_lora": ("flap", "lora"),
    "minitron": ("minitron", "full"),
    "llm_pruner": ("llm_pruner", "full"),
    "shortgpt": ("shortgpt", "full"),
    "adapt_pruner": ("adapt_pruner", "full"),
    "adapt_accel": ("adapt_accel", "between"),
}
"""Row -> (recipe, how it is trained afterwards; or that it is between cuts)."""
SHAPES = {"minitron": {"ffn": 1216, "hidden": 552}, "shortgpt": {"layer": 24}}
RATES = {"full": 1e-4, "distill": 1e-4, "lora": 1e-3, "between": 1e-4}
"""Peak learning rates."""


def command(row: str, corpus: Path, tokens: int) -> list[str]:
    """The command line of a row."""
    recipe, method = ROWS[row]
    rate = {"peak": RATES[method], "warmup": 0.1}
    loop = {"tokens": tokens, "batch_size": 4, "learning_rate": rate}
    training = {"train": loop} if method == "between" else {"recover": {**loop, "method": method}}
    sets = [f"name={row}", f"data.domains={json.dumps(domains(corpus))}"]
    sets += [f"{section}={json.dumps(values)}" for section, values in training.items()]
    sets += [f"prune.target.shape.{kind}={n}" for kind, n in SHAPES.get(row, {}).items()]
    parts = [
        sys.executable,
        "-m",
        "effcompress",
        "run",
        str(ROOT / f"recipes/baselines/{recipe}.yaml"),
    ]
    parts += ["--output", str(RUNS / row)]
    parts += [part for value in sets for part in ("--set", value)]
    return [*parts, "--resume"] if (RUNS / row).exists() else parts


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        if (RUNS / row / "config.json").exists():
            continue
        with (RUNS / f"{row}.log").open("a") as out:
            done = subprocess.run(
                command(row, options.corpus, options.tokens), stdout=out, stderr=out
            )
        print(f"{row}: {'done' if done.returncode == 0 else 'failed, see its log'}", flush=True)
    folders = [str(RUNS / row) for row in ROWS if (RUNS / row / "config.json").exists()]
    page = ["--output", str(ROOT / "runs" / "recovery_compared")]
    subprocess.run([sys.executable, "-m", "effcompress", "compare", *folders, *page], check=True)


if __name__ == "__main__":
    main()
