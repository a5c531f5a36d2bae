"""What people call the kinds of mini-groups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """``short`` for a table or a live line, ``plural`` in a sentence, ``title`` over a picture."""

    short: str
    plural: str
    title: str


KINDS = {
    "attention": Kind("heads", "attention heads", "Attention heads (key/value groups)"),
    "query": Kind("queries", "query heads per group", "Query heads (per key/value head)"),
    "ffn": Kind("FFN", "FFN channels", "FFN channels"),
    "hidden": Kind("hidden", "hidden channels", "Hidden channels"),
    "expert": Kind("experts", "experts", "Experts"),
    "expert_ffn": Kind("expert FFN", "FFN channels of experts", "FFN channels of experts"),
    "linear_head": Kind("lin. heads", "linear-attention heads", "Linear-attention heads"),
    "ssm_group": Kind("SSM groups", "groups of state spaces", "Groups of state spaces"),
    "ssm_head": Kind("SSM heads", "heads of state spaces", "Heads of state spaces"),
    "ssm_channel": Kind("SSM channels", "channels of state spaces", "Channels of state spaces"),
    "conv_channel": Kind("conv", "channels of convolutions", "Channels of short convolutions"),
    "shared_ffn": Kind(
        "shared FFN", "FFN channels of shared experts", "FFN channels of shared experts"
    ),
    "layer": Kind("layers", "layers", "Layers"),
    "attention_block": Kind("attn blocks", "attention blocks", "Attention blocks"),
    "mlp_block": Kind("FFN blocks", "feed-forward blocks", "Feed-forward blocks"),
}
"""The usual ones, in the order in which they are shown; plugins may bring others."""


def of(kind: str) -> Kind:
    """A kind's words; a plugin's kind goes by its own name."""
    return KINDS.get(kind, Kind(kind, kind, kind))
