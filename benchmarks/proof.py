"""What the proof of an exported folder costs: processor time of the fresh process and of this one.

    python benchmarks/proof.py [--repeats 3]

The folder is the source model of ``recipes/quickstart.yaml`` (SmolLM2-135M, fp32), which proves
itself on two rows of 64 tokens. The floor is the fresh process that imports transformers and loads
the folder, tokenizer included, and no more.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from effcompress.checkpoint import proof
from effcompress.model.load import load
from effcompress.model.source import items
from effcompress.recipe import load as read

RECIPE = Path(__file__).parents[1] / "recipes/quickstart.yaml"
LOADING = (
    "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
    "M.from_pretrained(sys.argv[1], dtype=torch.float32); T.from_pretrained(sys.argv[1])"
)


def spent(who: int) -> float:
    """Returns the user and system time so far of this process, or of its children."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    spec = read(RECIPE).recipe.model
    loaded = load(spec)
    folder = next(item.where for item in items(spec) if item.kind == "model")
    assert folder is not None
    ids_BT = torch.randint(0, 49152, (2, 64), generator=torch.Generator().manual_seed(0))
    floors, theirs, ours, seconds = [], [], [], []
    for _ in range(options.repeats):
        begun = spent(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-I", "-c", LOADING, str(folder)], check=True)
        floors.append(spent(resource.RUSAGE_CHILDREN) - begun)
        begun, own, clock = spent(resource.RUSAGE_CHILDREN), time.process_time(), time.monotonic()
        proof.prove(folder, loaded.module, ids_BT)
        theirs.append(spent(resource.RUSAGE_CHILDREN) - begun)
        ours.append(time.process_time() - own)
        seconds.append(time.monotonic() - clock)
    floor, fresh, here = median(floors), median(theirs), median(ours)
    print(f"import and load: {floor:.1f} s of processor time")
    print(f"proof: fresh process {fresh:.1f} s, this one {here:.1f} s")
    print(f"by the clock: {median(seconds):.1f} s")
    print(f"ratio {(fresh + here) / floor:.2f}")


if __name__ == "__main__":
    main()
