"""What EfficientLLM costs a training step: A over plain training, B over A.

    python benchmarks/method_overhead.py [--rounds 3] [--every 8]

One process takes turns between plain steps, steps of variant A and steps of variant B on
SmolLM2-135M (512 tokens, fp32, AdamW), so that a drifting machine slows all three. A and B measure
at every step and cut every ``--every`` steps what the small recipe cuts in as many (its pruning
stage spread over its steps), commits included; a round is ``--every`` steps of each. Ratios are of
sums over rounds; the median step without a cut is printed beside.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from step_overhead import now, prepare

from effcompress import train
from effcompress.record.log import Log, make_view
from effcompress.runner.measuring import listening, observe
from effcompress.runner.prune import commit_event, prune_event
from effcompress.runner.state import RunState
from effcompress.types import Due

RECIPES = Path(__file__).parents[1] / "recipes"
SETS = (
    "data.sequence_length=512",
    "train.batch_size=1",
    "train.precision=fp32",
    "prune.commit_every=1000000",
)
"""Tensors keep their length until the end, else A and B would win by being smaller."""
PER_STEP = 750_000
"""Parameters cut per step: 34.5M within a stage of 46 steps, as the small recipe does."""


def recipe_of(variant: str) -> Path:
    """The small recipe of variant a or b."""
    return RECIPES / f"efficientllm_small_100m_{variant}.yaml"


def step(state: RunState, log: Log, *, prunes: bool, cut: int) -> float:
    """Seconds of one step; ``cut`` parameters go at its end."""
    spec, prune = state.recipe.train, state.recipe.prune
    assert spec and prune and state.optimizer
    batch = state.stream.next(spec.batch_size)
    started = now(state)
    if prunes:
        with listening(state):
            train.backward(state.module, batch, spec)
        observe(state, prune)
    else:
        train.backward(state.module, batch, spec)
    train.update(state.module, state.optimizer, spec, 1e-5)
    if cut:
        prune_event(state, prune, Due(params=state.params - cut), log)
    return now(state) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=8)
    options = parser.parse_args()
    steps = options.rounds * options.every
    arms = {
        name: prepare(512 * (steps + 2), recipe_of(variant), SETS)
        for name, variant in (("plain", "a"), ("A", "a"), ("B", "b"))
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cuts: dict[str, list[float]] = {name: [] for name in arms}
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=make_view(interactive=False))
        for name, state in arms.items():  # the first steps allocate
            step(state, log, prunes=name != "plain", cut=0)
        for number in range(1, steps + 1):
            last = number % options.every == 0
            for name, state in arms.items():
                prunes = name != "plain"
                cut = PER_STEP * options.every if prunes and last else 0
                taken = step(state, log, prunes=prunes, cut=cut)
                seconds[name].append(taken)
                (cuts if last else {}).get(name, []).append(taken)
        total = {name: sum(values) for name, values in seconds.items()}
        for name in ("A", "B"):
            started = now(arms[name])
            commit_event(arms[name], log)
            total[name] += now(arms[name]) - started
        log.close()
    for name, values in seconds.items():
        print(
            f"{name}: {total[name] / steps:.3f} s a step, median {statistics.median(values):.3f}, "
            f"with a cut {statistics.mean(cuts[name]):.3f}, {arms[name].params:,} parameters"
        )
    print(f"A over plain: {total['A'] / total['plain']:.3f}")
    print(f"B over A: {total['B'] / total['A']:.3f}")


if __name__ == "__main__":
    main()
