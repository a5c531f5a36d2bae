"""Several processes: what a step that prunes costs over a plain one, and what is sent.

    python benchmarks/scaling.py [--rounds 4] [--tokens 256]
    python benchmarks/scaling.py --computed

Two processes over gloo, one thread each, train SmolLM2-135M (fp32, AdamW, two sequences a step).
Blocks of four plain steps and of four steps of variant A with a cut at their end take turns in one
run; a ratio is that of a block over the plain one before it, and the median is printed. The same
follows with parameters shared out. Every byte that torch's collectives get is counted and compared
with ``estimate/communication.py``, for A and for B.
``--computed`` measures nothing: it prints the arithmetic of docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
BLOCK = 4
CUT = 3_000_000
"""Parameters that go in a cut: what the small recipe cuts every four steps."""
NVLINK, NETWORK, MEMORY = 450e9, 50e9, 3.35e12
"""Bytes per second and GPU: NVLink of an H100 one way, a 400 Gbit/s network card, HBM3; data
sheets.
"""
SHARD = "distributed.mode=shard"
KNOBS = (
    "distributed.gather=bf16",
    "distributed.accumulate=unsharded",
    "distributed.replicas={}",
    "distributed.replicas={} distributed.gather=bf16",
)
SOURCES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8},
}  # fmt: skip


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Bytes that this process hands to each kind of collective inside."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    found: Counter[str] = Counter()
    before = dist.all_reduce, dist.all_gather, c10d.broadcast, dist._broadcast_coalesced
    reduce, gather, broadcast, coalesced = before

    def all_reduce(tensor: Any, *args: Any, **how: Any) -> Any:
        found["all_reduce"] += tensor.nbytes
        return reduce(tensor, *args, **how)

    def all_gather(parts: Any, tensor: Any, *args: Any, **how: Any) -> Any:
        found["all_gather"] += tensor.nbytes
        return gather(parts, tensor, *args, **how)

    def object_part(tensor: Any, *args: Any, **how: Any) -> Any:
        found["decision"] += tensor.nbytes
        return broadcast(tensor, *args, **how)

    def states(group: Any, tensors: Any, *args: Any) -> Any:
        found["broadcast"] += sum(t.nbytes for t in tensors)
        return coalesced(group, tensors, *args)

    dist.all_reduce, dist.all_gather, c10d.broadcast = all_reduce, all_gather, object_part
    dist._broadcast_coalesced = states
    try:
        yield found
    finally:
        dist.all_reduce, dist.all_gather, c10d.broadcast, dist._broadcast_coalesced = before


def step(state: Any, *, prunes: bool) -> None:
    """One training step, as a run makes it."""
    from effcompress import train
    from effcompress.runner.measuring import listening, observe

    spec, prune = state.recipe.train, state.recipe.prune
    batch = state.stream.next(spec.batch_size)
    if prunes:
        with listening(state):
            train.backward(state.train_module, batch, spec, world=state.world)
        observe(state, prune)
    else:
        train.backward(state.train_module, batch, spec, world=state.world)
    train.update(state.module, state.optimizer, spec, 1e-5, state.world)
    state.world.any(False)  # whether somebody was asked to stop


def work(variant: str, rounds: int, tokens: int) -> None:
    """One of the processes; the main one prints."""
    import torch
    from step_overhead import prepare

    from effcompress.distributed.world import joined
    from effcompress.record.log import Log, NoView

    torch.set_num_threads(1)
    path = RECIPES / f"efficientllm_small_100m_{variant.replace('shared', 'a')}.yaml"
    sets = [f"data.sequence_length={tokens}", "train.batch_size=2", "train.precision=fp32"]
    sets += ["train.fused=false", "prune.commit_every=1000000", "device=cpu"]
    sets += [SHARD] * (variant == "shared")
    with joined() as world, TemporaryDirectory() as folder:
        log = Log(Path(folder), view=NoView())
        state = prepare(2 * tokens * (2 * BLOCK * rounds + 8), path, sets, world)
        if variant == "shared":  # tests/distributed/test_traffic.py counts its bytes
            step(state, prunes=True)
        else:
            bytes_of(state, log, path, sets)
        if variant != "b":
            seconds_of(state, log, rounds)
        log.close()


def bytes_of(state: Any, log: Any, path: Path, sets: list[str]) -> None:
    """Count a step, a cut and what comes of a commit, and hold them to the formulas."""
    from effcompress import load_recipe
    from effcompress.estimate import communication as traffic
    from effcompress.estimate.feasibility import sized_model
    from effcompress.runner.prune import commit_event, prune_event
    from effcompress.types import Due

    loaded = load_recipe(path, sets)
    found, world = sized_model(loaded), state.world
    assert found is not None
    buffers = sum(t.nbytes for t in state.module.buffers())
    step(state, prunes=True)  # joins the replicas
    with counted() as here:
        step(state, prunes=True)
    report("step", here, traffic.per_step(found, loaded.recipe, {}, world.size, found.start), world)
    with counted() as here:
        prune_event(state, state.recipe.prune, Due(params=state.params - CUT), log)
    alive = state.pruned.ledger.alive
    touched = [name for name, alive_G in alive.items() if not bool(alive_G.all())]
    groups = sum(int((~alive_G).sum()) for alive_G in alive.values())
    report("cut", here, traffic.per_cut(found, state.recipe.prune, {}, groups, touched), world)
    with counted() as here:
        commit_event(state, log)
    assert not here, here
    with counted() as here:
        _ = state.train_module  # joins them again
    here["broadcast"] -= buffers  # tables of the rotation, a few hundred bytes
    report("commit", here, traffic.per_commit(found, state.pruned.widths), world)


def report(what: str, here: Counter[str], said: list[Any], world: Any) -> None:
    """Measured beside predicted; the decision alone is an estimate."""
    guess: Counter[str] = Counter()
    for message in said:
        guess["decision" if message.what == "decision" else message.collective] += message.bytes
    for kind in sorted(here | guess):
        equal = "equal" if here[kind] == guess[kind] else "differs"
        if kind == "decision":
            equal = "an estimate"
        if world.main:
            sizes = f"{here[kind]:>13,} measured {guess[kind]:>13,} by formula"
            print(f"{what:7}{kind:11}{sizes}, {equal}")


def seconds_of(state: Any, log: Any, rounds: int) -> None:
    """Blocks take turns; tensors keep their length, else pruning would win by being smaller."""
    from effcompress.runner.prune import commit_event, prune_event
    from effcompress.types import Due

    plain, prunes, cuts = [], [], []
    for _ in range(rounds):
        for seconds, pruning in ((plain, False), (prunes, True)):
            started = time.perf_counter()
            for _ in range(BLOCK):
                step(state, prunes=pruning)
            if pruning:
                begun = time.perf_counter()
                due = Due(params=state.params - CUT)
                prune_event(state, state.recipe.prune, due, log)
                cuts.append(time.perf_counter() - begun)
            seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    commit_event(state, log)
    _ = state.train_module
    commit = time.perf_counter() - started
    if not state.world.main:
        return
    ratios = [b / a for a, b in zip(plain, prunes, strict=True)]
    print(f"plain step: {statistics.median(plain) / BLOCK:.2f} s, median of {rounds} blocks")
    print(f"step of A, cut included: {statistics.median(prunes) / BLOCK:.2f} s")
    print(f"a cut: {statistics.median(cuts):.2f} s; a commit and joining again: {commit:.2f} s")
    print(f"ratio: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"ratio of sums, with the commit: {(sum(prunes) + commit) / sum(plain):.3f}")


def launch(variant: str, rounds: int, tokens: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, "--worker", variant]
    command += ["--rounds", str(rounds), "--tokens", str(tokens)]
    print(f"variant {variant.upper()}, 2 processes", flush=True)
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def computed() -> None:
    """Tables of docs/scale.md, by the arithmetic of `effcompress plan`."""
    print(
        "| source | processes | states | B: Gram, replicated | dealt out | activations", end=" | "
    )
    print("data parallel | sharded | recomputed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in SOURCES:
        for processes in (8, 64, 512):
            print(memory_row(name, processes))
    for sets in ((), (SHARD,)):
        print(*sets)
        print("| source | processes | per step | B: per cut | commit | NVLink | network |")
        print("|---|---|---|---|---|---|---|")
        for name in SOURCES:
            for processes in (8, 64, 512):
                print(traffic_row(name, processes, *sets))
    print("| source, sharded, recomputed | processes | memory | NVLink | network | seconds |")
    print("|---|---|---|---|---|---|")
    for name, processes in (("13B", 64), ("70B", 512)):
        for knobs in ("", *KNOBS):
            print(knobs_row(name, processes, knobs.format(processes // 8)))


def sized(name: str, *more: str) -> tuple[Any, Any]:
    """A source of this size under the recipe of variant B, one sequence at a time."""
    from effcompress import load_recipe
    from effcompress.estimate.feasibility import sized_model

    sets = [f"model.shape.{key}={value}" for key, value in SOURCES[name].items()]
    sets += ["prune.target={keep: 50%}", "train.micro_batch_size=1", "train.fused=true", *more]
    recipe = load_recipe(RECIPES / "efficientllm_1b_b.yaml", sets)
    return sized_model(recipe), recipe.recipe


def memory_row(name: str, processes: int) -> str:
    from effcompress.estimate.activations import activations
    from effcompress.estimate.memory import memory

    found, recipe = sized(name)
    whole = memory(found, recipe, {}, processes)
    shards = memory(found, sized(name, SHARD)[1], {}, processes, processes)
    recomputed = sized(name, SHARD, "train.recompute=true")[1]
    again = memory(found, recomputed, {}, processes, processes)
    training = [max(h["backward"].total, h["update"].total) for h in (whole, shards, again)]
    length = recipe.data.sequence_length
    row = activations(found.axes, found.config, {}, length, bf16=True)
    grams = whole["update"].grams, shards["update"].grams
    cells = [4 * 4 * found.start, *grams, length * (row.layers + row.logits)]
    cells += training
    said = " | ".join(f"{cell / 1e9:,.0f}" for cell in cells)
    return f"| {name} | {processes} | {said} |"


def traffic_row(name: str, processes: int, *sets: str) -> str:
    from effcompress.estimate import communication as traffic

    found, recipe = sized(name, *sets)
    shards = processes if sets else 1
    step_ = traffic.per_step(found, recipe, {}, processes, found.start)
    cut = traffic.per_cut(found, recipe.prune, {}, 1, shards=shards, processes=processes)
    commit = traffic.per_commit(found, {}, shards=shards)
    sent = [sum(m.sent(processes) for m in said) for said in (step_, cut, commit)]
    cells = [f"{b / 1e9:,.1f}" for b in sent]
    for rate in (NVLINK, NETWORK):
        cells.append(", ".join(f"{b / rate:.2g}" for b in sent))
    if processes > 8:
        cells[3] = "-"  # further than NVLink reaches
    return f"| {name} | {processes} | {' | '.join(cells)} |"


def knobs_row(name: str, processes: int, knobs: str) -> str:
    """A source under keys of `distributed`, up to four sequences at a time; eight GPUs are a
    machine, within which a collective goes by NVLink.
    """
    from effcompress.estimate import communication as traffic
    from effcompress.estimate.memory import memory

    rows = max(1, min(4, 512 // processes))
    more = [SHARD, "train.recompute=true", f"train.micro_batch_size={rows}", *knobs.split()]
    found, recipe = sized(name, *more)
    shards = recipe.distributed.shards(processes)
    held = memory(found, recipe, {}, processes, shards)
    peak = max(held["backward"].total, held["update"].total)
    near, far = 0.0, 0.0
    for message in traffic.per_step(found, recipe, {}, processes, found.start):
        inside = message.among == shards <= 8
        near += message.sent(processes) * inside
        far += message.sent(processes) * (not inside)
    said = ", ".join(
        f"`{k.removeprefix('distributed.').replace('=', ': ')}`" for k in knobs.split()
    )
    sent = f"{near / 1e9:,.1f} | {far / 1e9:,.1f} | {near / NVLINK + far / NETWORK:.2g}"
    return f"| {name}: {said or '-'} | {processes} | {peak / 1e9:,.0f} | {sent} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--computed", action="store_true")
    parser.add_argument("--worker", choices=["a", "b", "shared"])
    options = parser.parse_args()
    if options.computed:
        computed()
    elif options.worker:
        work(options.worker, options.rounds, options.tokens)
    else:
        for variant in ("a", "b", "shared"):
            launch(variant, options.rounds, options.tokens)


if __name__ == "__main__":
    main()
