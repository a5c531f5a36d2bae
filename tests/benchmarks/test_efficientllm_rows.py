"""Every row of the experiments is a recipe that `check` takes, with the tokens that it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effcompress import load_recipe
from effcompress.estimate.check import check
from effcompress.estimate.schedule import total_tokens
from tests.benchmarks.conftest import ROOT

SOURCE = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152},
    **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "tie_word_embeddings": True,
}
NAMES = [
    *("Sheared-LLaMA", "Sheared-LLaMA, dynamic", "Sheared-LLaMA, A's widths", "CoFi"),
    *("A, dynamic", "B, dynamic", "dense, trained", "A", "B", "LLM-Pruner once"),
    *("LLM-Pruner once, dynamic", "LLM-Pruner once + KD and LM", "LLM-Pruner in the loop"),
    *("FLAP once", "Minitron once"),
    *("Minitron once + KD", "Minitron once + KD and LM", "Adapt-Accel", "SliceGPT once"),
    *("SliceGPT once + LoRA", "A's saliency, once", "A's saliency, once + KD and LM"),
    *("B's saliency and update, once", "one_shot once", "one_shot once, dynamic"),
    "one_shot once + KD and LM",
    *("magnitude once", "random once", "scaled by hand, once", "from scratch, A's shape"),
    "from scratch, scaled by hand",
]
"""Written out, because the scripts are importable only within a test."""
SIZES = {"100M": 100e6, "68M": 68e6}
RIVALS = {"FLAP once", "Minitron once", "SliceGPT once", "Sheared-LLaMA", "CoFi", "one_shot once"}
FORECAST = {
    "100M": {*RIVALS, "Adapt-Accel", "A", "LLM-Pruner once"},
    "68M": {*RIVALS, "Adapt-Accel"},
}
"""Rows whose size is held against what is asked; a forecast takes seconds."""


def found_by_a(folder: Path) -> None:
    """What A's run of this seed leaves: rows that take its shape read it."""
    folder.mkdir(parents=True)
    widths = {f"attention.{i}": 3 - i % 2 for i in range(30)}
    widths |= {f"ffn.{i}": 800 + i for i in range(30)}
    end = {"event": "end", "status": "success", "seconds": 1.0, "widths": widths}
    (folder / "metrics.jsonl").write_text(json.dumps(end) + "\n")
    (folder / "config.json").write_text(json.dumps(SOURCE))


def loaded(command: list[str]) -> Any:
    """The recipe of a command line, with all its ``--set``."""
    sets = [command[k + 1] for k, word in enumerate(command) if word == "--set"]
    return load_recipe(ROOT / command[4], sets)


def test_every_row_is_tested() -> None:
    from efficientllm_rows import OURS_ONCE, PUBLISHED, ROWS

    assert [*ROWS] == NAMES and {*PUBLISHED, *OURS_ONCE} <= {*ROWS}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_checks(name: str, size: str, corpus: Path, tmp_path: Path) -> None:
    from corpus import domains
    from efficientllm_rows import ROWS, Job
    from protocol import Experiment

    made = Experiment(ROWS, domains(corpus), tmp_path / "results.csv", tmp_path / "runs")
    found_by_a(made.folder_of(Job("A", size, 60_000, 0, "fp32")))
    job = Job(name, size, 60_000, 0, "fp32")
    recipe = loaded(made.command(job))
    assert total_tokens(recipe.recipe) == pytest.approx(60_416, abs=512)
    assert recipe.recipe.loop is not None and recipe.recipe.loop.precision == "fp32"
    other = loaded(made.command(job, 15_360)).recipe
    assert total_tokens(other) == pytest.approx(15_360, abs=512) and other.seed == 0
    if name in FORECAST[size]:
        found = check(recipe).data
        assert found["ends_at"] == pytest.approx(SIZES[size], rel=0.005)


def test_the_protocol_is_the_same_for_all(corpus: Path, tmp_path: Path) -> None:
    """Batches, weight decay and, but for scratch and LoRA, the learning rate."""
    from corpus import domains
    from efficientllm_rows import ROWS, Job
    from protocol import Experiment

    made = Experiment(ROWS, domains(corpus), tmp_path / "results.csv", tmp_path / "runs")
    found_by_a(made.folder_of(Job("A", "100M", 60_000, 0)))
    own: set[str] = set()
    for name in NAMES:
        loop = loaded(made.command(Job(name, "100M", 60_000, 0))).recipe.loop
        rate = loop.learning_rate
        assert (loop.batch_size, loop.weight_decay, loop.fused) == (2, 0.01, True), name
        if (rate.peak, rate.schedule, rate.warmup, rate.decay) != (2e-4, "trapezoidal", 0.05, 0.5):
            own.add(name)
    scratch = {"from scratch, A's shape", "from scratch, scaled by hand"}
    assert own == {*scratch, "SliceGPT once + LoRA"}
