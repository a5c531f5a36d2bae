"""The method as a whole, on a toy in which what cannot matter is known by construction."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effcompress import load_recipe, run
from effcompress.errors import RecipeError
from tests.runner.toys import events, texts

LAYERS, HIDDEN, FFN, HEADS, KV, WIDE = 2, 36, 48, 6, 3, 8
DEAD_FFN = {0: [5, 17, 30], 1: [0, 29, 47]}
DEAD_KV = {0: [1], 1: [2]}
DEAD_HIDDEN = [3, 4, 20, 31]

RECIPE = """\
name: toy
model: {{folder: model, tokenizer: bytes}}
data:
  sequence_length: 32
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{params: {target}}}
  space: [{{name: attention, scope: {scope}}}, {{name: ffn, scope: {scope}}}, hidden]
  criterion: {criterion}
{hessian}  measure: {measure}
  selector: {{name: least_salient, normalise: {normalise}}}
  schedule: {schedule}
  repair: {repair}
  commit_every: 4
train:
  stages: {{warmup: 256, pruning: 2560, continued: 128}}
  batch_size: 4
  learning_rate: {{peak: 1e-3}}
evaluate: {{sequences: 2, new_tokens: 4}}
export: {{form: exact}}
"""
DEFAULTS = {
    "scope": "lockstep",
    "criterion": "taylor",
    "hessian": "",
    "measure": "{average: decay}",
    "normalise": "per_parameter",
    "schedule": "{name: continuous}",
    "repair": "[norm_gain]",
}
B = {"repair": "[norm_gain, obs_update]"}
MODES: dict[str, dict[str, str]] = {
    "A": {},
    "B": B,
    "raw": {"normalise": "raw"},
    "per kind": {"normalise": "per_kind"},
    "per layer": {"scope": "per_layer"},
    "global": {"scope": "global", **B},
    "second order": {"criterion": "taylor_second"},
    "mixed": {"criterion": "taylor_mixed"},
    "adam": {"criterion": "taylor_second", "hessian": "  hessian: adam\n"},
    "mixed, adam": {"criterion": "taylor_mixed", "hessian": "  hessian: adam\n"},
    "mask fisher": {"criterion": "mask_fisher", **B},
    "mask taylor": {"criterion": "mask_taylor", "scope": "global"},
    "magnitude": {"criterion": "magnitude"},
    "window": {"measure": "{average: window, window: 3}"},
    "between cuts": {"measure": "{average: between_cuts}", "criterion": "mask_fisher"},
    "calibration": {"measure": "{source: calibration, sequences: 4}", **B},
    "calibration, masks": {
        "measure": "{source: calibration, sequences: 4}",
        "criterion": "mask_fisher",
    },
    "once": {"schedule": "once"},
    "once, B": {"schedule": "once", **B},
    "constant rate": {"schedule": "{name: constant_rate, every: 2}", **B},
    "cubic": {"schedule": "cubic"},
    "cost aware": {"schedule": "{name: cost_aware, attention: 2, hidden: 1}"},
}


def model(folder: Path, *, loud: bool) -> int:
    """Save a model with dead units; returns its parameters without them.

    Of a dead FFN channel gate and up are zero, of dead heads values and what is read of them: no
    gradient ever reaches a weight of theirs. If ``loud``, the rest of them (down; queries and keys)
    is larger than of any unit that lives, so that whoever looks at weights alone takes others.
    """
    size = 0.6 if loud else 0.0
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
    made = LlamaForCausalLM(config)
    each = HEADS // KV * WIDE
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.15)
        for i, layer in enumerate(made.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for j in DEAD_FFN[i]:
                mlp.gate_proj.weight[j], mlp.up_proj.weight[j] = 0.0, 0.0
                mlp.down_proj.weight[:, j].normal_(0, 3 * size)
            for h in DEAD_KV[i]:
                attention.q_proj.weight[h * each : (h + 1) * each].normal_(0, size)
                attention.k_proj.weight[h * WIDE : (h + 1) * WIDE].normal_(0, size)
                attention.v_proj.weight[h * WIDE : (h + 1) * WIDE] = 0.0
                attention.o_proj.weight[:, h * each : (h + 1) * each] = 0.0
            for linear in (attention.o_proj, mlp.down_proj):
                linear.weight[DEAD_HIDDEN] = 0.0
            reading = (attention.q_proj, attention.k_proj, attention.v_proj)
            for linear in (*reading, mlp.gate_proj, mlp.up_proj):
                linear.weight[:, DEAD_HIDDEN] = 0.0
        made.model.embed_tokens.weight[:, DEAD_HIDDEN] = 0.0
    made.save_pretrained(folder / "model")
    hidden = HIDDEN - len(DEAD_HIDDEN)
    ffn, kv = FFN - len(DEAD_FFN[0]), KV - len(DEAD_KV[0])
    layer = hidden * (3 * ffn + kv * (2 * each + 2 * WIDE) + 2)
    return 258 * hidden + LAYERS * layer + hidden


def written(folder: Path, **changes: str) -> Path:
    texts(folder)
    target = model(folder, loud=changes.get("criterion") != "magnitude")
    path = folder / "toy.yaml"
    path.write_text(RECIPE.format(**{**DEFAULTS, **changes, "target": target}))
    return path


@pytest.mark.parametrize("mode", MODES)
def test_exactly_what_cannot_matter_goes(tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    run(load_recipe(written(tmp_path, **MODES[mode])), output=out)
    gone: dict[str, list[int]] = {}
    for line in (out / "plans.jsonl").read_text().splitlines():
        for name, units in json.loads(line)["plan"].items():
            gone[name] = sorted([*gone.get(name, []), *units])
    want = {f"ffn.{i}": units for i, units in DEAD_FFN.items()}
    want |= {f"attention.{i}": units for i, units in DEAD_KV.items()}
    assert gone == {**want, "hidden": DEAD_HIDDEN}
    # Their removal, repairs included, is invisible: the loss goes on as if nothing had happened.
    losses = [e["loss"] for e in events(out, "step")]
    assert max(b - a for a, b in itertools.pairwise(losses)) < 0.5


def test_a_hessian_of_an_optimizer_that_is_not_read(tmp_path: Path) -> None:
    calibration = {"measure": "{source: calibration}"}
    path = written(tmp_path, **{**MODES["adam"], **calibration})
    with pytest.raises(RecipeError, match="reads the optimizer"):
        load_recipe(path)


def test_b_is_the_same_twice_and_resumes(tmp_path: Path) -> None:
    path = written(tmp_path, criterion="mask_fisher", **B)
    half = load_recipe(path, ["prune.target.params=20000", "save.every=5"])
    run(half, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        from effcompress.runner import run as story

        real, count = story.train_step, itertools.count()

        def step(*args: object, **more: object) -> bool:
            if next(count) == 12:
                raise KeyboardInterrupt
            return real(*args, **more)

        patch.setattr(story, "train_step", step)
        run(half, output=tmp_path / "part")
    run(half, output=tmp_path / "part", resume=True)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "part"))
    assert one == two
    assert (tmp_path / "whole/plans.jsonl").read_text() == (
        tmp_path / "part/plans.jsonl"
    ).read_text()


def test_memory_is_flat(tmp_path: Path) -> None:
    """350 steps of B: what lives after each hundred is not one tensor more, nor a byte."""
    from effcompress.runner import run as story

    path = written(tmp_path, criterion="mask_fisher", measure="{average: window, window: 5}", **B)
    sets = [
        "prune.target.params=20000",
        "train.stages.pruning=45k",
        "prune.schedule={name: constant_rate, every: 10}",
    ]
    alive: list[tuple[int, int]] = []
    real = story.train_step

    def step(state, *args: object, **more: object) -> bool:
        learned = real(state, *args, **more)
        if state.step % 100 == 50:
            gc.collect()
            tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
            alive.append((len(tensors), sum(t.numel() * t.element_size() for t in tensors)))
        return learned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "train_step", step)
        run(load_recipe(path, sets), output=tmp_path / "out")
    assert len(alive) >= 3
    assert alive[-1][0] <= alive[1][0] and alive[-1][1] <= alive[1][1], alive
