"""What `plan` says of memory and messages, against tensors and against arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.activations import activations, copied
from effcompress.estimate.communication import Message, per_commit, per_cut, per_step
from effcompress.estimate.feasibility import SizedModel, sized_model
from effcompress.estimate.forecast import Launch, plan
from effcompress.estimate.memory import Held, grams_of, index_bytes, memory, trained
from effcompress.measure.grams import Grams, readers
from effcompress.network.axis_map import resolve_model
from effcompress.network.pruned_model import PrunedModel
from effcompress.precision import autocast
from effcompress.train.loss import next_token
from tests.runner.toys import recipe

LENGTH, ROWS, VOCAB = 64, 2, 1001
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
PLAIN = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
STILL = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen3": SMALL,
    "olmo2": SMALL,
    "gemma2": SMALL,
    "gemma3_text": SMALL,
    "phi3": {**SMALL, "hidden_size": 96},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_inner": 112,
             "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0, **STILL},
    "gpt_neox": PLAIN,
    "opt": {**PLAIN, "ffn_dim": 112, "dropout": 0.0, "word_embed_proj_dim": 48},
}  # fmt: skip


def kept(model_type: str, precision: str, **changes: Any) -> tuple[Any, int, int, int]:
    """Axes of a small model, and the bytes that autograd keeps of a forward pass: of the layers, of
    weights cast to the compute dtype, of logits.
    """
    fields = {**FAMILIES[model_type], **changes}
    if model_type == "phi3":
        fields.pop("head_dim")
    config = AutoConfig.for_model(model_type, **fields)
    module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    shapes = {tuple(sorted(p.shape)) for p in module.parameters() if p.dim() > 1}
    seen: dict[str, dict[int, int]] = {"layers": {}, "copies": {}, "logits": {}}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        alive.append(t)  # so that no address is used twice
        copy = t.dtype == torch.bfloat16 and tuple(sorted(t.shape)) in shapes
        kind = "copies" if copy else "logits" if t.dim() and t.shape[-1] == VOCAB else "layers"
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[kind][storage.data_ptr()] = storage.nbytes()
        return t

    ids_BT = torch.randint(0, VOCAB, (ROWS, LENGTH))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with hooks, autocast(torch.device("cpu"), precision):
        next_token(module, ids_BT)
    found = resolve_model(json.loads(module.config.to_json_string(use_diff=False)))
    return found, *(sum(seen[kind].values()) for kind in ("layers", "copies", "logits"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_keeps(family: str, precision: str) -> None:
    found, layers, copies, _ = kept(family, precision)
    bf16 = precision == "bf16"
    said = activations(found.axes, found.config, {}, LENGTH, bf16=bf16)
    assert said.layers * ROWS * LENGTH == pytest.approx(layers, rel=0.10)
    assert copies == (2 * copied(found.axes, {}) if bf16 else 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"num_hidden_layers": 5},
        {"intermediate_size": 400},
        {"hidden_size": 192},
    ],
    ids=str,
)
def test_activations_follow_the_shape(changes: dict[str, Any]) -> None:
    found, layers, _, logits = kept("llama", "fp32", **changes)
    said = activations(found.axes, found.config, {}, LENGTH, bf16=False)
    assert said.layers * ROWS * LENGTH == pytest.approx(layers, rel=0.04)
    # Of the three numbers at the peak, the log-softmax is what is kept; the last token has none.
    assert said.logits / 3 * ROWS * (LENGTH - 1) == logits


def test_activations_by_hand() -> None:
    axes = resolve_model({**SMALL, "model_type": "llama", "tie_word_embeddings": True})
    one = 4 * (2 * 2 * 48 + 2 * 48 + 2 * 96 + 2 * 32 + 4 * 112)
    said = activations(axes.axes, axes.config, {}, LENGTH, bf16=False)
    assert said.layers == 2 * one + 4 * (2 * 48 + 48)
    assert said.logits == 12 * VOCAB
    half = 4 * 2 * 2 * 48 + 2 * (5 * 48 + 2 * 96 + 2 * 32 + 4 * 112)
    said = activations(axes.axes, axes.config, {}, LENGTH, bf16=True)
    assert said.layers == 2 * half + 4 * 2 * 48 + 2 * 48
    gone = activations(axes.axes, axes.config, {"layer.1": 0}, LENGTH, bf16=True)
    assert gone.layers == half + 4 * 2 * 48 + 2 * 48


def of(tmp_path: Path, *sets: str, processes: int = 1) -> tuple[SizedModel, dict[str, Held], int]:
    """A toy's price, its memory by phase, and four bytes for each of its parameters."""
    loaded = load_recipe(recipe(tmp_path), sets)
    found = sized_model(loaded)
    assert found is not None
    return found, memory(found, loaded.recipe, {}, processes), 4 * found.start


