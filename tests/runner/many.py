"""A dozen toy recipes over one saved model, for the tests of comparisons."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.runner.toys import texts

LAYERS, HIDDEN, FFN, HEADS, KV, WIDE = 4, 24, 40, 4, 2, 6
LAYER = HIDDEN * (2 * HEADS * WIDE + 2 * KV * WIDE) + 3 * HIDDEN * FFN + 2 * HIDDEN
TOTAL = 258 * HIDDEN + LAYERS * LAYER + HIDDEN
TARGET = TOTAL - LAYER

COMMON = f"""\
model: {{folder: model, tokenizer: bytes}}
data:
  sequence_length: 32
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{params: {TARGET}}}
  space: [{{name: attention, scope: global}}, {{name: ffn, scope: global}}]
  measure: {{source: calibration, sequences: 4}}
  schedule: once
train:
  tokens: 512
  batch_size: 2
evaluate: {{sequences: 3, new_tokens: 2}}
export: {{form: exact}}
"""
RIDES = (
    "measure: {source: training}, "
    "schedule: {name: constant_rate, every: 1}, "
    "space: [{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
)
METHODS = {
    "random": "prune: {criterion: random}",
    "magnitude_l1": "prune: {criterion: magnitude}",
    "magnitude_l2": "prune: {criterion: {name: magnitude, norm: l2}}",
    "taylor": "prune: {criterion: taylor}",
    "taylor_second": "prune: {criterion: taylor_second}",
    "taylor_mixed": "prune: {criterion: taylor_mixed}",
    "mask_fisher": "prune: {criterion: mask_fisher}",
    "mask_taylor": "prune: {criterion: mask_taylor}",
    "layers": "prune: {criterion: taylor, space: [layer]}",
    "efficientllm_a": f"prune: {{criterion: taylor, {RIDES}}}",
    "efficientllm_b": (
        f"prune: {{criterion: mask_fisher, repair: [norm_gain, obs_update], {RIDES}}}"
    ),
    "broken": "plugins: [broken.py]\nprune: {criterion: broken}",
    "deadly": "plugins: [deadly.py]\nprune: {criterion: deadly}",
}
PLUGIN = '''\
import os

from effcompress import criterion


@criterion("{name}")
def {name}(weight):
    """{what}"""
    {does}
'''


def recipes(folder: Path, *names: str) -> list[Path]:
    """Write model, texts, plugins and the recipes of these names."""
    texts(folder)
    plugins = {
        "broken": 'raise RuntimeError("it breaks on purpose")',
        "deadly": "os.kill(os.getpid(), 9)",
    }
    for name, does in plugins.items():
        (folder / f"{name}.py").write_text(PLUGIN.format(name=name, what="Fails.", does=does))
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        head_dim=WIDE,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    (folder / "common.yaml").write_text(COMMON)
    paths = [folder / f"{name}.yaml" for name in names]
    for path in paths:
        text = f"include: common.yaml\nname: {path.stem}\n{METHODS[path.stem]}\n"
        path.write_text(text)
    return paths
