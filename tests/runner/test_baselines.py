"""Published one-shot methods on a toy: exactly the mini-groups that an independent computation in
fp64, from the model's own tensors and the same calibration tokens, says are least.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from effcompress import load_recipe, run
from effcompress.model.load import load as load_model
from effcompress.record.status import status
from effcompress.report.gather import gather
from effcompress.runner.start import corpus_of
from tests.runner.toys import events, texts

LAYERS, HIDDEN, FFN, QUERIES, KV, WIDE = 4, 24, 40, 2, 3, 4
SEQUENCES = 5

RECIPE = """\
name: toy
model: {{folder: model, tokenizer: bytes}}
data:
  sequence_length: 24
  domains:
    letters: {{jsonl: letters.jsonl, holdout: 20%}}
    numbers: {{jsonl: numbers.jsonl, holdout: 20%}}
prune:
  target: {{{target}}}
  space: {space}
  criterion: {criterion}
  {more}
  measure: {{source: calibration, sequences: 5}}
  schedule: {{name: once, at: 0}}
  repair: {repair}
evaluate: {{sequences: 2, new_tokens: 4}}
export: {{form: exact}}
"""
DEFAULTS = {"space": "[attention, ffn]", "target": "shape: {attention: 2, ffn: 25}", "more": ""}
DEFAULTS |= {"repair": "[]"}


def write_model(folder: Path) -> None:
    """A random model in which layers and channels differ in size, so that no two scores tie."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=KV * QUERIES,
        num_key_value_heads=KV,
        head_dim=WIDE,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.3)
    model.save_pretrained(folder / "model")


def kept(folder: Path, **changes: str) -> tuple[dict[str, list[int]], Any, Tensor]:
    """(what the run removed, the model before it, the calibration tokens)."""
    texts(folder)
    write_model(folder)
    path = folder / "toy.yaml"
    path.write_text(RECIPE.format(**{**DEFAULTS, **changes}))
    loaded = load_recipe(path)
    run(loaded, output=folder / "run")
    lines = (folder / "run" / "plans.jsonl").read_text().splitlines()
    plan: dict[str, list[int]] = {}
    for line in lines:
        for name, units in json.loads(line)["plan"].items():
            plan[name] = sorted({*plan.get(name, []), *units})
    source = load_model(loaded.recipe.model, seed=0, offline=True, progress=print)
    corpus = corpus_of(loaded.recipe, source.tokenizer, offline=True, say=print, notice=print)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").double()
    return plan, model, corpus.calibration(SEQUENCES, 0)


