"""Computes what a forward pass keeps for its backward, from a configuration alone.

Autograd keeps the inputs of every operation that needs them. Per token of a layer, with hidden
width ``h``, ``Q`` and ``K`` the widths of all query and all KV heads, ``F`` that of the
feed-forward block, and ``v`` bytes of a number in the compute dtype (4; under bf16 autocast 2,
where the residual stream stays fp32):

- a root-mean-square norm: its input and the normalised values, ``2 h`` in fp32 (autocast or not); a
  LayerNorm keeps its input alone; a norm within or across heads ``(Q + K) (4 + v)``;
- what the layers behind a norm read: ``h v``, in fp32 once for all of them (they share the tensor),
  under autocast once for each (every one casts its own copy);
- attention: rotated queries and keys, values, output, ``(2 Q + 2 K) v``; fused projections keep
  their whole output alive for the values; latent attention keeps the two vectors of low rank as
  norms do, keys of all heads, and the projection that the values are a part of; where scores are
  capped, the eager kernel keeps capped scores and probabilities, 8 bytes per head and position, and
  repeats keys and values: ``4 Q v``;
- feed-forward: gate, its activation, up, their product, ``4 F v``; without a gate ``2 F v`` (relu,
  which keeps its output only: ``F v``; gelu_new, a chain of five: ``5 F v``);
- experts, whose grouped products autocast leaves in fp32: ``4 F`` numbers and their gathered inputs
  and outputs, ``2 h``, for each expert of a token.

After the layers: the last norm, the input of the output matrix, and the logits. In the forward
these are the model's, the copy without the last position and the log-softmax; in the backward the
log-softmax, its gradient and that of the logits. Both are three fp32 numbers per vocabulary entry.
Dropout masks are not counted.
"""

from dataclasses import dataclass

from effcompress.estimate.flops import multiplied, query_heads
from effcompress.network.active import routed
from effcompress.types import AxisMap, Config, Widths

LOGITS = 12
"""Bytes per vocabulary entry and token at the peak."""
_FFN = {"relu": 1, "gelu_new": 5}
"""Activation of an ungated feed-forward -> kept tensors of its width; 2 for others."""


@dataclass(frozen=True)
class Activations:
    """Bytes per token: of the layers, and of everything between them and the loss."""

    layers: float
    logits: float


def activations(
    axes: AxisMap,
    config: Config,
    widths: Widths,
    length: int,
    *,
    bf16: bool,
    recompute: bool = False,
) -> Activations:
    """Returns bytes per token of a model of these widths, on sequences of ``length`` tokens. With
    ``recompute`` (activation checkpointing): the input of every layer, and all of the largest one.
    """
    shape = _Shape(axes, config, {**axes.widths, **widths}, length, 2 if bf16 else 4)
    hidden = shape.wide["hidden"]
    layers = [shape.layer(j, i) for j, i in enumerate(axes.depth.layers)]
    alive = sum(size > 0 for size in layers)
    kept = max(layers, default=0.0) + 4 * alive * hidden if recompute else sum(layers)
    behind = hidden * (shape.norm + shape.value)
    capped = shape.value if config.get("final_logit_softcapping") else 0
    return Activations(kept + behind, shape.wide["vocab"] * (LOGITS + capped))


def copied(axes: AxisMap, widths: Widths, *, outside: bool = False) -> int:
    """Returns the number of weights that bf16 autocast casts and caches until the backward ends;
    ``outside``: only those outside the layers.
    """
    wide = {**axes.widths, **widths}
    cast = (p for p in multiplied(axes) if not (outside and axes.gates[p]))
    return sum(axes.numel(p, wide) for p in cast if len(axes.shapes[p]) == 2)


