"""What the passes of one-shot methods cost, as ratios of plain passes over the same text.

    python benchmarks/passes.py [--rows flap wanda ...] [--sequences 32] [--length 512] [--rounds 1]
    python benchmarks/passes.py --rows one_shot --profile
    python benchmarks/passes.py --rows flap llm_pruner --precision bf16

One process, SmolLM2-135M. In every round a plain forward of the body (``body``: without the output
matrix) and a plain forward and backward with the loss (``train``), both in fp32, take turns with
each row: a recipe under ``recipes/baselines`` from the loaded model to the cut or sparse one, whose
passes over text compute in ``--precision``. Figures are CPU seconds of the process, which other
work on the machine disturbs least, as ratios of ``body`` of the same round; the median over rounds
is printed, with the wall time beside. *Floor*: the arithmetic that a row cannot do without, in
multiples of the arithmetic of ``body``.
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
from torch import Tensor

from effcompress import data, load_recipe
from effcompress.estimate.flops import flops_per_token
from effcompress.model.cache import cache_root
from effcompress.model.load import load
from effcompress.record.log import Log, NoView
from effcompress.runner import prune as pruning
from effcompress.runner import recovery
from effcompress.runner.source_model import repairable
from effcompress.runner.sparsify import sparsify_event
from effcompress.runner.state import RunState
from effcompress.types import Due

RECIPES = Path(__file__).parents[1] / "recipes" / "baselines"
ROWS = {
    "train": ("", ()),
    "flap": ("flap", ()),
    "wanda": ("wanda_50", ("sparsify.compat=false",)),
    "wanda_compat": ("wanda_50", ()),
    "sparsegpt": ("sparsegpt_50", ()),
    "llm_pruner": ("llm_pruner", ()),
    "one_shot": ("one_shot", ()),
}
"""Row -> recipe, and what is set otherwise."""
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
    """The loaded model and the text."""

    def __init__(self, sequences: int, length: int, precision: str) -> None:
        self.sequences, self.length, self.precision = sequences, length, precision
        self.recipe = load_recipe(RECIPES / "flap.yaml").recipe
        self.model = load(self.recipe.model, seed=0)
        self.corpus = self._corpus(self.recipe)

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
        every = [f"data.sequence_length={self.length}", "device=cpu", *sets]
        sparse = name.endswith("_50")
        section = "sparsify" if sparse else "prune.measure"
        every.append(f"{section}.sequences={self.sequences}")
        every.append(f"{section}.precision={self.precision}")
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

    def row(self, state: RunState, log: Log) -> Parts:
        """A row from the loaded model to its end, and the parts of it."""
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
        self.length, self.tokens = bench.length, bench.sequences * bench.length
        self.state = bench.state("llm_pruner")
        self.forward = self._forward(self.state)
        config = self.state.pruned.config
        self.head = 2.0 * config["vocab_size"] * config["hidden_size"]
        self.body = (self.forward - self.head) * self.tokens

    def parts(self, name: str, state: RunState) -> dict[str, float]:
        """Part of a row -> its least arithmetic, over that of the body. ``state``: as it ended."""
        train = 3.0 * self.forward * self.tokens / self.body
        if name == "sparsegpt":
            found = {"grams": self._grams() / self.body, "solves": self._solves() / self.body}
            return {"all": 2.0 + sum(found.values()), **found}
        if name == "one_shot":
            return {
                "measure": train,
                "refit": sum(self._refit(state).values()),
                **self._refit(state),
            }
        once = {"flap": 1.0, "wanda": 1.0, "wanda_compat": 2.0}
        return {"all": once.get(name, train)}

    def _forward(self, state: RunState) -> float:
        axes, widths = state.pruned.parent, state.pruned.ledger.widths()
        return flops_per_token(axes, state.pruned.config, widths, self.length) / 3.0

    def _shapes(self, state: RunState, *names: str) -> list[tuple[int, int]]:
        params = state.pruned.parameters()
        ends = tuple(f"{name}.weight" for name in names)
        found = (p.shape for n, p in params.items() if ".layers." in n and n.endswith(ends))
        return [(o, i) for o, i in found]

    def _grams(self) -> float:
        """One per distinct input: half of a product, since it is symmetric."""
        inputs = self._shapes(self.state, "q_proj", "o_proj", "gate_proj", "down_proj")
        return sum(self.tokens * i * (i + 1.0) for _, i in inputs)

    def _solves(self) -> float:
        """SparseGPT: the Cholesky factor of every distinct input and the factor's inverse, in fp64;
        every weight is updated by half of the columns.
        """
        inputs = self._shapes(self.state, "q_proj", "o_proj", "gate_proj", "down_proj")
        factors = sum(FP64 * 2 * i**3 / 3 for _, i in inputs)
        return factors + sum(float(o * i * i) for o, i in self._shapes(self.state, "proj"))

    def _refit(self, state: RunState) -> dict[str, float]:
        """Of twice as much text: both models' forwards; Gram and cross moments; per projection a
        Cholesky factor and two triangular solves for each of six dampings and the last fit, and the
        error on held-out text of each of the six and of the weight as it was, in fp64.
        """
        tokens, fits = 2.0 * self.tokens, self._shapes(state, "o_proj", "down_proj")
        forwards = 2.0 + tokens * (self._forward(state) - self.head) / self.body
        moments = sum(tokens * (i * (i + 1) + 2 * o * i) for o, i in fits)
        solves = sum(FP64 * 7 * (i**3 / 3 + 2 * o * i * i + 2 * o * i * i) for o, i in fits)
        found = {"moments": moments, "solves": solves}
        return {"forwards": forwards} | {k: v / self.body for k, v in found.items()}


def _line(name: str, rounds: list[Parts], body: list[Parts], least: dict[str, float]) -> str:
    """Ratios of the parts of a row to the body of the same round: CPU time, wall time."""
    texts = []
    for part in rounds[0]:
        cpu, wall = (
            statistics.median(
                getattr(one[part], key) / getattr(plain["all"], key)
                for one, plain in zip(rounds, body, strict=True)
            )
            for key in KEYS
        )
        seconds = statistics.median(one[part].cpu for one in rounds)
        texts.append(f"{part} {cpu:.2f} CPU, {wall:.2f} wall, {seconds:.1f} s")
    floor = ", ".join(f"{part} {value:.2f}" for part, value in least.items())
    return f"{name}: {'; '.join(texts)}" + (f". Floor: {floor}" if floor else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32")
    parser.add_argument("--profile", action="store_true", help="the functions that take longest")
    options = parser.parse_args()
    bench = Bench(options.sequences, options.length, options.precision)
    floors = Floors(bench)
    weights = 4e-9 * (bench.model.module.num_parameters() - floors.head / 2)
    print(f"{options.sequences} x {options.length} tokens, {torch.get_num_threads()} threads")
    print(
        f"body: {floors.body / 1e12:.3f} TFLOP, {weights:.2f} GB of weights, read once per sequence"
    )
    profile = cProfile.Profile() if options.profile else None
    found: dict[str, list[Parts]] = defaultdict(list)
    least: dict[str, dict[str, float]] = {"body": {"all": 1.0}}
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=NoView())
        for number in range(options.rounds):
            found["body"].append(bench.body())
            for name in options.rows:
                if name == "train":
                    found[name].append(bench.train())
                    least[name] = floors.parts(name, floors.state)
                else:
                    state = bench.state(name)
                    with profile or nullcontext():
                        found[name].append(bench.row(state, log))
                    least[name] = floors.parts(name, state)
                last = _line(name, found[name][-1:], found["body"][-1:], {})
                print(f"round {number + 1}: {last}", flush=True)
        log.close()
    for name, rounds in found.items():
        print(_line(name, rounds, found["body"], least[name]))
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
