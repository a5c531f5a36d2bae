"""The model of a run as an ordinary Hugging Face folder, and the proof of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from effcompress import checkpoint, groups
from effcompress.data import Corpus
from effcompress.errors import RunError
from effcompress.log import Log
from effcompress.model.containers import Container, container
from effcompress.model.silence import quietly
from effcompress.runner.state import RunState
from effcompress.types import AxisMap

PROOF_TOKENS = 64


@dataclass(frozen=True)
class Stock:
    """A stock class and the parameters to put into it, padded where the class wants more."""

    built: Container
    params: dict[str, Tensor]
    why: str

    @property
    def count(self) -> int:
        """Parameters of the folder, padding included."""
        return sum(p.numel() for p in self.params.values())


def export_and_prove(state: RunState, corpus: Corpus, folder: Path, log: Log) -> None:
    """Write the model as a stock Hugging Face folder and have a fresh process agree to it."""
    log.phase("exporting")
    stock = as_stock(state)
    stock.built.skeleton.generation_config = state.module.generation_config
    with quietly():
        size = checkpoint.export(stock.built.skeleton, stock.params, state.tokenizer.save, folder)
    log.event(
        "export",
        container=stock.built.model_type,
        why=stock.why,
        parameters=stock.count,
        bytes=size,
    )
    log.phase("proving the export in a fresh process")
    ids_BT = corpus.calibration(2, state.recipe.seed)[:, :PROOF_TOKENS]
    proof = checkpoint.prove(folder, state.module, ids_BT)
    log.event(
        "proof",
        max_logit_difference=proof.max_logit_difference,
        tokens_equal=proof.tokens_equal,
        cache_equal=proof.cache_equal,
        seconds=proof.seconds,
    )


def as_stock(state: RunState) -> Stock:
    """The same function in a class that plain transformers has.

    Layers of different width are padded with zeros to the widest. Where every class refuses the
    hidden size, it is padded to the next multiple of the heads: zero channels, with the norms'
    gains and epsilons scaled so that their mean over more channels changes nothing.
    """
    widest = _widest(state.widths)
    alive = widest["hidden"]
    epsilon = state.norms()[0].epsilon
    why: list[str] = []
    try:
        built = container(state.family, state.config, widest, epsilon)
    except RunError as error:
        heads = state.family.resize(state.config, widest)["num_attention_heads"]
        widest["hidden"] = -(-alive // heads) * heads
        epsilon *= alive / widest["hidden"]
        built = container(state.family, state.config, widest, epsilon)
        why.append(f"hidden size {alive} became {widest['hidden']}: {error.what}")
    params = _padded(state, widest, alive)
    zeros = sum(p.numel() for p in params.values()) - state.params
    if zeros:
        why.append(f"padded with {zeros:,} zeros, because not every layer has the same width")
    return Stock(built, params, "; ".join([*why, built.why] if built.why else why))


def _widest(widths: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, width in widths.items():
        kind = name.split(".")[0]
        found[kind] = max(width, found.get(kind, 0))
    return found


@torch.no_grad()
def _padded(state: RunState, widest: dict[str, int], alive: int) -> dict[str, Tensor]:
    """Parameters on the CPU, with zeros behind the last unit of whatever is narrower."""
    now = groups.axes_of(state.module, state.family, state.config)
    wide = {name: widest[name.split(".")[0]] for name in state.widths}
    shapes = groups.shapes_at(now, wide)
    then = groups.from_shapes(state.family, state.config, shapes)
    factors = _factors(state, widest, alive)
    offsets = {id(norm.gain): norm.offset for norm in state.norms()}
    found: dict[str, Tensor] = {}
    for name, p in state.parameters().items():
        tensor, offset = p.detach().cpu(), offsets.get(id(p), 0.0)
        if name in factors:
            tensor = ((tensor.double() + offset) * factors[name] - offset).to(tensor.dtype)
        if tuple(tensor.shape) != shapes[name]:
            room = tensor.new_zeros(shapes[name])
            places = [_places(now, then, name, dim) for dim in range(tensor.dim())]
            room[torch.meshgrid(*places, indexing="ij")] = tensor
            tensor = room
        found[name] = tensor
    return found


def _places(now: AxisMap, then: AxisMap, param: str, dim: int) -> Tensor:
    """Where each position of ``dim`` goes when segments grow at their ends."""
    pairs = zip(now.by_param[param], then.by_param[param], strict=True)
    return torch.cat(
        [
            torch.arange(new.start, new.start + now.widths[old.name] * old.block)
            for old, new in pairs
            if old.dim == dim
        ]
    )


def _factors(state: RunState, widest: dict[str, int], alive: int) -> dict[str, float]:
    """Parameter -> what its (effective) value must be multiplied by.

    Norms over more channels than are alive; and where the class multiplies the embedding by the
    root of the hidden size (the parent's in memory, the new one after loading), the ratio of the
    two, with its inverse in the last norm if the embedding is also the output matrix.
    """
    scale = (alive / widest["hidden"]) ** 0.5
    gains = {id(norm.gain) for norm in state.norms()}
    found = {n: scale for n, p in state.parameters().items() if id(p) in gains and scale != 1.0}
    if state.family.scaled_embedding:
        ratio = (state.config["hidden_size"] / widest["hidden"]) ** 0.5
        found[state.family.scaled_embedding] = ratio
        if state.config.get("tie_word_embeddings"):
            last = state.family.final_norm
            found[last] = found.get(last, 1.0) / ratio
    return found
