"""Instruction tuning of a small model on pairs made from a corpus: held-out loss before and after.

    python benchmarks/instruct.py CORPUS [--pairs 150] [--epochs 1] [--model FOLDER]

``CORPUS`` is a folder of ``<domain>/{train,validation}.jsonl`` with a field ``text``. Of its
domains ``reference``, ``wiki`` and ``math``, as many pairs each: a headword and its entry, a first
sentence and what follows it, a problem and its solution; documents whose answer is longer than
``LONGEST`` characters are passed over. They are written to ``runs/instruct/pairs``, and
``recipes/instruct.yaml`` is run on them by the command line as a user would.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "instruct"
LONGEST = 320
KINDS = {
    "reference": ("\n", "What does '{}' mean in computing?"),
    "wiki": (". ", "Continue the text: {}."),
    "math": ("\n\nSolution:\n", "{}"),
}
"""Domain -> what divides a document into question and answer, and how the question is asked."""


def pairs(corpus: Path, domain: str, part: str) -> Iterator[dict[str, str]]:
    """The pairs of a domain in the order of its documents."""
    divider, asked = KINDS[domain]
    for line in (corpus / domain / f"{part}.jsonl").open(encoding="utf-8"):
        question, _, answer = json.loads(line)["text"].partition(divider)
        question = question.removeprefix("Problem:\n").strip()
        if question and len(question) <= LONGEST and 0 < len(answer.strip()) <= LONGEST:
            yield {"input": asked.format(question), "output": answer.strip()}


def write(corpus: Path, part: str, count: int) -> Path:
    """Writes ``count`` pairs, the domains in turns; returns the file."""
    path = FOLDER / "pairs" / f"{part}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    streams = [pairs(corpus, domain, part) for domain in KINDS]
    with path.open("w", encoding="utf-8") as out:
        for n in range(count):
            out.write(json.dumps(next(streams[n % len(streams)])) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a pruned folder; default: the recipe's model")
    options = parser.parse_args()
    files = {"jsonl": write(options.corpus, "train", options.pairs)}
    files["validation"] = write(options.corpus, "validation", 30)
    sets = [f"data.domains.pairs.{key}={path}" for key, path in files.items()]
    sets += [f"train.tokens={options.pairs * options.epochs * 512}", "train.precision=fp32"]
    sets += ["train.batch_size=8", "train.micro_batch_size=4"]
    sets += ["evaluate.sequences=30", "evaluate.new_tokens=16"]
    if options.model:
        sets.append("model=" + json.dumps({"folder": str(options.model.resolve())}))
    command = [sys.executable, "-m", "effcompress", "run", str(ROOT / "recipes/instruct.yaml")]
    command += ["--output", str(FOLDER / "run")]
    subprocess.run([*command, *(p for value in sets for p in ("--set", value))], check=True)
    for line in (FOLDER / "run" / "metrics.jsonl").open(encoding="utf-8"):
        event = json.loads(line)
        if event["event"] == "evaluation":
            score = event["domains"]["pairs"]
            print(f"{event['when']}: {score['loss']:.4f} nats per token of {score['tokens']:,}")


if __name__ == "__main__":
    main()