def test_phases_by_hand(tmp_path: Path) -> None:
    found, held, weights = of(tmp_path)
    embedding = 4 * 258 * 32
    assert held["loading"] == Held(weights=weights)  # random: there is no file
    update = held["update"]
    assert (update.weights, update.moments) == (weights, 2 * weights)
    assert update.gradients == update.working == weights and update.buckets == 0
    said = activations(found.axes, found.config, {}, 32, bf16=False)
    backward = held["backward"]
    assert backward.gradients == 0 and backward.moments == 2 * weights
    assert backward.activations == 4 * 32 * said.layers
    assert backward.logits == 4 * 32 * 12 * 258
    assert held["evaluation"].logits == 2 * 32 * 12 * 258
    assert held["cut"].working == embedding > 4 * 3 * 8 * 258, "more than the self-test's logits"
    assert held["checkpoint"].working == 3 * weights + update.saliency


def test_what_options_change(tmp_path: Path) -> None:
    _, plain, weights = of(tmp_path)
    _, fused, _ = of(tmp_path, "train.fused=true")
    assert fused["update"].total == plain["update"].total - weights
    _, small, _ = of(tmp_path, "train.micro_batch_size=1")
    assert small["backward"].activations == plain["backward"].activations / 4
    assert small["backward"].gradients == weights  # of earlier micro-batches
    _, two, _ = of(tmp_path, processes=2)
    assert two["backward"].activations == plain["backward"].activations / 2
    assert two["update"].buckets == weights
    wide = "model.shape.hidden_size=512"
    _, tiny, weights = of(tmp_path, wide, "train.batch_size=1", "data.sequence_length=8")
    # So few tokens that the peak is at the end: all gradients, and a tied embedding's twice more.
    assert tiny["backward"].gradients == weights
    assert tiny["backward"].working == 2 * 4 * 258 * 512
    _, half, _ = of(tmp_path, "train.precision=bf16")
    assert 0 < half["backward"].copies < weights / 2


def test_masks_on_the_stream_keep_what_blocks_add_to_it(tmp_path: Path) -> None:
    masks = "prune.criterion=mask_fisher"
    _, plain, _ = of(tmp_path, masks, "prune.space=[ffn]")
    _, stream, _ = of(tmp_path, masks, "prune.space=[ffn, hidden]")
    more = stream["backward"].activations - plain["backward"].activations
    # The embedding and four blocks, and a sum over them that is made anew with each.
    assert more == 4 * 32 * (5 * 4 * 32 + 2 * 4 * 32)


def test_a_padded_export_copies_one_tensor_at_a_time(tmp_path: Path) -> None:
    own = "prune.space=[{name: ffn, scope: per_layer}]"
    found, padded, _ = of(tmp_path, own, "export.form=padded")
    largest = 4 * 258 * 32  # the embedding, which no form pads
    assert padded["export"].working == largest
    for sets in (("export.form=exact", own), ("prune.space=[ffn]",)):
        assert of(tmp_path, *sets)[1]["export"].working == 0
    loaded = load_recipe(recipe(tmp_path), [own, "export.form=padded"])
    uneven = memory(found, loaded.recipe, {"ffn.0": 10, "ffn.1": 40})["export"]
    assert uneven.working == largest
    assert uneven.weights == 4 * found.axes.count({"ffn.0": 10, "ffn.1": 40})


