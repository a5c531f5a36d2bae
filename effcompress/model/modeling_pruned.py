"""A causal language model whose layers have widths of their own.

This file belongs to the folder that it lies in and needs torch and transformers, nothing else. The
sizes in config.json are those of the parent, because the width of a head, the rotary tables and the
scale of the embedding follow from them; `pruned` in config.json says what is smaller or gone.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

PARENT = "llama"


class Silent(nn.Module):
    """A block that is gone: zeros like its input [B, T, H], and None for further outputs. With
    negative `outputs`, for blocks that add to the stream themselves, that stream.
    """

    def __init__(self, outputs: int, layer_idx: int) -> None:
        super().__init__()
        self.outputs, self.layer_idx = outputs, layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
        if cache is not None:  # the model asks single layers how many tokens were seen
            self.remember(cache, hidden)
        out = args[1] if self.outputs < 0 else torch.zeros_like(hidden)
        return out if abs(self.outputs) == 1 else (out, *[None] * (abs(self.outputs) - 1))

    def remember(self, cache: Cache, hidden: torch.Tensor) -> None:
        """Make an entry of zeros: keys and values, or the state of a convolution, whichever this
        layer's part of the cache has.
        """
        own = cache.layers[self.layer_idx] if self.layer_idx < len(cache.layers) else None
        if getattr(own, "is_initialized", False) and getattr(own, "keys", own) is None:
            return  # it keeps nothing: the layer attends to what another one keeps
        if hasattr(own, "update_conv_state") and not hasattr(own, "update"):
            cache.update_conv_state(hidden.new_zeros(hidden.shape[0], 1, 1), self.layer_idx)
        else:
            seen = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            cache.update(seen, seen, self.layer_idx)


class Own:
    """A module's view of the configuration: some values are its own. The rest is looked up when it
    is asked for, because the model may be told later to compute attention in another way.
    """

    def __init__(self, shared: Any, **own: Any) -> None:
        self.__dict__.update(own, shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.shared, name)


def novel(experts: Any, routes: int, hidden: int) -> None:
    """Lets a module of experts return constants in place of those that are gone.

    `novices` has a row for every expert that the router knows, `place` says where its weights are
    (-1: gone, the constant takes its place).
    """
    like = next(experts.parameters())
    empty = torch.zeros(routes, hidden, dtype=like.dtype, device=like.device)
    experts.novices, experts.place = nn.Parameter(empty), list(range(routes))
    experts.__class__ = _novel(type(experts))


@functools.cache
def _novel(stock: Any) -> Any:
    def forward(self: Any, hidden_TD: Any, index_TK: Any, weight_TK: Any) -> Any:
        place_TK = torch.tensor(self.place, device=index_TK.device)[index_TK]
        there = place_TK >= 0
        out_TD = stock.forward(self, hidden_TD, place_TK.clamp(min=0), weight_TK * there)
        weight_TE = weight_TK.new_zeros(len(index_TK), len(self.place))
        weight_TE.scatter_add_(1, index_TK, weight_TK * ~there)
        return out_TD + weight_TE.to(out_TD.dtype) @ self.novices.to(out_TD.dtype)

    return type(f"Novel{stock.__name__}", (stock,), {"forward": forward})


def silent(outputs: int, layer_idx: int) -> nn.Module:
    """What stands for a module that is gone; with 0 outputs it passes on what it gets."""
    return Silent(outputs, layer_idx) if outputs else nn.Identity()


class UnitNorm(nn.Module):
    """x / sqrt(sum x^2 / channels + eps), without gain, [..., D] -> [..., D]. `channels` are those
    of the parent, also where x has fewer. Where there is a `map`, the result goes through it.
    """

    def __init__(self, channels: int, eps: float, mapped: nn.Linear | None = None) -> None:
        super().__init__()
        self.channels, self.eps, self.map = channels, eps, mapped

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        narrow = hidden_states.dtype in (torch.float16, torch.bfloat16)
        wide = hidden_states.float() if narrow else hidden_states
        square = wide.square().sum(-1, keepdim=True) / self.channels
        out = (wide * torch.rsqrt(square + self.eps)).to(hidden_states.dtype)
        return out if self.map is None else self.map(out)


class Rotated:
    """A layer whose residual stream changes its basis at every addition: x S + block(norm(x)).
    `blocks` lists for each block its norm, its shortcut S and the modules that run one behind the
    other, the first with what the model gives the layer. A number stands for a dropout.
    """

    blocks: tuple[tuple[str, str, tuple[str, ...]], ...]
    arguments: tuple[str, ...]

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        named = {**dict(zip(self.arguments, args, strict=False)), **named}
        x = hidden_states if self.input_map is None else self.input_map(hidden_states)
        if not self.parallel:
            for k, (_, shortcut, _) in enumerate(self.blocks):
                x = getattr(self, shortcut)(x) + self.branch(k, x, named)
            return x
        written = [self.branch(k, x, named) for k in range(len(self.blocks))]
        return getattr(self, self.blocks[0][1])(x) + sum(written)

    def branch(self: Any, k: int, x: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
        """What block `k` adds to the stream `x`; the first block is attention."""
        norm, _, modules = self.blocks[k]
        out = getattr(self, norm)(x)
        for i, name in enumerate(modules):
            module = getattr(self, name)
            if isinstance(module, float | int):
                out = nn.functional.dropout(out, p=module, training=self.training)
            else:
                out = module(out, **(named if k == 0 and i == 0 else {}))
            out = out[0] if isinstance(out, tuple) else out
        return out


@functools.cache
def rotated(stock: type[nn.Module]) -> type[nn.Module]:
    """The class of a rotated layer, for the class of a stock one."""
    names = tuple(inspect.signature(stock.forward).parameters)[2:]
    return type(f"Rotated{stock.__name__}", (Rotated, stock), {"arguments": names})


def rotate(model: Any, stream: dict[str, Any]) -> None:
    """Give a model of the parent's class the modules of a rotated residual stream, at the parent's
    sizes: shortcuts that are the identity, norms without gain, maps behind the embedding and behind
    the last norm where the embedding is the output matrix.
    """
    layers = model.get_submodule(stream["layers"])
    for layer in layers:
        rotate_layer(layer, stream, first=layer is layers[0])
    path, width = stream["final_norm"], stream["channels"]
    norm = model.get_submodule(path)
    like = next(p for p in model.parameters())
    mapped = _identity(width, like, bias=stream["centred"]) if stream["mapped"] else None
    model.set_submodule(path, UnitNorm(width, epsilon_of(norm), mapped))
    if stream["centred"] and not stream["mapped"]:
        head = model.get_submodule(stream["head"])
        head.bias = nn.Parameter(like.new_zeros(head.weight.shape[0]))


def rotate_layer(layer: Any, stream: dict[str, Any], *, first: bool) -> None:
    """The same for one layer; the `first` one reads the embedding."""
    like, width = next(p for p in layer.parameters() if p.dim() > 1), stream["channels"]
    layer.blocks = tuple((n, s, tuple(modules)) for n, s, modules in stream["blocks"])
    layer.parallel = stream["parallel"]
    layer.input_map = _identity(width, like) if first and stream["mapped"] else None
    for norm, shortcut, _ in layer.blocks:
        setattr(layer, norm, UnitNorm(width, epsilon_of(getattr(layer, norm))))
        setattr(layer, shortcut, _identity(width, like))
    layer.__class__ = rotated(type(layer))


def untie(model: Any) -> None:
    """Give the output matrix a copy of the embedding."""
    held = model.get_output_embeddings()
    held.weight = nn.Parameter(held.weight.detach().clone())
    model.config.tie_word_embeddings = False


def epsilon_of(norm: Any) -> float:
    # OLMo's norms keep no epsilon: theirs is a constant.
    default = getattr(norm, "eps", 1e-5)
    return float(getattr(norm, "variance_epsilon", default))


def _identity(width: int, like: torch.Tensor, *, bias: bool = False) -> nn.Linear:
    made = nn.Linear(width, width, bias=bias, device=like.device, dtype=like.dtype)
    made.weight = nn.Parameter(torch.eye(width, device=like.device, dtype=like.dtype))
    if bias:
        nn.init.zeros_(made.bias)
    return made


def prune(model: Any, pruned: dict[str, Any]) -> None:
    """Give a new model of the parent's sizes the stored ones, on whatever device it is.

    Raises ValueError naming the parameter if the model has one that `pruned` does not speak of, or
    that is smaller than it should be; AttributeError if it lacks one.
    """
    layers = next(
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers
    )
    if pruned.get("stream"):
        rotate(model, pruned["stream"])
    for i, parts in pruned["absent"].items():
        for path, outputs in parts:
            _put(layers[int(i)], path, silent(outputs, int(i)))
    for path, values in pruned["attributes"].items():
        if "place" in values:
            novel(model.get_submodule(path), len(values["place"]), model.config.hidden_size)
    _resize(model, pruned)
    for path, values in pruned["attributes"].items():
        _remember(model.get_submodule(path), values)
    for path, epsilon in pruned["epsilons"].items():
        norm = model.get_submodule(path)
        setattr(norm, "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps", epsilon)
    for module in model.modules():
        _agree(module)


def _resize(model: Any, pruned: dict[str, Any]) -> None:
    shapes = dict(pruned["shapes"])
    for name, source in model.all_tied_weights_keys.items():  # not yet tied while weights are read
        shapes.update({name: shapes[source]} if source in shapes else {})
    for name, shape in shapes.items():
        _put(model, name, _cut(name, model.get_parameter(name), shape))
    for name, shape in pruned.get("buffers", {}).items():  # of folders since they are kept
        _put(model, name, model.get_buffer(name)[tuple(slice(0, n) for n in shape)].clone())
    model.tie_weights()
    if unknown := [n for n, _ in model.named_parameters() if n not in shapes]:
        raise ValueError(f"config.json has no shape for {unknown[0]}")


def _put(root: nn.Module, name: str, value: Any) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(path), leaf, value)


def _cut(name: str, old: nn.Parameter, shape: list[int]) -> nn.Parameter:
    # The first part of the parent's: freshly drawn values stay freshly drawn.
    new = old.detach()[tuple(slice(0, n) for n in shape)].clone()
    if list(new.shape) != list(shape):
        raise ValueError(f"{name}: the parent has {list(old.shape)}, too small for {list(shape)}")
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _remember(module: Any, values: dict[str, Any]) -> None:
    own = {k.removeprefix("config."): v for k, v in values.items() if k.startswith("config.")}
    if own:
        module.config = Own(module.config, **own)
    for name in values.keys() - {f"config.{k}" for k in own}:
        held = getattr(module, name, None)
        value = _stretches(held, values[name]) if torch.is_tensor(held) else values[name]
        setattr(module, name, value)


def _stretches(like: torch.Tensor, values: list[list[Any]]) -> torch.Tensor:
    # A buffer of one number along a stretch, and another along the next: numbers and lengths.
    parts = [torch.full((length,), value, dtype=torch.float32) for value, length in values]
    return torch.cat(parts).to(like).view(*like.shape[:-1], -1)


def _is_buffer(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, list) for one in value) and bool(value)


def _agree(module: Any) -> None:
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.normalized_shape if weight is None else weight.shape)
    elif isinstance(module, Conv1D):
        module.nx, module.nf = weight.shape
    experts = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    # Grouped kernels want rows of 16 bytes, which are 8 numbers of the narrowest type in use.
    if hasattr(module, "config") and any(p.shape[-1] % 8 for p in experts):
        _remember(module, {"config._experts_implementation": "eager"})


@functools.cache
def make(parent: str) -> tuple[Any, Any]:
    """Configuration class and model class for one of the architectures that transformers has."""
    config: Any = CONFIG_MAPPING[parent]
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    named = inspect.signature(stock.forward).parameters
    alone = "cache_params" in named and "past_key_values" not in named

    class PrunedConfig(config):
        model_type = f"pruned_{parent}"
        pruned: dict | None = None

    class PrunedForCausalLM(stock):
        config_class = PrunedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if config.pruned:
                prune(self, config.pruned)

        def _prepare_cache_for_generation(
            self, generation_config: Any, model_kwargs: dict[str, Any], *more: Any
        ) -> Any:
            # transformers tells models whose cache has this name by the name of their class.
            made = super()._prepare_cache_for_generation(generation_config, model_kwargs, *more)
            if alone and "past_key_values" in model_kwargs:
                model_kwargs["cache_params"] = model_kwargs.pop("past_key_values")
            return made

        def initialize_weights(self) -> None:
            super().initialize_weights()
            # Of classes that are not its own, transformers passes over modules that own no tensor,
            # though they may fill buffers of their layers (Falcon-H1). Loaded tensors are marked
            # and stay.
            own = (self.config.pruned or {}).get("attributes", {})
            filled = {path: v for path, v in own.items() if any(map(_is_buffer, v.values()))}
            with torch.no_grad():
                for module in self.modules():
                    # Those that are filled here have sizes that the class does not expect.
                    if isinstance(module, PreTrainedModel) and module is not self and not filled:
                        module._init_weights(module)
            for path, values in filled.items():
                _remember(self.get_submodule(path), values)

    for made in (PrunedConfig, PrunedForCausalLM):
        made.__qualname__ = made.__name__
    return PrunedConfig, PrunedForCausalLM


PrunedConfig, PrunedForCausalLM = make(PARENT)
