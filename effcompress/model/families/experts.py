"""Mixtures of experts: a layer's experts are 3-D parameters, with one row of the router each.

``Mixture`` says where a family keeps them and what its configurations call their sizes; all else of
a declaration follows. Families with experts that every token goes through are in ``shared.py``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from effcompress.model.families import llama
from effcompress.model.families.llama import (
    ATTENTION,
    LAYER,
    Name,
    attention,
    decoder,
    gated,
    linear,
    side,
)
from effcompress.types import (
    EXPERT_ROW,
    Axis,
    Config,
    Fields,
    ModuleSizes,
    Sublayer,
    Widths,
)

EXPERT, EXPERT_FFN, ROUTE = "expert.{i}", "expert_ffn.{i}", "route.{i}"
"""``route``: an expert as the router knows it. It is never cut: where experts that go are replaced
by constants (``novices`` in the configuration), the router keeps its rows.
"""
SHARED_FFN = "shared_ffn.{i}"
SPARSE, DENSE, SHARED = "sparse", "!sparse", "shared"
"""Flags: a layer is a mixture, or not; it has experts that every token goes through."""
CUT, KEPT = "router_is_cut", "router_is_kept"
"""Flags: a layer is a mixture whose router loses rows with experts, or keeps them."""
DERIVED = "stock classes derive the width of shared experts from that of the routed ones"
FIXED = ("vocab", "head_dim", "route", "one")
"""``one``: a dimension of one position."""
Sparse = Callable[[Config, int], bool]
Number = Callable[[Config], int]


def always(_config: Config, _layer: int) -> bool:
    """Every layer is a mixture."""
    return True


def after_first(config: Config, layer: int) -> bool:
    """All layers are mixtures but the first ``first_k_dense_replace``."""
    return layer >= config["first_k_dense_replace"]


def dense_layers_listed(config: Config, layer: int) -> bool:
    """Qwen's rule: every so many layers one is a mixture, without those that are listed."""
    return layer not in (config.get("mlp_only_layers") or ()) and (
        (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0
    )


def _unless_kept(value: Number) -> Number:
    """1 where the router keeps its rows: then no number of experts is too small for it."""
    return lambda config: 1 if config.get("novices") else value(config)


@dataclass(frozen=True)
class Groups:
    """A router that first chooses ``topk_group`` of ``n_group`` groups of experts, and compares
    groups by their ``best`` experts. ``there``: whether it does in a configuration.
    """

    best: int = 2
    there: Callable[[Config], bool] = lambda _config: True

    def count(self, config: Config) -> int:
        """The number of groups; 1 where the router knows none."""
        return (config.get("n_group") or 1) if self.there(config) else 1

    def least(self, config: Config, chosen: int) -> int:
        """Returns the experts that must stay: the groups chosen hold as many as a token is sent to,
        and every group those by which groups are compared.
        """
        if not self.there(config):
            return chosen
        each = -(-chosen // (config.get("topk_group") or 1))
        return self.count(config) * max(self.best, each)


@dataclass(frozen=True)
class Mixture:
    """Where a family keeps its mixtures, and the configuration fields of their sizes.

    ``count``: names of the field of their number, the first that is there counts; ``width``: field
    of an expert's width; ``chosen``: field of the experts per token. ``block`` is the module within
    the layer, ``router`` within the block. ``shared``: the module, within the layer, of the experts
    that every token goes through; their width is a field of its own (``shared_width``), or is that
    of so many experts (``shared_count``). Then the stock class derives it, and it is never cut.
    """

    count: tuple[str, ...]
    width: str = "moe_intermediate_size"
    chosen: str = "num_experts_per_tok"
    sparse: Sparse = always
    block: str = "mlp"
    router: str = "gate"
    groups: Groups | None = None
    shared: str = ""
    shared_width: str = ""
    shared_count: str = ""

    def experts(self, config: Config) -> int:
        """Routed experts of a layer."""
        return next(config[name] for name in self.count if config.get(name))

    def beside(self, config: Config) -> int:
        """Width of the experts that every token goes through."""
        if self.shared_width:
            return config.get(self.shared_width) or 0
        return config[self.width] * self._times(config)

    def _times(self, config: Config) -> int:
        return config[self.shared_count] if self.shared_count else 1

    def rows(self, param: str, dim: int = 0) -> Iterator[Axis]:
        """What a router holds of every expert, along one dimension."""
        yield Axis(f"{LAYER}{self.block}.{param}", dim, EXPERT, when=CUT)
        yield Axis(f"{LAYER}{self.block}.{param}", dim, ROUTE, when=KEPT)

    def novices(self) -> Iterator[Axis]:
        """Constants in place of experts that are gone, a row for every expert of the parent."""
        param = f"{LAYER}{self.block}.experts.novices"
        yield Axis(param, 0, ROUTE, when=KEPT)
        yield Axis(param, 1, "hidden", when=KEPT)

    def routed(self) -> Iterator[Axis]:
        """Axes of the router."""
        yield from self.rows(f"{self.router}.weight")
        yield Axis(f"{LAYER}{self.block}.{self.router}.weight", 1, "hidden", when=SPARSE)

    def axes(self) -> Iterator[Axis]:
        """Axes of router and experts. One tensor ``[experts, rows, columns]`` holds all experts of
        a layer, so channel k of ``expert_ffn`` is removed from all of them.
        """
        yield from self.routed()
        yield from self.novices()
        inside = f"{LAYER}{self.block}.experts."
        rows = ((0, EXPERT), (1, EXPERT_FFN), (1, EXPERT_FFN), (2, "hidden"))
        yield from (Axis(inside + "gate_up_proj", d, name, when=SPARSE) for d, name in rows)
        down = enumerate((EXPERT, "hidden", EXPERT_FFN))
        yield from (Axis(inside + "down_proj", d, name, when=SPARSE) for d, name in down)

    def beside_axes(self, bias: str = "") -> Iterator[Axis]:
        """Axes of the experts that every token goes through; ``bias``: the flag of their biases."""
        module = f"{LAYER}{self.shared}."
        sides: dict[str, tuple[Name, Name]] = {
            **dict.fromkeys(("gate_proj", "up_proj"), (SHARED_FFN, "hidden")),
            "down_proj": ("hidden", SHARED_FFN),
        }
        for name, (out, into) in sides.items():
            yield from linear(module + name, out, into, SHARED)
            if bias:
                yield side(f"{module}{name}.bias", 0, out, bias)

    def traits(self, heads: Callable[[Config, Widths], Fields] = llama.resize) -> dict[str, Any]:
        """Keywords of ``decoder``. ``heads``: configuration fields of the rest of the model."""

        def resize(config: Config, widths: Widths) -> Fields:
            only = "expert_ffn" if self.width == "intermediate_size" else "ffn"
            dense = widths.get(only) or config.get("intermediate_size", 0)
            found = heads(config, {**widths, "ffn": dense})
            if "expert" in widths:
                named = next(name for name in self.count if config.get(name))
                found |= {named: widths["expert"], self.width: widths["expert_ffn"]}
            if self.shared_width and "shared_ffn" in widths:
                found |= {self.shared_width: widths["shared_ffn"]}
            return found

        derives = bool(self.shared) and not self.shared_width
        beside = {"shared_ffn": lambda c, _: self.beside(c)} if self.shared else {}
        derived = {"shared_ffn": lambda c, w: w["expert_ffn"] * self._times(c)} if derives else {}
        return {
            "units": {
                **llama.UNITS,
                "expert": lambda c, _: self.experts(c),
                "route": lambda c, _: self.experts(c),
                "expert_ffn": lambda c, _: c[self.width],
                "one": lambda _c, _i: 1,
                **beside,
            },
            "flags": self._flags(),
            "resize": resize,
            "attributes": self._attributes,
            "pad": self.pad,
            "multiples": {"hidden": EXPERT_ROW, "expert_ffn": EXPERT_ROW},
            "router": f"{LAYER}{self.block}.{self.router}",
            "experts": f"{LAYER}{self.block}.experts",
            # Top-k routing needs k experts at least.
            "floors": {"expert": _unless_kept(self._least)},
            "parts": {"expert": _unless_kept(self.groups.count)} if self.groups else {},
            # The router would still send tokens to an expert of zeros.
            "rigid": ("expert",),
            "fixed": (*FIXED, *(("shared_ffn",) if derives else ())),
            "derived": derived,
            "aliases": {"num_experts_per_tok": self.chosen},
            "unreached": {"shared_ffn": DERIVED} if derives else {},
        }

    def _flags(self) -> dict[str, Sparse]:
        sparse = self.sparse
        return {
            SPARSE: sparse,
            SHARED: lambda c, i: sparse(c, i) and self.beside(c) > 0,
            CUT: lambda c, i: sparse(c, i) and not c.get("novices"),
            KEPT: lambda c, i: sparse(c, i) and bool(c.get("novices")),
        }

    def _least(self, config: Config) -> int:
        chosen = config[self.chosen]
        return self.groups.least(config, chosen) if self.groups else chosen

    def pad(self, config: Config, widths: Widths) -> dict[str, int]:
        """Widths as kernels want them, none smaller."""
        kinds = [kind for kind in ("hidden", "expert_ffn") if kind in widths]
        found = {kind: -(-widths[kind] // EXPERT_ROW) * EXPERT_ROW for kind in kinds}
        if self.shared and not self.shared_width and "expert_ffn" in widths:
            # The class derives the width of the shared experts, which stay, from that of the rest.
            found["expert_ffn"] = config[self.width]
        return found

    def _attributes(self, config: Config, widths: Widths) -> ModuleSizes:
        found = llama.repeats(config, widths)
        if "expert" not in widths:
            return found
        hidden, count = widths["hidden"], widths["expert"]
        sizes = {"num_experts": count, "hidden_dim": hidden, "intermediate_dim": 0}
        sizes["intermediate_dim"] = widths["expert_ffn"]
        router = {"num_experts": widths.get("route", count), "hidden_dim": hidden}
        block = {"hidden_dim": hidden, "input_size": hidden}
        return {
            **found,
            self.block: {**block},
            f"{self.block}.{self.router}": {**router},
            f"{self.block}.experts": {**sizes},
        }


_MIXTRAL = Mixture(("num_local_experts",), width="intermediate_size")
MIXTRAL = decoder(
    "mixtral",
    modules=(*attention("", ""), *_MIXTRAL.axes()),
    defaults={
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    },
    **_MIXTRAL.traits(),
)


def kept_listed(config: Config, layers: tuple[int, ...]) -> Fields:
    """The class derives which layers are sparse from their index, which removal changes: the dense
    ones are listed instead.
    """
    dense = [j for j, i in enumerate(layers) if not dense_layers_listed(config, i)]
    return {
        **llama.listed_per_layer(config, layers),
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


# The field's name differs between versions of transformers.
_QWEN3_MOE = Mixture(("num_local_experts", "num_experts"), sparse=dense_layers_listed)
QWEN3_MOE = decoder(
    "qwen3_moe",
    modules=(*attention(), *gated(when=DENSE), *_QWEN3_MOE.axes()),
    more=llama.QK_NORM,
    fed_by=llama.FED,
    defaults={
        "qwen3_moe": {
            **{"num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        }
    },
    depth_fields=kept_listed,
    **_QWEN3_MOE.traits(),
)

_OLMOE = Mixture(("num_experts", "num_local_experts"), width="intermediate_size")


def _pad_olmoe(config: Config, widths: Widths) -> dict[str, int]:
    """The class makes the norm of all queries as wide as the residual stream: both grow until they
    are, with whole KV heads.
    """
    head = llama.head_dim(config) * widths["query"]
    step = head * EXPERT_ROW // math.gcd(head, EXPERT_ROW)
    hidden = -(-max(widths["hidden"], widths["attention"] * head) // step) * step
    return {**_OLMOE.pad(config, widths), "hidden": hidden, "attention": hidden // head}


OLMOE = decoder(
    "olmoe",
    modules=(*attention(), *_OLMOE.axes()),
    whole_heads=lambda _: True,
    defaults={"olmoe": {"num_experts_per_tok": 8, "num_experts": 64}},
    **llama.ACROSS_HEADS,
    **{**_OLMOE.traits(), "pad": _pad_olmoe},
)
_MINIMAX_M2 = Mixture(("num_local_experts",), width="intermediate_size")
MINIMAX_M2 = decoder(
    "minimax_m2",
    modules=(*attention("", ""), *_MINIMAX_M2.axes()),
    defaults={
        "minimax_m2": {
            **{"num_key_value_heads": 8, "head_dim": 128},
            **{"num_local_experts": 256, "num_experts_per_tok": 8},
        }
    },
    **llama.ACROSS_HEADS,
    **_MINIMAX_M2.traits(),
)
GRANITE_MIXTURE = Mixture(
    ("num_local_experts",), width="intermediate_size", block="block_sparse_moe", router="router"
)


def granite_scale(config: Config) -> float:
    """What blocks add to the stream is multiplied by this."""
    return config.get("residual_multiplier", 1.0)


def granite_blocks(*beside: str) -> dict[str, Sublayer]:
    """The two blocks of a layer; modules ``beside`` the mixture go with it."""
    mlp = ("block_sparse_moe", 1, ("post_attention_layernorm",))
    return {
        "attention_block": Sublayer("self_attn", 2, ("input_layernorm",)),
        "mlp_block": Sublayer(*mlp, beside=beside),
    }


GRANITE = decoder(
    "granitemoe",
    modules=(*attention(), *GRANITE_MIXTURE.axes()),
    sublayers=granite_blocks(),
    residual_scale=granite_scale,
    defaults={"granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2}},
    **GRANITE_MIXTURE.traits(),
)


_GPT_OSS = Mixture(("num_local_experts",), width="intermediate_size", router="router")


def _gpt_oss_experts() -> Iterator[Axis]:
    """Axes of experts with transposed weights, ``[experts, inputs, outputs]``, whose gate and up
    columns alternate: a channel owns two neighbours.
    """
    pair = (EXPERT_FFN, "pair")
    rows = {
        "gate_up_proj": (EXPERT, "hidden", pair),
        "gate_up_proj_bias": (EXPERT, pair),
        "down_proj": (EXPERT, EXPERT_FFN, "hidden"),
        "down_proj_bias": (EXPERT, "hidden"),
    }
    for param, names in rows.items():
        for dim, name in enumerate(names):
            yield side(LAYER + f"mlp.experts.{param}", dim, name)


def _gpt_oss_attributes(config: Config, widths: Widths) -> ModuleSizes:
    found = llama.repeats(config, widths)
    route = widths.get("route", widths["expert"])
    router = {"num_experts": route, "hidden_dim": widths["hidden"]}
    experts = {"num_experts": widths["expert"], "hidden_size": widths["hidden"]}
    experts["intermediate_size"] = widths["expert_ffn"]
    return {**found, "mlp.router": {**router}, "mlp.experts": {**experts}}


GPT_OSS = decoder(
    "gpt_oss",
    modules=(
        *attention(),
        # A learned logit of each query head, to which attention may go instead of to a token.
        Axis(LAYER + "self_attn.sinks", 0, ATTENTION + "/query.{i}"),
        *_GPT_OSS.routed(),
        *_GPT_OSS.rows("router.bias"),
        *_gpt_oss_experts(),
        *_GPT_OSS.novices(),
    ),
    positions_per_unit={**MIXTRAL.positions_per_unit, "pair": lambda _: 2},
    # The block returns the router's weights as well.
    sublayers={
        "attention_block": Sublayer("self_attn", 2, ("input_layernorm",)),
        "mlp_block": Sublayer("mlp", 2, ("post_attention_layernorm",)),
    },
    defaults={
        "gpt_oss": {
            **{"num_key_value_heads": 8, "head_dim": 64, "attention_bias": True},
            **{"num_local_experts": 128, "num_experts_per_tok": 4},
        }
    },
    **{**_GPT_OSS.traits(), "attributes": _gpt_oss_attributes},
    expert_inputs=1,
)
FAMILIES = (MIXTRAL, QWEN3_MOE, GPT_OSS, OLMOE, MINIMAX_M2, GRANITE)
