"""What the passes of one-shot methods cost, as ratios of plain passes over the same text.

    python benchmarks/passes.py [--rows flap wanda ...] [--sequences 32] [--length 512] [--rounds 1]
    python benchmarks/passes.py --rows one_shot --profile

One process, SmolLM2-135M, fp32. In every round a plain forward of the body (``body``: without the
output matrix) and a plain forward and backward with the loss (``train``) take turns with each row:
a recipe under ``recipes/baselines`` from the loaded model to the cut or sparse one. Figures are CPU
seconds of the process, which other work on the machine disturbs least, as ratios of ``body`` of the
same round; the median over rounds is printed, with the wall time beside. *Floor*: the arithmetic
that a row cannot do without, in multiples of the arithmetic of ``body``.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from effcompress import data, load_recipe
from effcompress.estimate.flops import flops_per_token
from effcompress.measure.hooks import linears
from effcompress.model.cache import cache_root
from effcompress.model.load import load
from effcompress.record.log import Log, NoView
from effcompress.runner import prune as pruning
from effcompress.runner import recovery
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.start import repairable
from effcompress.runner.state import RunState
from effcompress.types import Due

RECIPES = Path(__file__).parents[1] / "recipes" / "baselines"
ROWS = {
    "train": ("", ()),
    "flap": ("flap", ()),
    "wanda": ("wanda_50", ()),
    "wanda_compat": ("wanda_50", ("sparsify.compat=true",)),
    "sparsegpt": ("sparsegpt_50", ()),
    "llm_pruner": ("llm_pruner", ()),
    "one_shot": ("one_shot", ()),
}
"""Row -> recipe, and what is set otherwise."""
PLAIN = ("body", "train")
FP64 = 2
"""Time of an operation in fp64, in operations in fp32: half as many numbers fit in a register."""


@dataclass
class Spent:
    """Seconds of the process's CPUs and of the clock."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Adds what is spent inside."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu += time.process_time() - cpu
            self.wall += time.perf_counter() - wall


Parts = dict[str, Spent]
"""Part of a row -> what it takes."""


class Bench:
    """The loaded model, the text, and what each row took in each round."""

    def __init__(self, sequences: int, length: int) -> None:
        self.sequences, self.length = sequences, length
        self.recipe = load_recipe(RECIPES / "flap.yaml").recipe
        self.model = load(self.recipe.model, seed=0)
        self.corpus = self._corpus(self.recipe)
        self.found: dict[str, list[Parts]] = defaultdict(list)

    def _corpus(self, recipe: Any) -> Any:
        spec = copy.copy(recipe.data)
        object.__setattr__(spec, "sequence_length", self.length)
        return data.prepare(
            spec,
            self.model.tokenizer,
            cache_root(),
            train_tokens=0,
            heldout_sequences=1,
            offline=False,
            seed=0,
            progress=lambda what, share: None,
            notice=lambda text: None,
        )

    def state(self, row: str) -> RunState:
        """A run of the row that has loaded its model."""
        name, sets = ROWS[row]
        every = [f"data.sequence_length={self.length}", *sets]
        sparse = name.endswith("_50")
        if sparse:
            every.append(f"sparsify.sequences={self.sequences}")
        else:
            every.append(f"prune.measure.sequences={self.sequences}")
        if name == "one_shot":
            every.append(f"prune.measure.refit_sequences={2 * self.sequences}")
        recipe = load_recipe(RECIPES / f"{name}.yaml", every).recipe
        model = self.model
        own = replace(model, module=copy.deepcopy(model.module))
        state = RunState(recipe, repairable(own, recipe.prune, lambda text: None), self.corpus)
        state.source = model.module  # else a refit would load it from the disk
        return state

    def ids(self) -> Tensor:
        """The calibration text."""
        return self.corpus.calibration(self.sequences, 0)

    def body(self) -> Parts:
        """A plain forward of the body."""
        module: Any = self.model.module
        spent = Spent()
        with torch.no_grad(), spent.measuring():
            for row_T in self.ids():
                module.model(input_ids=row_T[None], use_cache=False)
        return {"all": spent}

    def train(self) -> Parts:
        """A plain forward and backward of the next-token loss."""
        module, spent = self.model.module, Spent()
        with spent.measuring():
            for row_T in self.ids():
                module(input_ids=row_T[None], labels=row_T[None], use_cache=False).loss.backward()
        module.zero_grad(set_to_none=True)
        return {"all": spent}

    def row(self, name: str, log: Log) -> Parts:
        """A row from the loaded model to its end, and the parts of it."""
        state = self.state(name)
        whole, measure, refit = Spent(), Spent(), Spent()
        with (
            patch.object(pruning, "measured", _timed(pruning.measured, measure)),
            patch.object(pruning, "refit_event", _timed(recovery.refit_event, refit)),
            whole.measuring(),
        ):
            if state.recipe.sparsify is not None:
                sparsify_event(state, state.recipe.sparsify, log)
                return {"all": whole}
            assert state.recipe.prune is not None
            pruning.prune_event(state, state.recipe.prune, Due(params=state.target_params), log)
        rest = Spent(*(getattr(whole, k) - getattr(measure, k) - getattr(refit, k) for k in KEYS))
        parts = {"all": whole, "measure": measure, "choose and cut": rest}
        return parts | ({"refit": refit} if state.recipe.prune.refit else {})