@dataclass(frozen=True)
class _Shape:
    axes: AxisMap
    config: Config
    wide: Widths
    length: int
    value: int

    @property
    def norm(self) -> int:
        """Bytes per channel of a norm over the residual stream (LayerNorm 4, RMSNorm 8)."""
        return 4 if self.axes.family.centred else 8

    def layer(self, number: int, layer: int) -> float:
        """Returns bytes per token; ``layer`` numbers the parent's layers, ``number`` today's."""
        wide, gate = self.wide, f"layer.{layer}"
        if not wide[gate]:
            return 0.0
        params = [p for p, g in self.axes.gates.items() if gate in g and self.axes.numel(p, wide)]
        blocks = self._attention(params, layer), self._feed_forward(params, layer)
        return self._stream(params, number) + blocks[0] + blocks[1]

    def _stream(self, params: list[str], number: int) -> float:
        """Returns the norms over the residual stream and the inputs of the layers behind them."""
        family, inputs = self.axes.family, self.axes.family.inputs
        gains = {pattern.replace("{i}", str(number)) for pattern in family.norms}
        norms = sum(p in gains and self._names(p, 0) == [("hidden",)] for p in params)
        readers = [p for p in params if self._matrix(p) and ("hidden",) in self._names(p, inputs)]
        distinct = {p.rsplit(".", 2)[0] for p in readers}
        copies = len(readers) if self.value == 2 else len(distinct)
        return self.wide["hidden"] * (norms * self.norm + copies * self.value)

    def _attention(self, params: list[str], layer: int) -> float:
        wide = self.wide
        heads = query_heads(self.axes, wide, layer)
        if not heads:
            return self._mixing(params, layer)
        if self.axes.family.latent:
            return self._latent(heads)
        shared = self.axes.queries[layer]
        axis, head = shared.names[0], shared.positions_per_unit
        query = heads * head
        key = wide[axis] * head
        writers = self._writers(params, axis)
        fused = sum(self.axes.length(p, 1 - self.axes.family.inputs, wide) for p in writers)
        rotated = not self.axes.axes("positions")
        if self.config.get("attn_logit_softcapping"):
            kept = 4 * query * self.value + 8 * (query // head) * self.length
        elif len(writers) > 1:
            kept = (2 * query + 2 * key) * self.value
        else:
            kept = (fused + query + (query + key if rotated else 0)) * self.value
        names = {n for p in params if not self._matrix(p) for n in self._names(p, 0)}
        gains = [p for p in params if p.endswith("norm.weight") and axis in str(self._names(p, 0))]
        inside = any(n[0].endswith("head_dim") for n in names)
        normed = query + key if inside or gains else 0
        return kept + normed * (4 + self.value)

    def _mixing(self, params: list[str], layer: int) -> float:
        """Returns what linear attention or a convolution keeps: what its projections write, and as
        much behind the convolution and behind its activation.
        """
        gate, out = f"attention_block.{layer}", 1 - self.axes.family.inputs
        inside = [p for p in params if gate in self.axes.gates[p] and self._matrix(p)]
        into = [p for p in inside if ("hidden",) not in self._names(p, out)]
        return 3 * self.value * sum(self.axes.length(p, out, self.wide) for p in into)

    def _latent(self, heads: int) -> float:
        """Returns what latent attention keeps: queries, keys, the projection that values are a part
        of, the output; and the vectors of low rank with their norms.
        """
        family, config = self.axes.family, self.config
        query, value = family.head_widths(config) if family.head_widths else (0, 0)
        both = family.positions_per_unit["key_value"](config)
        ranks = sum(self.wide.get(name, 0) for name in ("q_rank", "kv_rank"))
        return heads * (2 * query + both + value) * self.value + ranks * (self.norm + self.value)

    def _feed_forward(self, params: list[str], layer: int) -> float:
        wide = self.wide
        ffn, expert = wide.get(f"ffn.{layer}", 0), wide.get(f"expert_ffn.{layer}", 0)
        writers = self._writers(params, f"ffn.{layer}")
        written = sum(self.axes.length(p, 1 - self.axes.family.inputs, wide) for p in writers)
        names = ("hidden_act", "activation_function", "activation")
        activation = next((self.config[n] for n in names if n in self.config), "")
        tensors = 4 if written > ffn else _FFN.get(activation, 2)
        chosen = routed(self.axes, self.config, wide.get(f"expert.{layer}", 0))
        experts = chosen * (4 * expert + 2 * wide["hidden"])
        beside = 4 * wide.get(f"shared_ffn.{layer}", 0)
        return self.value * (tensors * ffn * bool(writers) + beside) + 4 * experts

    def _matrix(self, param: str) -> bool:
        return len(self.axes.shapes[param]) == 2

    def _names(self, param: str, dim: int) -> list[tuple[str, ...]]:
        return [s.names for s in self.axes.by_param[param] if s.dim == dim]

    def _writers(self, params: list[str], axis: str) -> list[str]:
        """Returns the matrices whose outputs lie on an axis."""
        out = 1 - self.axes.family.inputs
        on_axis = (p for p in params if any(axis in names for names in self._names(p, out)))
        return [p for p in on_axis if self._matrix(p)]
