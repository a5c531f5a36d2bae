"""Removing one FFN channel per layer, one KV group per layer, one hidden channel: time and memory.

    python benchmarks/surgery.py [--model 135m|1.7b]

Ours moves AdamW's state too; torch-pruning does the same cut on the bare model. A removal is a mask
now and a commit (shorter tensors) every so many removals; both are timed, and the sum as it is paid
on average. The floor of a removal is what goes, written once; that of a commit is what is kept,
read and written once; both over the bandwidth of a plain copy, measured here. Every case runs in a
fresh process on random weights, after two training steps, in one thread, and times are those of the
processor, so that other work on the machine counts little. *Test*: the two forward passes with
which a run proves that a commit changed nothing. *First*: the first commit of the process, whose
tensors partly lie in memory that is new to it; all other figures are of the cycles behind it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.estimate.memory import TESTED
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.selftest import same_function

MODELS: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
# In fp32 the larger one does not fit into 24 GB together with its moments.
DTYPES = {"135m": torch.float32, "1.7b": torch.bfloat16}
KINDS = ("ffn", "attention", "hidden")
EVERY = 64
"""Removals between two commits, as in recipes/efficientllm_469m.yaml; of KV groups, fewer."""
CYCLES = 4
"""Rounds of that many removals and a commit; the first is reported apart."""
TIMEOUT = 900


def build(name: str) -> tuple[dict[str, Any], Any]:
    config = {"model_type": "llama", "vocab_size": 49152, "head_dim": 64, **MODELS[name]}
    config["tie_word_embeddings"] = True
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=DTYPES[name], attn_implementation="eager"
    )
    return config, model


def peak() -> float:
    """Most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def bandwidth() -> float:
    """Bytes per second of a copy, read and written bytes both counted."""
    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        target.copy_(source)
        seconds.append(time.process_time() - started)
    return 2 * source.numel() * 4 / min(seconds)


def ours(name: str, kind: str) -> dict[str, float]:
    config, model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    # Steps as before the first commit of a run: it cuts into memory that gradients have left. New
    # memory is filled with zeros by the system, page after page, which takes five times as long.
    ids_BT = torch.arange(256).view(1, 256)
    for _ in range(2):
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    pruned = PrunedModel(model, config, [Bound(REGISTRY.get("space", kind), {"minimum": 1})])
    size = next(p.element_size() for p in model.parameters())
    spare = min(s.size for s in pruned.sets) - 1
    every = max(1, min(EVERY, spare // CYCLES))
    before, held, cycles = pruned.params, peak(), list[Cycle]()
    for number in range(min(CYCLES, spare)):
        cycles.append(_cycle(pruned, optimizer, range(number * every, (number + 1) * every)))
    extra, rate, (first, *later) = peak() - held, bandwidth(), cycles
    masks = [seconds for cycle in later for seconds in cycle.masks]
    commit, test, touched = (
        statistics.median(getattr(c, k) for c in later) for k in ("commit", "test", "touched")
    )
    return {
        "mask": statistics.median(masks),
        "commit": commit,
        "first": first.commit,
        "test": test,
        "every": every,
        "average": statistics.mean(masks) + (commit + test) / every,
        "floor_mask": 3 * size * (before - pruned.params) / (len(cycles) * every) / rate,
        "floor_commit": 2 * 3 * size * touched / rate,
        "extra_bytes": extra,
        "bandwidth": rate,
    }


@dataclass(frozen=True)
class Cycle:
    """Seconds of removals, and of the commit behind them and its test; ``touched``: elements of the
    parameters that it made shorter.
    """

    masks: list[float]
    commit: float
    test: float
    touched: int


def _cycle(pruned: PrunedModel, optimizer: torch.optim.Optimizer, units: Iterable[int]) -> Cycle:
    masks: list[float] = []
    for unit in units:
        started = time.process_time()
        pruned.mask({s.name: [unit] for s in pruned.sets}, optimizer=optimizer)
        masks.append(time.process_time() - started)
    begun = time.process_time()
    with same_function(pruned.module, torch.arange(TESTED).view(1, -1), optimizer):
        started = time.process_time()
        pruned.commit(optimizer)
        commit = time.process_time() - started
    return Cycle(masks, commit, time.process_time() - begun - commit, _touched(pruned))


def _touched(pruned: PrunedModel) -> int:
    """Elements of the parameters that a commit makes shorter."""
    names = {side.param for s in pruned.sets for side in s.sides}
    return sum(p.numel() for name, p in pruned.parameters().items() if name in names)


def theirs(name: str, kind: str) -> dict[str, float]:
    import torch_pruning as tp

    config, model = build(name)
    example = {"input_ids": torch.zeros(1, 8, dtype=torch.long), "use_cache": False}
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=example, output_transform=lambda out: out.logits
    )
    layers = model.model.layers
    heads = 64 * config["num_attention_heads"] // config["num_key_value_heads"]
    seconds = []
    held = peak()
    for _ in range(2):
        started = time.process_time()
        if kind == "hidden":
            how = tp.prune_embedding_out_channels
            graph.get_pruning_group(model.model.embed_tokens, how, [0]).prune()
        for layer in layers if kind != "hidden" else ():
            if kind == "ffn":
                root, how, at = layer.mlp.gate_proj, tp.prune_linear_out_channels, [0]
            else:
                root, how = layer.self_attn.o_proj, tp.prune_linear_in_channels
                at = list(range(heads))
            graph.get_pruning_group(root, how, at).prune()
        seconds.append(time.process_time() - started)
    return {"seconds": min(seconds), "extra_bytes": peak() - held}


def fresh(*words: str) -> dict[str, float] | str:
    """One case in a process of its own; a word when it fails."""
    command = [sys.executable, __file__, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        return type(error).__name__
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--case", nargs=2, metavar=("WHO", "KIND"))
    chosen = parser.parse_args()
    if chosen.case:
        who, kind = chosen.case
        torch.set_num_threads(1)
        print(json.dumps({"ours": ours, "theirs": theirs}[who](chosen.model, kind)))
        return
    for name in [chosen.model] if chosen.model else MODELS:
        print(f"{name}, {str(DTYPES[name]).removeprefix('torch.')}, milliseconds")
        print("kind        mask  floor  first  commit  floor  test  every", end="  ")
        print("average  torch-pruning  ratio  extra")
        for kind in KINDS:
            us, them = (fresh("--model", name, "--case", who, kind) for who in ("ours", "theirs"))
            print(_row(kind, us, them), flush=True)


def _row(kind: str, us: dict[str, float] | str, them: dict[str, float] | str) -> str:
    if isinstance(us, str):
        return f"{kind:10} {us}"
    ms = {key: 1e3 * value for key, value in us.items()}
    row = (
        f"{kind:10}{ms['mask']:6.1f} {ms['floor_mask']:6.2f} {ms['first']:6.0f} "
        f"{ms['commit']:7.0f} {ms['floor_commit']:6.0f} {ms['test']:5.0f} {us['every']:6.0f} "
        f"{ms['average']:8.1f}"
    )
    if isinstance(them, str):
        return f"{row}  {them:>13}"
    ratio = them["seconds"] / us["average"]
    memory = f"{us['extra_bytes'] / 1e9:.2f}/{them['extra_bytes'] / 1e9:.2f} GB"
    return f"{row} {1e3 * them['seconds']:14.0f} {ratio:5.0f}x  {memory}"


if __name__ == "__main__":
    main()