KEYS = ("cpu", "wall")


def _timed(function: Callable[..., Any], spent: Spent) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        with spent.measuring():
            return function(*args, **named)

    return call


class Floors:
    """Arithmetic in fp32 operations: 2 for a multiplication with its addition."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.tokens = bench.sequences * bench.length
        state = bench.state("one_shot")
        axes, config = state.pruned.axes, state.pruned.config
        head = 2.0 * config["vocab_size"] * config["hidden_size"]
        self.all = flops_per_token(axes, config, {}, bench.length) / 3.0
        self.body = self.all - head
        self.layers = len(axes.depth.layers)
        self.shapes = _shapes(state.module, self.layers)

    def ratios(self, name: str) -> dict[str, float]:
        """Part of a row -> its least arithmetic over that of the body."""
        whole = self.body * self.tokens
        if name in ("flap", "wanda"):
            return {"all": 1.0}
        if name == "wanda_compat":
            return {"all": 2.0}
        train = 3.0 * self.all * self.tokens / whole
        if name in ("train", "llm_pruner"):
            return {"all": train}
        if name == "sparsegpt":
            passes = 1.0
            grams = sum(self.tokens * i * (i + 1) for i in self.read()) * self.layers / whole
            return {"all": passes + grams + self.solves() / whole, "Gram matrices": grams}
        return {"all": 1.0}

    def read(self) -> list[int]:
        """Widths of the distinct inputs of a layer's linear layers."""
        hidden, outer = self.shapes["q_proj"][1], self.shapes["down_proj"][1]
        return [hidden, self.shapes["o_proj"][1], hidden, outer]

    def solves(self) -> float:
        """SparseGPT: a Cholesky factor and the inverse of it per input, in fp64, and every weight
        updated by half of the columns.
        """
        factors = sum(2 * i**3 / 3 * FP64 for i in self.read())
        columns = sum(o * i * i for o, i in self.shapes.values())
        return self.layers * (factors + columns)


def _shapes(module: nn.Module, layers: int) -> dict[str, tuple[int, int]]:
    params = dict(module.named_parameters())
    names = [name for name in linears(module) if f"layers.{layers - 1}." in name]
    return {name.split(".")[-2]: tuple(params[name].shape) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="the functions that take longest")
    options = parser.parse_args()
    bench = Bench(options.sequences, options.length)
    profile = cProfile.Profile() if options.profile else None
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=NoView())
        bench.corpus.calibration(1, 0)
        for _ in range(options.rounds):
            for name in ("body", *options.rows):
                if name in PLAIN:
                    bench.found[name].append(getattr(bench, name)())
                    continue
                with profile or nullcontext():
                    bench.found[name].append(bench.row(name, log))
                took = {part: round(spent.cpu, 1) for part, spent in bench.found[name][-1].items()}
                print(f"  {name}: {took} CPU seconds", flush=True)
        log.close()
    print(f"{options.sequences} x {options.length} tokens, {torch.get_num_threads()} threads")
    floors = Floors(bench)
    for name, rounds in bench.found.items():
        for part in rounds[0]:
            cpu, wall = (
                statistics.median(
                    getattr(parts[part], key) / getattr(body["all"], key)
                    for parts, body in zip(rounds, bench.found["body"], strict=True)
                )
                for key in KEYS
            )
            seconds = statistics.median(parts[part].cpu for parts in rounds)
            floor = floors.ratios(name).get(part) if name != "body" else 1.0
            least = f", floor {floor:.2f}" if floor else ""
            print(f"{name}, {part}: {cpu:.2f} (CPU), {wall:.2f} (wall), {seconds:.1f} s{least}")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
