"""Gates find what does not matter: noise that was added to a trained model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from effcompress.distributed.world import ALONE
from effcompress.network.gates import LearnedGates
from effcompress.network.pruned_model import PrunedModel
from effcompress.spec import TargetSpec
from effcompress.train.loss import cross_entropy
from effcompress.types import Plan
from tests.network.test_gates import spec

HIDDEN, HEAD, TOKENS = 36, 8, 13
SMALL = {"layers": 2, "heads": 2, "ffn": 24}
WIDE = {"layers": 3, "heads": 3, "ffn": 32}
NOISE = 0.2
STEPS = 400
Places = dict[str, set[int]]


def model(layers: int, heads: int, ffn: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def text(generator: torch.Generator) -> Tensor:
    """Periods of three to five random tokens: what comes next is what came a period ago."""
    rows = []
    for _ in range(16):
        period = int(torch.randint(3, 6, (1,), generator=generator))
        tokens = torch.randint(0, TOKENS, (period,), generator=generator)
        rows.append(tokens.repeat(8)[:20])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def trained() -> LlamaForCausalLM:
    torch.manual_seed(0)
    small, generator = model(**SMALL), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    for _ in range(500):
        ids_BT = text(generator)
        loss = cross_entropy(small(input_ids=ids_BT).logits, ids_BT).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 1.3, "a model whose parts matter"
    return small


def widened(small: LlamaForCausalLM, seed: int) -> tuple[LlamaForCausalLM, Places, int]:
    """The small model's function plus noise: units and a layer that add random numbers to the
    stream. Also returns the places of the noise, by set, and the number of the noisy layer.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    wide = model(**WIDE)
    noisy = int(torch.randint(0, WIDE["layers"], (1,), generator=generator))
    kept = [i for i in range(WIDE["layers"]) if i != noisy]
    places: Places = {}
    held, given = dict(wide.named_parameters()), dict(small.named_parameters())
    with torch.no_grad():
        for name, p in held.items():
            p.normal_(0, NOISE, generator=generator) if p.dim() > 1 else p.fill_(1.0)
            if ".layers." not in name:
                p.copy_(given[name])
        for j, i in enumerate(kept):
            heads = torch.randperm(WIDE["heads"], generator=generator)[: SMALL["heads"]]
            channels = torch.randperm(WIDE["ffn"], generator=generator)[: SMALL["ffn"]]
            rows = (heads[:, None] * HEAD + torch.arange(HEAD)).flatten()
            places[f"attention.{i}"] = set(range(WIDE["heads"])) - set(heads.tolist())
            places[f"ffn.{i}"] = set(range(WIDE["ffn"])) - set(channels.tolist())
            for name, source in given.items():
                if f".layers.{j}." not in name:
                    continue
                p = held[name.replace(f".layers.{j}.", f".layers.{i}.")]
                index = rows if "self_attn" in name else channels
                if p.shape == source.shape:
                    p.copy_(source)
                elif "o_proj" in name or "down_proj" in name:
                    p[:, index] = source
                else:
                    p[index] = source
    return wide, places, noisy


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_found_from_any_seed(trained: LlamaForCausalLM, seed: int) -> None:
    wide, places, noisy = widened(trained, seed)
    shape = {"layer": SMALL["layers"], "attention": SMALL["heads"], "ffn": SMALL["ffn"]}
    kinds = ("layer", "attention", "ffn")
    prune = spec(kinds, TargetSpec(shape=shape), multiplier_rate=0.3, warmup=0.5)
    module: nn.Module = wide.requires_grad_(False)
    pruned = PrunedModel(module, wide.config.to_dict(), prune.space, target=prune.target)
    gates = LearnedGates(pruned, prune, 0, seed, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed + 100)
    for step in range(STEPS):
        ids_BT = text(generator)
        with gates.drawn(step, 0):
            cross_entropy(wide(input_ids=ids_BT).logits, ids_BT).mean().backward()
        gates.gather(ALONE)
        gates.learn(step / STEPS, 1.0)
    scores = gates.scores(prune.criterion)
    layers = {i: float(scores[f"layer.{i}"]) for i in range(WIDE["layers"])}
    assert min(layers, key=lambda i: layers[i]) == noisy, layers
    plan = {f"layer.{noisy}": [0]}
    for name, noise in places.items():
        lowest = scores[name].argsort(stable=True).tolist()[: len(noise)]
        assert name.startswith("ffn") or set(lowest) == noise, (name, scores[name])
        plan[name] = sorted(lowest)
    # Of 24 trained channels some matter as little as noise does, so these are judged by the loss.
    found = loss_without(wide, gates, plan)
    assert found < 1.15 * loss_without(wide, gates, {f"layer.{noisy}": [0], **listed(places)})
    for draw in range(5):
        other = torch.Generator().manual_seed(draw)
        random = {n: torch.randperm(gates_of(gates, n), generator=other) for n in places}
        chosen = {n: order.tolist()[: len(places[n])] for n, order in random.items()}
        assert found < loss_without(wide, gates, {f"layer.{noisy}": [0], **chosen})


def listed(places: Places) -> Plan:
    return {name: sorted(units) for name, units in places.items()}


def gates_of(gates: LearnedGates, name: str) -> int:
    return gates.sizes[gates.names.index(name)]


@torch.no_grad()
def loss_without(wide: nn.Module, gates: LearnedGates, plan: Plan) -> float:
    """The loss with these units shut and all others wholly open."""
    values = {name: torch.ones(gates_of(gates, name)) for name in gates.names}
    for name, units in plan.items():
        values[name][units] = 0.0
    ids_BT = torch.cat([text(torch.Generator().manual_seed(seed)) for seed in range(900, 906)])
    with gates.forward.using(values):
        return float(cross_entropy(wide(input_ids=ids_BT).logits, ids_BT).mean())