def test_a_reader_for_each_gram_matrix(tmp_path: Path) -> None:
    """Bytes of the matrices and index tensors that a model really makes."""
    loaded = load_recipe(recipe(tmp_path), ["prune.repair=[norm_gain, obs_update]"])
    found = sized_model(loaded)
    assert found is not None and loaded.recipe.prune
    config = AutoConfig.for_model(**dict(found.config))
    module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = PrunedModel(module, found.config, loaded.recipe.prune.space)
    grams = Grams(module, readers(module, model.axes, model.sets), tokens=16, decay=0.9)
    with grams.listening():
        module(input_ids=torch.arange(32)[None])
    grams.close()
    tensors = [*grams.values.values(), *grams.means.values()]
    held = memory(found, loaded.recipe, {})["update"]
    assert held.grams == sum(t.nbytes for t in tensors)
    listed = {g.weight: g.outputs for g in grams_of(found.axes, found.sets, {})}
    assert sorted(listed) == sorted(grams.values)
    assert sum(listed.values()) == sum(module.get_parameter(p).shape[0] for p in grams.params)
    indices = {m.index_GB.data_ptr(): m.index_GB.nbytes for s in model.sets for m in s.members}
    assert index_bytes(found.sets) == sum(indices.values())
    units = sum(s.size for s in found.sets)
    assert held.saliency == index_bytes(found.sets) + 2 * 4 * units


def test_low_rank_updates_are_few(tmp_path: Path) -> None:
    sets = ["recover={method: lora, tokens: 256, batch_size: 2, lora: {rank: 2}}", "train=null"]
    sets += ["prune.measure={source: calibration, sequences: 2}", "prune.schedule={name: once}"]
    loaded = load_recipe(recipe(tmp_path), sets)
    found = sized_model(loaded)
    assert found is not None
    square, narrow, ffn = 32 + 32, 32 + 16, 32 + 64
    assert trained(found, loaded.recipe, {}) == 2 * 2 * (2 * square + 2 * narrow + 3 * ffn)
    held = memory(found, loaded.recipe, {})
    assert held["cut"].moments == 0 and held["cut"].gradients > 0
    assert held["update"].gradients == 4 * trained(found, loaded.recipe, {})


def test_messages_by_hand(tmp_path: Path) -> None:
    sets = ["prune.repair=[norm_gain, obs_update]", "prune.criterion=mask_fisher"]
    sets += ["prune.space=[{name: attention}, {name: ffn}]"]
    loaded = load_recipe(recipe(tmp_path), sets)
    found, prune = sized_model(loaded), loaded.recipe.prune
    assert found is not None and prune is not None
    step = {m.what: m for m in per_step(found, loaded.recipe, {}, 2, found.start)}
    assert step["gradients"].bytes == 4 * found.start
    assert (step["losses"].bytes, step["flags"].bytes) == (4 * 2, 16)
    assert step["saliency of masks"].bytes == 4 * 2 * (2 + 64)
    cut = {m.what: m for m in per_cut(found, prune, {}, 3)}
    assert cut["what layers read"].bytes == 2 * (4 * (32**2 + 32 + 64**2 + 64) + 2 * 2 * 8)
    assert [m.bytes for m in per_commit(found, {})] == [4 * found.start]


def test_what_leaves_a_process_of_a_ring() -> None:
    assert Message("", "all_reduce", 80).sent(8) == 2 * 7 / 8 * 80
    assert Message("", "all_gather", 80).sent(8) == 7 * 80
    assert Message("", "broadcast", 80).sent(8) == 80
    assert Message("", "broadcast", 80).sent(1) == Message("", "all_reduce", 80).sent(1) == 0


def test_plan_for_several_processes(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    alone, two = plan(loaded), plan(loaded, Launch(2, 1e6))
    assert "communicated_bytes" not in alone.data and "seconds" not in alone.data
    assert two.data["communicated_bytes"]["step"]["gradients"] == 4 * two.data["params"]
    titles = [sheet.title for sheet in two.sheets]
    assert any("Communicated" in title for title in titles)
    seconds = two.data["seconds"]
    assert seconds["all_steps"] == pytest.approx(two.data["flops"] / 2e6)
    assert seconds["last_step"] < seconds["first_step"]
    with pytest.raises(RecipeError, match="3 processes cannot share a batch of 4"):
        plan(loaded, Launch(3))
