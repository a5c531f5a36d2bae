"""Toy recipes: a random model over bytes and a few hundred lines of text, no network."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

RECIPE = """\
name: toy
model:
  random: true
  shape:
    {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
     num_attention_heads: 4, num_key_value_heads: {kv}, head_dim: 8, tie_word_embeddings: {tied},
     max_position_embeddings: 128}}
data:
  sequence_length: 32
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%, weight: 2}}
prune:
  target: {{keep: 70%}}
  space: [{{name: attention, scope: {scope}}}, {{name: ffn, scope: {scope}}}, hidden]
  criterion: {criterion}
  selector: {selector}
  schedule: {schedule}
  measure: {measure}
  commit_every: 5
train:
  tokens: {tokens}
  batch_size: 4
  learning_rate: {{peak: 1e-3}}
evaluate: {{sequences: 3, new_tokens: 8}}
save: {{every: 4, keep: 3, keep_after: 3}}
"""

DEFAULTS = {
    "kv": 2,
    "tied": "true",
    "scope": "lockstep",
    "criterion": "taylor",
    "selector": "in_turns",
    "schedule": "{name: continuous, every: 1, start: 256, groups: 1}",
    "measure": "{source: training, decay: 0.9}",
    "tokens": 2560,
}


def texts(folder: Path) -> None:
    """Two domains of synthetic text."""
    rng = random.Random(0)
    letters = [" ".join(rng.choices(["alpha", "beta", "gamma", "delta"], k=40)) for _ in range(60)]
    numbers = [" ".join(str(rng.randrange(100)) for _ in range(60)) for _ in range(60)]
    for name, documents in (("letters", letters), ("numbers", numbers)):
        lines = [json.dumps({"text": text}) for text in documents]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def recipe(folder: Path, extra: str = "", **changes: object) -> Path:
    """Write the toy recipe and its texts into ``folder``."""
    texts(folder)
    path = folder / "toy.yaml"
    path.write_text(RECIPE.format(**{**DEFAULTS, **changes}) + extra)
    return path


def repeatable(lines: Iterable[dict]) -> list[dict]:
    """Events without what a clock or the system measured, or was there already."""
    measured = {"seconds", "tokens_per_second", "started", "memory_bytes", "known"}
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def events(folder: Path, kind: str) -> list[dict]:
    """Events of one kind from a run's record."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def plans(folder: Path) -> list[dict]:
    """What was cut and when, without saliency, which rounding changes."""
    lines = (folder / "plans.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k in ("step", "plan")} for x in lines]


def weight_files(folder: Path) -> list[str]:
    """Names of the files of an exported model's weights: one for each process that wrote some."""
    found = sorted(file.name for file in folder.glob("model*.safetensors*"))
    assert found
    return found