@contextmanager
def reading(model: Any) -> Iterator[dict[str, list[Tensor]]]:
    """What o, down, q and gate of every layer read, sequence by sequence."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for i, layer in enumerate(model.model.layers):
        modules = {
            f"attention.{i}": layer.self_attn.o_proj,
            f"ffn.{i}": layer.mlp.down_proj,
            f"norm1.{i}": layer.self_attn.q_proj,
            f"norm2.{i}": layer.mlp.gate_proj,
        }
        for name, module in modules.items():
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, n=name: seen.setdefault(n, []).append(args[0][0].detach())
                )
            )
    yield seen
    for handle in handles:
        handle.remove()


def forward(model: Any, ids_NT: Tensor) -> dict[str, list[Tensor]]:
    with torch.no_grad(), reading(model) as seen:
        for ids_T in ids_NT:
            model(input_ids=ids_T[None])
    return seen


def gradients(model: Any, ids_NT: Tensor) -> dict[str, Tensor]:
    """Of the mean loss."""
    model.zero_grad()
    for ids_T in ids_NT:
        (model(input_ids=ids_T[None], labels=ids_T[None]).loss / len(ids_NT)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def fisher(model: Any, ids_NT: Tensor) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for ids_T in ids_NT:
        for name, grad in gradients(model, ids_T[None]).items():
            total[name] = total.get(name, torch.zeros_like(grad)) + grad.square() / len(ids_NT)
    return total


def heads_first(columns: Tensor) -> Tensor:
    """``[K * r * h]`` -> ``[K]``."""
    return columns.view(-1, QUERIES * WIDE).sum(1)


def of_weights(
    model: Any, value: Callable[[str, Tensor], Tensor], channel: str = "sum", mean: bool = False
) -> dict[str, Tensor]:
    """Score of every head group and FFN channel from a tensor per parameter."""
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(model.model.layers):
        at = f"model.layers.{i}."
        part = {
            name: value(at + name + ".weight", layer.get_submodule(name).weight.detach())
            for name, module in layer.named_modules()
            if name.endswith("proj")
        }
        sums = {n: v.sum(0 if n.endswith(("o_proj", "down_proj")) else 1) for n, v in part.items()}
        if channel == "abs":
            sums = {n: v.abs() for n, v in sums.items()}
        a, m = "self_attn.", "mlp."
        heads = heads_first(sums[a + "q_proj"]) + heads_first(sums[a + "o_proj"])
        for n in "kv":
            heads = heads + sums[f"{a}{n}_proj"].view(-1, WIDE).sum(1)
        ffn = sums[m + "gate_proj"] + sums[m + "up_proj"] + sums[m + "down_proj"]
        found[f"attention.{i}"] = heads / (4 if mean else 1)
        found[f"ffn.{i}"] = ffn / (3 if mean else 1)
    return found


def least(scores: dict[str, Tensor], removed: dict[str, int]) -> dict[str, list[int]]:
    """The same number out of every set of a kind."""
    return {
        name: sorted(value.argsort()[: removed[name.split(".")[0]]].tolist())
        for name, value in scores.items()
    }


LOCAL = {"attention": 1, "ffn": 15}


def magnitude(model: Any, _ids: Tensor) -> dict[str, Tensor]:
    return of_weights(model, lambda _n, w: w.abs(), mean=True)


def taylor(model: Any, ids: Tensor) -> dict[str, Tensor]:
    grad = gradients(model, ids)
    return of_weights(model, lambda n, w: (w * grad[n]).abs())


def vector(model: Any, ids: Tensor) -> dict[str, Tensor]:
    grad = gradients(model, ids)
    return of_weights(model, lambda n, w: w * grad[n], channel="abs")


def second(model: Any, ids: Tensor) -> dict[str, Tensor]:
    hess = fisher(model, ids)
    return of_weights(model, lambda n, w: w * hess[n] * w)


def mixed(model: Any, ids: Tensor) -> dict[str, Tensor]:
    grad, hess = gradients(model, ids), fisher(model, ids)
    return of_weights(model, lambda n, w: (w * grad[n] - 0.5 * w * hess[n] * w).abs())


def writers(model: Any, i: int) -> dict[str, Tensor]:
    layer = model.model.layers[i]
    return {
        f"attention.{i}": layer.self_attn.o_proj.weight.detach(),
        f"ffn.{i}": layer.mlp.down_proj.weight.detach(),
    }


def wanda(model: Any, ids: Tensor) -> dict[str, Tensor]:
    seen, found = forward(model, ids), {}
    for i in range(LAYERS):
        for name, weight in writers(model, i).items():
            norm = torch.cat(seen[name]).square().mean(0).sqrt()
            columns = (weight.abs() * norm).sum(0)
            found[name] = heads_first(columns) if name.startswith("att") else columns
    return found


def minitron(model: Any, ids: Tensor) -> dict[str, Tensor]:
    seen, found = forward(model, ids), {}
    for i in range(LAYERS):
        for name in writers(model, i):
            squares = torch.stack([x.abs().mean(0) ** 2 for x in seen[name]]).sum(0)
            each = heads_first(squares) if name.startswith("att") else squares
            found[name] = each.sqrt()
    return found


LOCAL_METHODS = {
    "magnitude": (magnitude, {"criterion": "magnitude", "more": "reduce: {members: mean}"}),
    "param_first": (taylor, {"criterion": "taylor"}),
    "vectorize": (
        vector,
        {"criterion": "{name: taylor, signed: true}", "more": "reduce: {channel: abs}"},
    ),
    "param_second": (second, {"criterion": "taylor_second", "more": "hessian: fisher_diag"}),
    "param_mix": (mixed, {"criterion": "taylor_mixed", "more": "hessian: fisher_diag"}),
    "wanda_sp": (wanda, {"criterion": "wanda"}),
    "minitron": (minitron, {"criterion": "minitron"}),
}


@pytest.mark.parametrize("method", LOCAL_METHODS)
def test_the_same_share_of_every_layer(method: str, tmp_path: Path) -> None:
    reference, recipe = LOCAL_METHODS[method]
    plan, model, ids = kept(tmp_path, **recipe)
    assert plan == least(reference(model, ids), LOCAL)


def test_minitron_with_hidden_and_layers(tmp_path: Path) -> None:
    plan, model, ids = kept(
        tmp_path,
        criterion="minitron",
        space="[hidden, layer]",
        target="shape: {hidden: 17, layer: 3}",
        repair="[norm_gain]",
    )
    seen = forward(model, ids)
    hidden = torch.zeros(HIDDEN, dtype=torch.float64)
    for name, sequences in seen.items():
        if name.startswith("norm"):
            hidden += torch.stack([x.abs().mean(0) ** 2 for x in sequences]).sum(0).sqrt()
    assert plan["hidden"] == sorted(hidden.argsort()[:7].tolist())
    influence = influences(model, ids)
    assert [name for name in plan if name != "hidden"] == [f"layer.{influence.argmin()}"]


def influences(model: Any, ids: Tensor) -> Tensor:
    """Block influence of every layer, ``[L]``, from the stream in front of every norm."""
    with torch.no_grad():
        stack = copy.deepcopy(model)
        stack.model.norm = torch.nn.Identity()
        total = torch.zeros(LAYERS, dtype=torch.float64)
        for ids_T in ids:
            states = stack(input_ids=ids_T[None], output_hidden_states=True).hidden_states
            for i in range(LAYERS):
                total[i] += (1 - torch.cosine_similarity(states[i], states[i + 1], dim=-1)).mean()
    return total / len(ids)


def test_shortgpt_and_first_layers(tmp_path: Path) -> None:
    depth = {"space": "[layer]", "target": "shape: {layer: 2}"}
    plan, model, ids = kept(tmp_path, criterion="block_influence", **depth)
    gone = influences(model, ids).argsort()[:2].tolist()
    assert sorted(plan) == sorted(f"layer.{i}" for i in gone)
    (tmp_path / "b").mkdir()
    plan, _, _ = kept(tmp_path / "b", criterion="depth_order", **depth)
    assert sorted(plan) == ["layer.2", "layer.3"]


def flap_scores(model: Any, ids: Tensor) -> dict[str, Tensor]:
    seen, found = forward(model, ids), {}
    for i in range(LAYERS):
        for name, weight in writers(model, i).items():
            value = torch.cat(seen[name]).var(0, unbiased=False) * weight.square().sum(0)
            value = value.square() if name.startswith("att") else value
            value = (value - value.mean()) / value.std()
            found[name] = heads_first(value) / (QUERIES * WIDE) if name[0] == "a" else value
    return found


def test_flap_ranks_everything_together_and_mends_biases(tmp_path: Path) -> None:
    """AL-AM: lowest standardised score first until the size is met; bias = W mean of what went."""
    target = 21_000
    spaces = "[{name: attention, scope: global}, {name: ffn, scope: global}]"
    texts(tmp_path)
    plan, model, ids = kept(
        tmp_path,
        criterion="flap",
        space=spaces,
        target="params: 21000",
        more="selector: {name: least_salient, normalise: raw}",
        repair="[bias_mean]",
    )
    scores = flap_scores(model, ids)
    ranked = sorted(
        (float(score), name, unit)
        for name, value in scores.items()
        for unit, score in enumerate(value)
    )
    gone = {(name, unit) for name, units in plan.items() for unit in units}
    assert gone == {(name, unit) for _, name, unit in ranked[: len(gone)]}
    end = events(tmp_path / "run", "end")[-1]
    assert end["status"] == "success" and abs(end["params"] / target - 1) < 0.005
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "run", trust_remote_code=True)
    # The dense model is the source: biases it has none of are not among what was removed.
    assert gather(tmp_path / "run").params_before == sum(p.numel() for p in model.parameters())
    assert status(tmp_path / "run").params_before == gather(tmp_path / "run").params_before
    seen = forward(model, ids)
    for i in range(LAYERS):
        weight, mean = writers(model, i)[f"ffn.{i}"], torch.cat(seen[f"ffn.{i}"]).mean(0)
        units = plan.get(f"ffn.{i}", [])
        bias = pruned.get_parameter(f"model.layers.{i}.mlp.down_proj.bias")
        wanted = weight[:, units] @ mean[units]
        torch.testing.assert_close(bias.double(), wanted, rtol=1e-4, atol=1e-6)


def test_flap_with_shares_of_its_own_for_heads_and_channels(tmp_path: Path) -> None:
    """UL-MM: the same numbers in every layer. AL-MM: heads first, ranked over all layers, until
    their share is gone, then channels.
    """
    shape = "[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
    plan, model, ids = kept(tmp_path, criterion="flap", space=shape)
    scores = flap_scores(model, ids)
    for name, score in scores.items():
        went = score.argsort()[: len(score) - (2 if name.startswith("att") else 25)]
        assert plan[name] == sorted(went.tolist()), name
    (tmp_path / "b").mkdir()
    spaces = "[{name: attention, scope: global, until: 5%}, {name: ffn, scope: global, after: 5%}]"
    more = "selector: {name: least_salient, normalise: raw}"
    plan, _, _ = kept(
        tmp_path / "b", criterion="flap", space=spaces, target="params: 21000", more=more
    )
    gone = {(name, unit) for name, units in plan.items() for unit in units}
    for kind, wanted in (("attention", 3), ("ffn", None)):  # 576 of 24,840 parameters a head
        ranked = sorted(
            (float(score), name, unit)
            for name, value in scores.items()
            for unit, score in enumerate(value)
            if name.startswith(kind)
        )
        of_kind = {(name, unit) for name, unit in gone if name.startswith(kind)}
        assert of_kind == {(name, unit) for _, name, unit in ranked[: wanted or len(of_kind)]}
        assert of_kind


def test_adapt_pruner_follows_its_rates(tmp_path: Path) -> None:
    """All layers stand at the share ``s_l = t (1 - A n_l)`` of one progress ``t``, rounded down to
    whole units; within a layer the least salient went.
    """
    spaces = "[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
    plan, model, ids = kept(
        tmp_path,
        criterion="taylor",
        space=spaces,
        target="params: 20000",
        more="selector: {name: adaptive, amplitude: 0.5}",
    )
    influence = influences(model, ids)
    n = influence - influence.mean()
    rate = 1 - 0.5 * n / n.abs().max()
    scores, sizes = taylor(model, ids), {"attention": KV, "ffn": FFN}

    def counts(progress: float) -> dict[str, int]:
        return {
            name: min(
                int(sizes[name.split(".")[0]] * progress * float(rate[int(name[-1])]) + 1e-9),
                sizes[name.split(".")[0]] - 1,
            )
            for name in scores
        }

    removed = {name: len(plan.get(name, [])) for name in scores}
    closest = min(
        (counts(t / 4000) for t in range(1, 4000)),
        key=lambda c: sum(abs(c[name] - removed[name]) for name in c),
    )
    assert sum(abs(closest[name] - removed[name]) for name in removed) <= 1, (closest, removed)
    for name, units in plan.items():
        assert units == sorted(scores[name].argsort()[: len(units)].tolist())


@pytest.mark.parametrize("refit", ["least_squares", "least_squares_bias"])
def test_refit_brings_the_model_back(refit: str, tmp_path: Path) -> None:
    """Loss on the calibration text itself, with and without."""
    losses = {}
    for name, more in (("with", f"refit: {refit}"), ("without", "")):
        (tmp_path / name).mkdir()
        _, source, ids = kept(tmp_path / name, criterion="taylor", more=more)
        path = tmp_path / name / "run"
        pruned = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).double()
        with torch.no_grad():
            wanted = torch.stack([source(input_ids=i[None]).logits for i in ids]).log_softmax(-1)
            found = torch.stack([pruned(input_ids=i[None]).logits for i in ids]).log_softmax(-1)
        losses[name] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
        assert events(path, "end")[-1]["status"] == "success"
        assert len(events(path, "refit")) == (name == "with")
    assert losses["with"] < 0.8 * losses["without"]
