"""Statistics of what layers read, against the tensors themselves; influence against the stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import groups
from effcompress.injectable import READ
from effcompress.measure.grams import readers
from effcompress.measure.statistics import InputStatistics, LayerStatistics
from effcompress.model.families import family_of
from effcompress.registry import REGISTRY
from tests.conftest import FAMILIES, SHAPES, tiny, tokens
from tests.contract.zoo import config_of
from tests.measure.test_grams import SPACES, pruned, seen

OF_INPUTS = {n: REGISTRY.get("statistic", n) for n in ("input_abs", "input_fluctuation")}


def reference(sequences: list[Tensor]) -> dict[str, Tensor]:
    """From whole sequences ``[T, I]`` in fp64; FLAP's recursion as methods describe it."""
    every = torch.cat(sequences)
    fluctuation = torch.zeros_like(every[0])
    mean = torch.zeros_like(every[0])
    for n, x in enumerate(sequences, start=1):
        mean = mean * (n - 1) / n + x.mean(0) / n
        if n > 1:
            spread = (x - mean).square().sum(0)
            fluctuation = fluctuation * (n - 2) / (n - 1) + spread / n
    return {
        "input_mean": every.mean(0),
        "input_norm": every.square().mean(0).sqrt(),
        "input_variance": every.var(0, unbiased=False),
        "input_abs": torch.stack([x.abs().mean(0) ** 2 for x in sequences]).sum(0).sqrt(),
        "input_fluctuation": fluctuation,
    }


def test_statistics_of_inputs() -> None:
    model = pruned(*SPACES)
    params = readers(model.module, model.axes, model.sets)
    stats = InputStatistics(model.module, params, READ, OF_INPUTS)
    want: dict[str, list[Tensor]] = {}
    for seed in range(4):
        ids = tokens(1, seed=seed)
        with stats.listening():
            model.module(input_ids=ids)
        for name, x in seen(model.module, ids, list(params)).items():
            want.setdefault(name, []).append(x)
    for name, sequences in want.items():
        for key, value in reference(sequences).items():
            torch.testing.assert_close(
                stats.read(name)[key].double(), value, rtol=1e-5, atol=1e-8, msg=f"{name} {key}"
            )
    shared = {stats.owner[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"}
    assert len(shared) == 1


def test_a_batch_is_so_many_sequences() -> None:
    model = pruned("ffn")
    params = readers(model.module, model.axes, model.sets)
    found = []
    for batches in ([tokens(3, seed=5)], [*tokens(3, seed=5).split(1)]):
        stats = InputStatistics(model.module, params, READ, OF_INPUTS)
        for ids in batches:
            with stats.listening():
                model.module(input_ids=ids)
        stats.close()
        found.append(stats.read(next(iter(params))))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("model_type", [*FAMILIES, "granite", "bloom", "falcon"])
def test_influence_of_layers_and_blocks(model_type: str) -> None:
    """Blocks against the stream that the class itself carries: with the block silenced, the layer
    hands on the stream without what the block adds (sequential or not, norms behind or not).
    """
    if model_type in ("bloom", "falcon"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(model_type)))
        model.eval()
    else:
        name = next(iter(SHAPES)) if model_type not in ("gpt_neox", "opt", "gpt2") else "mha_tied"
        model = tiny(name, model_type=model_type)
    config = model.config.to_dict()
    family = family_of(config)
    axes = groups.axes_of(model, family, config)
    ids = tokens(2, seed=3)
    influence = LayerStatistics(model, axes, {"influence": REGISTRY.get("statistic", "influence")})
    with influence.listening():
        model(input_ids=ids)
    found = influence.read()["influence"]
    influence.close()
    stream = states(model, ids)
    for i in axes.depth.layers[:-1]:  # the last of the class's states is behind the final norm
        cosine = torch.cosine_similarity(stream[i], stream[i + 1], dim=-1)
        assert found[f"layer.{i}"] == pytest.approx(float((1 - cosine).mean()), abs=2e-6)
        if not family.sublayers:
            continue
        layer = model.get_submodule(family.layer.replace("{i}", str(i)))
        mlp = family.sublayers["mlp_block"]
        hook = layer.get_submodule(mlp.modules[-1] if _behind(layer, mlp) else mlp.silent)
        silence = _stream if mlp.outputs < 0 else _zero
        handle = hook.register_forward_hook(silence)
        without = states(model, ids)[i + 1]
        handle.remove()
        cosine = torch.cosine_similarity(without, stream[i + 1], dim=-1)
        assert found[f"mlp_block.{i}"] == pytest.approx(float((1 - cosine).mean()), abs=2e-6)


@torch.no_grad()
def states(model: Any, ids: Tensor) -> list[Tensor]:
    """The stream in front of every layer, in fp64."""
    found = model(input_ids=ids, output_hidden_states=True).hidden_states
    return [state.double() for state in found]


def _behind(layer: torch.nn.Module, block: object) -> bool:
    """Whether a norm stands behind the block."""
    names = {name for name, _ in layer.named_children()}
    return "post_feedforward_layernorm" in names


def _stream(_module: object, args: tuple[Any, ...], _out: object) -> object:
    """What a block returns that adds to the stream itself."""
    return args[1]


def _zero(_module: object, _args: object, out: object) -> object:
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)
