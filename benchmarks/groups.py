"""Finding every mini-group of a 1.7B Llama, beside torch-pruning's graph and groups.

    python benchmarks/groups.py

Ours runs on the meta device (no weights). torch-pruning traces a forward pass, so it gets real
bf16 weights on the CPU and a process with a timeout; its time excludes building the model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY, Bound

CONFIG = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": True,
}
REPEATS = 20
TIMEOUT = 300


def build(device: str, dtype: torch.dtype) -> torch.nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**CONFIG), dtype=dtype, attn_implementation="sdpa"
        )


def ours() -> tuple[float, int]:
    """Median seconds, and the number of mini-groups found."""
    model = build("meta", torch.float32)
    space = [Bound(REGISTRY.get("space", kind)) for kind in ("attention", "ffn", "hidden")]
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        axes = groups.axes_of(model, family_of(CONFIG), CONFIG)
        sets = groups.find(axes, space)
        members = sum(len(s.members) for s in sets)  # index tensors are made when asked for
        assert members
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), sum(s.size for s in sets)


def theirs() -> None:
    """Print seconds for torch-pruning's graph and for its groups, as JSON."""
    import torch_pruning as tp

    model = build("cpu", torch.bfloat16)
    example = {"input_ids": torch.zeros(1, 8, dtype=torch.long), "use_cache": False}
    started = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=example, output_transform=lambda out: out.logits
    )
    built = time.perf_counter() - started
    started = time.perf_counter()
    count = len(list(graph.get_all_groups()))
    seconds = time.perf_counter() - started
    print(json.dumps({"graph": built, "groups": seconds, "count": count}))


def main() -> None:
    if "--theirs" in sys.argv:
        theirs()
        return
    seconds, count = ours()
    print(f"effcompress: {seconds:.4f} s for {count:,} mini-groups (median of {REPEATS})")
    command = [sys.executable, __file__, "--theirs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"torch-pruning: {type(error).__name__}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    total = found["graph"] + found["groups"]
    print(f"torch-pruning: {found['graph']:.2f} s graph + {found['groups']:.2f} s groups")
    print(f"ratio: {seconds / total:.4f}")


if __name__ == "__main__":
    main()
